/** What keeps requests away from an instance for a while, and for longer if it has to again. */

export interface Hold {
  untilMs: number;
  lengthMs: number;
  cause: string;
}

export const newHold = (cause: string): Hold => ({
  untilMs: Number.NEGATIVE_INFINITY,
  lengthMs: 0,
  cause,
});

/** Starts a hold; twice as long as the last one if that ended less than `maxMs` ago. */
export function prolong(hold: Hold, nowMs: number, firstMs: number, maxMs: number): void {
  if (nowMs < hold.untilMs) return;
  const again = nowMs - hold.untilMs < maxMs;
  hold.lengthMs = again ? Math.min(hold.lengthMs * 2, maxMs) : firstMs;
  hold.untilMs = nowMs + hold.lengthMs;
}
