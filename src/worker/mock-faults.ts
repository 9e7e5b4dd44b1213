/** Faults a mock engine can be told to have while it runs; they act around the core, never in it. */
import { TiergridError } from "../base/errors.ts";

export interface MockFaults {
  /** Multiplies every pass duration. */
  readonly slowFactor: number;
  /** No passes; the engine stays reachable. */
  readonly freeze: boolean;
  /** Freezes once the engine has emitted this many tokens since the fault was set. */
  readonly hangAfterTokens: number | undefined;
  /** Ends a request with `engine_error` after this many of its tokens. */
  readonly errorAfterTokens: number | undefined;
  /** The engine dies when it admits a prompt that contains this token sequence. */
  readonly crashOnMarker: readonly number[] | undefined;
  /** Share of passes whose KV events get lost behind the worker, which has numbered them. */
  readonly dropKvEvents: number;
  /** Block size the engine claims to have. */
  readonly wrongBlockSize: number | undefined;
  /** Share of requests refused with `overloaded`. */
  readonly rejectRate: number;
  /** Load stays as it was when the fault was set. */
  readonly staleLoad: boolean;
}

export const noFaults: MockFaults = Object.freeze({
  slowFactor: 1,
  freeze: false,
  hangAfterTokens: undefined,
  errorAfterTokens: undefined,
  crashOnMarker: undefined,
  dropKvEvents: 0,
  wrongBlockSize: undefined,
  rejectRate: 0,
  staleLoad: false,
});

/** `faults` with `change` on top; throws `config_invalid` for a rate or factor out of range. */
export function changeFaults(faults: MockFaults, change: Partial<MockFaults>): MockFaults {
  const next = { ...faults, ...change };
  const rates = [next.dropKvEvents, next.rejectRate];
  if (next.slowFactor > 0 && rates.every((rate) => rate >= 0 && rate <= 1)) return next;
  const got = JSON.stringify(change);
  throw new TiergridError(
    "config_invalid",
    `faults: expected slowFactor > 0 and rates in [0, 1], got ${got}`,
  );
}

/** True when `marker` occurs in `tokens` as one run; an empty marker never does. */
export function containsRun(tokens: Uint32Array, marker: readonly number[]): boolean {
  const first = marker[0];
  if (first === undefined) return false;
  for (let at = tokens.indexOf(first); at >= 0; at = tokens.indexOf(first, at + 1)) {
    if (marker.every((token, offset) => tokens[at + offset] === token)) return true;
  }
  return false;
}
