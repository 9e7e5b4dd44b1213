/**
 * Service-level objectives of answers: which of them meet their targets, and what share of all that
 * were offered. An answer that was rejected, failed or did not become whole meets none.
 *
 *   pair      first - arrival <= X,  (last - first) / (n - 1) <= Y        n = 1: only the first
 *   deadline  first - arrival <= X,  last - arrival <= X + (n - 1) * Y
 *   prefill   first - arrival <= X
 *   scaled    first - arrival <= b + s * input tokens                     b, s of its class
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";

export type SloForm = "pair" | "deadline" | "prefill" | "scaled";

export interface SloTargets {
  /** X, from the arrival to the first token. */
  readonly ttftMs: number;
  /** Y, per output token after the first. */
  readonly tpotMs: number;
}

/** When an answer came; `NaN` = that did not happen. */
export interface AnswerTimes {
  readonly arrivalMs: number;
  readonly firstMs: number;
  /** Its last token; `NaN` unless the answer is whole. */
  readonly lastMs: number;
  readonly outputTokens: number;
}

export function meetsPair({ ttftMs, tpotMs }: SloTargets, answer: AnswerTimes): boolean {
  const { arrivalMs, firstMs, lastMs, outputTokens } = answer;
  if (!(firstMs - arrivalMs <= ttftMs) || Number.isNaN(lastMs)) return false;
  return outputTokens === 1 || (lastMs - firstMs) / (outputTokens - 1) <= tpotMs;
}

export function meetsDeadline({ ttftMs, tpotMs }: SloTargets, answer: AnswerTimes): boolean {
  const { arrivalMs, firstMs, lastMs, outputTokens } = answer;
  if (!(firstMs - arrivalMs <= ttftMs)) return false;
  return lastMs - arrivalMs <= ttftMs + (outputTokens - 1) * tpotMs;
}

/** Only the first token counts, of an answer that became whole. */
export function meetsFirst(ttftMs: number, { arrivalMs, firstMs, lastMs }: AnswerTimes): boolean {
  return firstMs - arrivalMs <= ttftMs && !Number.isNaN(lastMs);
}

/** A class of requests whose time to the first token may grow with the prompt. */
export interface SloClass {
  readonly share: number;
  readonly baseMs: number;
  readonly msPerInputToken: number;
}

const classesMax = 16;
const classForm = /^\s*([\d.]+)\s*:\s*([\d.]+)\s*(?:\+\s*([\d.]+)\s*)?$/;

/**
 * Classes from text such as `0.3:200+0.055, 0.7:600+0.16`, share:ms+ms per input token; throws
 * `config_invalid` unless there are shares that sum to 1.
 */
export function readSloClasses(text: string): SloClass[] {
  const classes = text.split(",").map((part) => {
    const [, share, baseMs, slope] = classForm.exec(part) ?? [];
    const read = {
      share: Number(share),
      baseMs: Number(baseMs),
      msPerInputToken: Number(slope ?? 0),
    };
    if (Object.values(read).every((value) => value >= 0)) return read;
    const expected = "expected share:ms or share:ms+ms per input token";
    throw new TiergridError("config_invalid", `SLO class: ${expected}, got "${part.trim()}"`);
  });
  const shares = classes.reduce((sum, { share }) => sum + share, 0);
  if (classes.length > classesMax || Math.abs(shares - 1) > 1e-9) {
    const expected = `at most ${classesMax} classes with shares that sum to 1`;
    const message = `SLO classes: expected ${expected}, got ${classes.length} with ${shares}`;
    throw new TiergridError("config_invalid", message);
  }
  return classes;
}

/** Class of each of `count` requests, one draw each. */
export function drawClasses(
  classes: readonly Pick<SloClass, "share">[],
  count: number,
  random: Random,
): Uint8Array {
  return Uint8Array.from({ length: count }, () => {
    let left = random();
    const drawn = classes.findIndex(({ share }) => {
      left -= share;
      return left < 0;
    });
    return drawn < 0 ? classes.length - 1 : drawn;
  });
}
