/**
 * Anti-entropy: does the index hold what a worker says it holds? A lost event shows when the next one
 * arrives; the last one before silence shows only here.
 *
 *   heartbeat ──digest──▶ heard ──every 5 s──▶ equal to the index's? ──no, twice alike──▶ restore
 *
 * A mismatch counts only when neither side has changed since the check before: events under way would
 * have changed one of them.
 */
import { type CancelTimer, type Clock, every } from "../base/clock.ts";
import type { BlockDigest } from "../core/kv-index.ts";

export const digestCheckPeriodMs = 5_000;

export interface DigestCheckOptions {
  readonly clock: Clock;
  /** What the index holds of the rank in `slot`. */
  readonly digestOf: (slot: number) => BlockDigest;
  /** The rank in `slot` is wrong: ask its worker for everything. */
  readonly onMismatch: (slot: number) => void;
}

export interface DigestCheck {
  /** A worker's own digest of a rank, from its heartbeat. */
  heard(slot: number, digest: BlockDigest): void;
  forget(slot: number): void;
  close(): void;
}

interface Heard {
  told: BlockDigest;
  /** Both sides at the check before, if they differed. */
  suspect: { readonly told: BlockDigest; readonly held: BlockDigest } | undefined;
}

export function startDigestCheck(options: DigestCheckOptions): DigestCheck {
  const ranks = new Map<number, Heard>();
  const check = (): void => {
    for (const [slot, rank] of ranks) {
      const held = options.digestOf(slot);
      const { told, suspect } = rank;
      rank.suspect = undefined;
      if (same(held, told)) continue;
      if (suspect && same(suspect.told, told) && same(suspect.held, held)) options.onMismatch(slot);
      else rank.suspect = { told, held: { ...held } };
    }
  };
  const cancel: CancelTimer = every(options.clock, digestCheckPeriodMs, check);
  return {
    heard(slot, digest) {
      const rank = ranks.get(slot);
      if (rank) rank.told = digest;
      else ranks.set(slot, { told: digest, suspect: undefined });
    },
    forget: (slot) => void ranks.delete(slot),
    close: cancel,
  };
}

function same(a: BlockDigest, b: BlockDigest): boolean {
  return a.blocks === b.blocks && a.lo === b.lo && a.hi === b.hi;
}
