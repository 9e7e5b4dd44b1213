/**
 * Load samples of a worker, one message per rank: at once when the last is old enough, else when it
 * becomes so, with the newest values of then.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { encodeLoadSample } from "../protocol/load-sample.ts";
import { loadSubject } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { publishQuietly } from "../runtime/dispatch-offer.ts";
import type { EngineLoad } from "./engine.ts";

export const loadPeriodMs = 100;

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
  let sentMs = Number.NEGATIVE_INFINITY;
  let cancelTimer: CancelTimer | undefined;
  const send = (): void => {
    cancelTimer = undefined;
    sentMs = clock.nowMs();
    for (const { dpRank, activeBlocks } of newest.values()) {
      const sample = { workerId: inst, dpRank, kvUsedBlocks: activeBlocks };
      publishQuietly(bus, subject, encodeLoadSample(sample));
    }
    newest.clear();
  };
  return {
    report(load) {
      newest.set(load.dpRank, load);
      if (cancelTimer) return;
      const waitMs = sentMs + loadPeriodMs - clock.nowMs();
      if (waitMs <= 0) send();
      else cancelTimer = clock.after(waitMs, send);
    },
    close() {
      cancelTimer?.();
      cancelTimer = undefined;
    },
  };
}
