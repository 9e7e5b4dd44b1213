/**
 * Load samples of a worker, one message per rank: the newest values, a period after the first of
 * them. On a tick clock they leave with other messages of the process.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { encodeLoadSample } from "../protocol/load-sample.ts";
import { loadSubject } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { publishQuietly } from "../runtime/dispatch-offer.ts";
import type { EngineLoad } from "./engine.ts";

/** Routers count what they book themselves; this corrects them. */
export const loadPeriodMs = 250;

export interface LoadReports {
  /** Takes a rank's load after a pass. */
  report(load: EngineLoad): void;
  close(): void;
}

export function createLoadReports(options: {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly namespace: string;
  readonly inst: string;
}): LoadReports {
  const { bus, clock, namespace, inst } = options;
  const subject = loadSubject(namespace, inst);
  const newest = new Map<number, EngineLoad>();
  let cancelTimer: CancelTimer | undefined;
  const send = (): void => {
    cancelTimer = undefined;
    for (const { dpRank, activeBlocks } of newest.values()) {
      const sample = { workerId: inst, dpRank, kvUsedBlocks: activeBlocks };
      publishQuietly(bus, subject, encodeLoadSample(sample));
    }
    newest.clear();
  };
  return {
    report(load) {
      newest.set(load.dpRank, load);
      cancelTimer ??= clock.after(loadPeriodMs, send);
    },
    close() {
      cancelTimer?.();
      cancelTimer = undefined;
    },
  };
}
