/**
 * An intake that keeps still until a snapshot is in: discovered ranks are asked for their blocks only
 * afterwards, if the snapshot did not know them, and events from the bus are let go, which leaves gaps
 * that the cursors see.
 */
import type { EventIntake } from "./event-intake.ts";

export interface HeldIntake extends EventIntake {
  release(): void;
}

export function holdIntake(intake: EventIntake): HeldIntake {
  const waiting = new Map<string, () => void>();
  let held = true;
  return {
    ...intake,
    onDiscovered(holder, expectedBlocks) {
      if (!held) return intake.onDiscovered(holder, expectedBlocks);
      const discovered = (): void => intake.onDiscovered(holder, expectedBlocks);
      waiting.set(`${holder.workerId}:${holder.dpRank}`, discovered);
    },
    onEvents(batch) {
      if (!held) intake.onEvents(batch);
    },
    removeHolder(holder) {
      waiting.delete(`${holder.workerId}:${holder.dpRank}`);
      intake.removeHolder(holder);
    },
    removeWorker(workerId) {
      for (const key of waiting.keys()) if (key.startsWith(`${workerId}:`)) waiting.delete(key);
      intake.removeWorker(workerId);
    },
    release() {
      held = false;
      for (const discovered of waiting.values()) discovered();
      waiting.clear();
    },
  };
}
