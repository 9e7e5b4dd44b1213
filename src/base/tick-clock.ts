/**
 * A clock whose timers end together, on multiples of `tickMs`, for what may as well wait a little: to
 * wake a process costs more than most of what it wakes for.
 *
 *   after(30) at 12 ─┐
 *   after(20) at 25 ─┴─▶ at 50: one timer of the clock below; both fire, in the order of the calls
 *
 * A timer is less than a tick late, and no earlier than the clock's own are, but one that a firing
 * timer sets counts from the tick and not from its delay: periods keep their length. One of 0 ms fires
 * after the current task.
 */
import { type CancelTimer, type Clock, every } from "./clock.ts";

/** Tick of a process's common timers. */
export const commonTickMs = 50;
/** Timers may be that early: whoever asks for the time until a tick asks a little later than then. */
const earlyMs = 0.25;

interface Tick {
  readonly fires: Set<{ readonly fire: () => void }>;
  cancel: CancelTimer;
}

/** `onTick` is told before the timers of a tick fire how late that is: the delay of the event loop. */
export function tickClock(
  clock: Clock,
  tickMs: number,
  onTick: (lateMs: number) => void = () => {},
): Clock {
  const ticks = new Map<number, Tick>();
  /** Time of the tick that is firing. */
  let firingMs: number | undefined;
  const tickAt = (number: number): Tick => {
    const known = ticks.get(number);
    if (known) return known;
    const tick: Tick = { fires: new Set(), cancel: () => {} };
    ticks.set(number, tick);
    tick.cancel = clock.after(number * tickMs - clock.nowMs(), () => {
      ticks.delete(number);
      // A timer may be a fraction of a millisecond early.
      onTick(Math.max(0, clock.nowMs() - number * tickMs));
      firingMs = number * tickMs;
      for (const { fire } of tick.fires) fire();
      firingMs = undefined;
    });
    return tick;
  };
  return {
    nowMs: () => clock.nowMs(),
    wallMs: () => clock.wallMs(),
    after(delayMs, fire) {
      if (delayMs <= 0) return clock.after(delayMs, fire);
      const number = Math.ceil(((firingMs ?? clock.nowMs()) + delayMs - earlyMs) / tickMs);
      const tick = tickAt(number);
      const timer = { fire };
      tick.fires.add(timer);
      return () => {
        if (!tick.fires.delete(timer) || tick.fires.size > 0 || ticks.get(number) !== tick) return;
        ticks.delete(number);
        tick.cancel();
      };
    },
  };
}

/**
 * Repeats `fire` at multiples of `periodMs` on a clock whose ticks they are, so that all that repeats so
 * wakes the process together; on another clock only the first time is a multiple.
 */
export function everyInStep(clock: Clock, periodMs: number, fire: () => void): CancelTimer {
  let cancel = clock.after(periodMs - (clock.nowMs() % periodMs), () => {
    cancel = every(clock, periodMs, fire);
    fire();
  });
  return () => cancel();
}
