/** Busy thresholds of a pool as `POST /busy_threshold` reads and changes them. */
import type { BusyThresholds } from "../core/worker-roster.ts";
import { type ConfigFault, describeValue, sortFaults } from "./config-fault.ts";

interface ThresholdKey {
  readonly field: keyof BusyThresholds;
  readonly accepts: (value: number) => boolean;
  readonly expected: string;
}

const thresholdKeys: Readonly<Record<string, ThresholdKey>> = {
  active_decode_blocks_threshold: {
    field: "activeDecodeBlocks",
    accepts: (value) => value >= 0 && value <= 1,
    expected: "a number from 0 to 1, or null",
  },
  active_prefill_tokens_threshold: {
    field: "activePrefillTokens",
    accepts: (value) => Number.isSafeInteger(value) && value >= 0,
    expected: "an integer >= 0, or null",
  },
  active_prefill_tokens_threshold_frac: {
    field: "activePrefillTokensFrac",
    accepts: (value) => Number.isFinite(value) && value >= 0,
    expected: "a finite number >= 0, or null",
  },
};

export type ThresholdUpdate =
  | { readonly ok: true; readonly thresholds: BusyThresholds }
  | { readonly ok: false; readonly faults: readonly ConfigFault[] };

/** `current` with the thresholds that `body` gives: absent stays, null is off, others untouched. */
export function updateBusyThresholds(
  current: BusyThresholds,
  body: Readonly<Record<string, unknown>>,
): ThresholdUpdate {
  const faults: ConfigFault[] = [];
  const changed: [string, number | null][] = [];
  for (const [key, { field, accepts, expected }] of Object.entries(thresholdKeys)) {
    if (!Object.hasOwn(body, key)) continue;
    const value = body[key];
    if (value === null || (typeof value === "number" && accepts(value))) {
      changed.push([field, value]);
    } else {
      const message = `must be ${expected}, got ${describeValue(value)}`;
      faults.push({ pointer: `/${key}`, reason: "bad-threshold", message });
    }
  }
  if (faults.length > 0) return { ok: false, faults: sortFaults(faults) };
  return { ok: true, thresholds: { ...current, ...Object.fromEntries(changed) } };
}

/** Thresholds under the names of the wire. */
export function busyThresholdsJson(thresholds: BusyThresholds): Record<string, number | null> {
  const entries = Object.entries(thresholdKeys).map(([key, { field }]) => [key, thresholds[field]]);
  return Object.fromEntries(entries) as Record<string, number | null>;
}
