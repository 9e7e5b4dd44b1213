/**
 * How a pool has done lately, by the attempts this router sent: what failed, how long acceptance and
 * first token took, and whether it keeps failing so much that requests are steered elsewhere.
 */
import { type Circuit, failureShare, newCircuit } from "../core/circuit.ts";
import { type DecayedMean, meanOf, newMean } from "../core/decayed-mean.ts";

export interface PoolVitals {
  readonly circuit: Circuit;
  /** Dispatch to acceptance. */
  readonly acceptMs: DecayedMean;
  /** What the workers' first-output notices say. */
  readonly ttftMs: DecayedMean;
}

/** Vitals as `pool_info` shows them; null = no recent attempts. */
export interface VitalsView {
  readonly error_rate: number | null;
  readonly accept_ms: number | null;
  readonly ttft_ms: number | null;
  readonly circuit: Circuit["state"];
  /** Until the next attempt may tell whether it works again. */
  readonly probe_in_ms: number | null;
}

export function newVitals(): PoolVitals {
  return { circuit: newCircuit(), acceptMs: newMean(), ttftMs: newMean() };
}

export function vitalsView({ circuit, acceptMs, ttftMs }: PoolVitals, nowMs: number): VitalsView {
  const { state, untilMs } = circuit;
  return {
    error_rate: rounded(failureShare(circuit, nowMs), 1000),
    accept_ms: rounded(meanOf(acceptMs, nowMs), 10),
    ttft_ms: rounded(meanOf(ttftMs, nowMs), 10),
    circuit: state,
    probe_in_ms: state === "closed" ? null : Math.max(0, Math.ceil(untilMs - nowMs)),
  };
}

function rounded(value: number | null, steps: number): number | null {
  return value === null ? null : Math.round(value * steps) / steps;
}
