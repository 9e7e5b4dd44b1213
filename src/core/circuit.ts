/**
 * Takes what keeps failing out of rotation, and brings it back by one attempt at a time.
 *
 *   closed ──failures in a row, or their share──▶ open ──openMs──▶ due ──attempt──▶ probing
 *     ▲                                            ▲                ▲                 │ │
 *     │                                            │ failure, openMs x 2 ─────────────┘ │
 *     │                                            │                └──nothing heard────┤
 *     └───────────────────────────────────────success───────────────────────────────────┘
 *
 * Times are of the caller's monotonic clock. While it is open, outcomes of older attempts change
 * nothing: only the probe tells.
 */
import { addSample, type DecayedMean, meanOf, newMean, weightOf } from "./decayed-mean.ts";

export const circuitLimits = {
  /** Failures without a success between them. */
  failuresMax: 5,
  /** Share of failures, over at least so many recent attempts. */
  failureShareMax: 0.5,
  attemptsMin: 20,
  openMs: 5_000,
  openMsMax: 60_000,
  /** A probe that nobody heard of for so long makes room for the next. */
  probeMs: 2_000,
} as const;

export interface Circuit {
  state: "closed" | "open" | "probing";
  failuresInRow: number;
  /** 1 per failed attempt, 0 per good one. */
  readonly failures: DecayedMean;
  /** End of `open` or of `probing`. */
  untilMs: number;
  openMs: number;
}

export function newCircuit(): Circuit {
  const { openMs } = circuitLimits;
  return { state: "closed", failuresInRow: 0, failures: newMean(), untilMs: 0, openMs };
}

/** True when an attempt may be made. */
export function mayTry({ state, untilMs }: Circuit, nowMs: number): boolean {
  return state === "closed" || nowMs >= untilMs;
}

/** An attempt is made; on an open circuit it is the probe. */
export function tried(circuit: Circuit, nowMs: number): void {
  if (circuit.state === "closed" || nowMs < circuit.untilMs) return;
  circuit.state = "probing";
  circuit.untilMs = nowMs + circuitLimits.probeMs;
}

export function succeeded(circuit: Circuit, nowMs: number): void {
  addSample(circuit.failures, 0, nowMs);
  if (circuit.state === "open") return;
  if (circuit.state === "probing") Object.assign(circuit, newCircuit());
  circuit.failuresInRow = 0;
}

export function failed(circuit: Circuit, nowMs: number): void {
  addSample(circuit.failures, 1, nowMs);
  circuit.failuresInRow += 1;
  const { state } = circuit;
  if (state === "open") return;
  if (state === "closed" && !keepsFailing(circuit, nowMs)) return;
  const { openMs, openMsMax } = circuitLimits;
  circuit.openMs = state === "probing" ? Math.min(2 * circuit.openMs, openMsMax) : openMs;
  circuit.state = "open";
  circuit.untilMs = nowMs + circuit.openMs;
}

/** Share of recent attempts that failed; null without any. */
export function failureShare({ failures }: Circuit, nowMs: number): number | null {
  return meanOf(failures, nowMs);
}

function keepsFailing({ failuresInRow, failures }: Circuit, nowMs: number): boolean {
  const { failuresMax, failureShareMax, attemptsMin } = circuitLimits;
  if (failuresInRow >= failuresMax) return true;
  const share = meanOf(failures, nowMs) ?? 0;
  return weightOf(failures, nowMs) >= attemptsMin && share >= failureShareMax;
}
