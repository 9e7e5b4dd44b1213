/**
 * A busy period of one worker's prefill queue, the observation its speed is learnt from: from a
 * dispatch into an empty queue until the queue is empty again, or eight first tokens. A saturated
 * worker never goes idle and would else never be observed. A single time to first token would say
 * little, because prompts share passes.
 */
import type { PrefillPeriod } from "./latency-model.ts";
import type { PlannedWork } from "./prefill-plan.ts";

export interface BusyPeriod {
  isOpen: boolean;
  /** A request left it without a first token: what was computed is not known. */
  isSpoilt: boolean;
  /** False: a prompt was not what its plan took it for. */
  isPlanned: boolean;
  openedMs: number;
  /** Rest of the decode step that ran when it opened. */
  waitMs: number;
  tokens: number;
  attention: number;
  /** Sum of the decode steps at its first tokens. */
  decodeMs: number;
  firstTokens: number;
  /** Work of the passes that ended since it opened, as planned (`prefill-plan.ts`). */
  planned: PlannedWork;
  /** First tokens that came by themselves. */
  passesSeen: number;
}

/** A prompt whose first token came: what was computed, after what was cached. */
export interface ComputedPrompt {
  readonly computedTokens: number;
  readonly cachedTokens: number;
  /** The worker's decode step at that moment. */
  readonly decodeMs: number;
  readonly sincePreviousMs: number;
}

export const firstTokensPerPeriodMax = 8;
const periodMsMax = 120_000;
const periodTokensMin = 64;
/** First tokens closer than this came out of one pass, ms. */
const samePassMs = 1;

export function idlePeriod(): BusyPeriod {
  return {
    isOpen: false,
    isSpoilt: false,
    openedMs: 0,
    waitMs: 0,
    tokens: 0,
    attention: 0,
    decodeMs: 0,
    firstTokens: 0,
    planned: { passes: 0, tokens: 0, attention: 0 },
    isPlanned: true,
    passesSeen: 0,
  };
}

export function openPeriod(period: BusyPeriod, nowMs: number, waitMs: number): void {
  Object.assign(period, idlePeriod());
  period.isOpen = true;
  period.openedMs = nowMs;
  period.waitMs = waitMs;
}

export function countFirstToken(period: BusyPeriod, prompt: ComputedPrompt): void {
  const { computedTokens, cachedTokens } = prompt;
  period.tokens += computedTokens;
  period.attention += computedTokens * (cachedTokens + computedTokens / 2);
  period.decodeMs += prompt.decodeMs;
  period.firstTokens++;
  if (prompt.sincePreviousMs > samePassMs) period.passesSeen++;
}

/** The work of passes that are over. */
export function countPasses({ planned }: BusyPeriod, done: PlannedWork): void {
  planned.passes += done.passes;
  planned.tokens += done.tokens;
  planned.attention += done.attention;
}

/** Ends the period and answers its observation; undefined when it tells nothing. */
export function closePeriod(
  period: BusyPeriod,
  nowMs: number,
  batchTokens: number,
): PrefillPeriod | undefined {
  const { isOpen, isSpoilt, openedMs, waitMs, tokens, attention, decodeMs, firstTokens } = period;
  const { isPlanned, planned } = period;
  period.isOpen = false;
  if (!isOpen || isSpoilt || tokens < periodTokensMin) return undefined;
  const passes = Math.max(period.passesSeen, Math.ceil(tokens / batchTokens));
  const ms = nowMs - openedMs - waitMs - (passes * decodeMs) / firstTokens;
  // First tokens alone do not say what their passes computed of the prompts behind.
  if (isPlanned && planned.tokens > 0 && ms > 0 && ms < periodMsMax) return { ...planned, ms };
  return ms > 0 && ms < periodMsMax ? { passes, tokens, attention, ms } : undefined;
}
