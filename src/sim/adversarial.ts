/**
 * Traces that tempt a router to send most of its requests to one worker:
 *
 *   herd-identical       every request is the same long prompt; the first one comes alone
 *   herd-system-prompt   one long prompt that all share, with something of its own behind it
 *   herd-all-miss        no two prompts share anything; in the middle a storm of them at once
 *   herd-huge-prompt     small prompts of a few kinds, and now and then a huge one
 *   herd-long-answers    long answers that fill the workers; one that joins late is empty
 *
 * One seed gives the same trace on every machine.
 */
import { mulberry32, type Random, randomInt } from "../base/random.ts";
import { type TraceRequest, traceBlockTokens } from "./mooncake-trace.ts";

/** A request before it has a place in time. */
interface Prompt {
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly hashIds: readonly number[];
}

interface Draws {
  readonly random: Random;
  /** As many ids that no prompt has yet. */
  readonly fresh: (count: number) => number[];
}

const identicalPerSecond = 80;
const identicalBlocks = 96;
const warmUpMs = 5_000;
const sharedPerSecond = 20;
const missesPerSecond = 4;
const stormRequests = 240;
const smallPerSecond = 30;
const hugePeriodMs = 15_000;
const hugeTokens = 120_000;
const longAnswersPerSecond = 18;
const longPromptMeanTokens = 8_000;
const longAnswerTokens = 1_000;
const durationMs = 90_000;
const systemPromptBlocks = 16;
const kinds = 8;
const kindBlocks = 4;

export const adversarialTraces = {
  "herd-identical": (seed) => {
    const draws = drawsOf(seed);
    const prompt = promptOf(draws, draws.fresh(identicalBlocks), 0, 300);
    const rest = steady(draws, identicalPerSecond, () => prompt);
    return [at(0, prompt), ...rest.filter(({ arrivalMs }) => arrivalMs >= warmUpMs)];
  },
  "herd-system-prompt": (seed) => {
    const draws = drawsOf(seed);
    const shared = draws.fresh(systemPromptBlocks);
    return steady(draws, sharedPerSecond, () =>
      promptOf(draws, shared, exponential(draws, 900), randomInt(draws.random, 20, 400)),
    );
  },
  "herd-all-miss": (seed) => {
    const draws = drawsOf(seed);
    const unique = (): Prompt =>
      promptOf(draws, [], exponential(draws, 8_000), randomInt(draws.random, 20, 400));
    const storm = Array.from({ length: stormRequests }, () =>
      at(durationMs / 3 + draws.random() * 1_000, unique()),
    );
    return inOrder([...steady(draws, missesPerSecond, unique), ...storm]);
  },
  "herd-huge-prompt": (seed) => {
    const draws = drawsOf(seed);
    const prefixes = Array.from({ length: kinds }, () => draws.fresh(kindBlocks));
    const small = steady(draws, smallPerSecond, () => {
      const prefix = prefixes[randomInt(draws.random, 0, kinds - 1)] ?? [];
      return promptOf(draws, prefix, exponential(draws, 200), randomInt(draws.random, 20, 200));
    });
    const huge: TraceRequest[] = [];
    for (let atMs = hugePeriodMs / 2; atMs < durationMs; atMs += hugePeriodMs) {
      huge.push(at(atMs, promptOf(draws, [], hugeTokens, 200)));
    }
    return inOrder([...small, ...huge]);
  },
  "herd-long-answers": (seed) => {
    const draws = drawsOf(seed);
    return steady(draws, longAnswersPerSecond, () =>
      promptOf(draws, [], 2 * draws.random() * longPromptMeanTokens, longAnswerTokens),
    );
  },
} as const satisfies Record<string, (seed: number) => TraceRequest[]>;

export type AdversarialTrace = keyof typeof adversarialTraces;

export function isAdversarial(name: string): name is AdversarialTrace {
  return Object.hasOwn(adversarialTraces, name);
}

/** Requests of `prompt` at times without memory. */
function steady(draws: Draws, perSecond: number, prompt: () => Prompt): TraceRequest[] {
  const requests: TraceRequest[] = [];
  const gapMs = 1000 / perSecond;
  for (let atMs = exponential(draws, gapMs); atMs < durationMs; atMs += exponential(draws, gapMs)) {
    requests.push(at(atMs, prompt()));
  }
  return requests;
}

/** `prefix` in whole blocks and `own` tokens, at least one, behind it. */
function promptOf(
  { fresh }: Draws,
  prefix: readonly number[],
  own: number,
  outputTokens: number,
): Prompt {
  const ownTokens = Math.max(1, Math.floor(own));
  return {
    inputTokens: prefix.length * traceBlockTokens + ownTokens,
    outputTokens,
    hashIds: [...prefix, ...fresh(Math.ceil(ownTokens / traceBlockTokens))],
  };
}

function at(atMs: number, prompt: Prompt): TraceRequest {
  return { arrivalMs: Math.floor(atMs), ...prompt };
}

function inOrder(requests: TraceRequest[]): TraceRequest[] {
  return requests.sort((one, other) => one.arrivalMs - other.arrivalMs);
}

function drawsOf(seed: number): Draws {
  let next = 0;
  const fresh = (count: number): number[] => Array.from({ length: count }, () => next++);
  return { random: mulberry32(seed), fresh };
}

function exponential({ random }: Draws, mean: number): number {
  return -mean * Math.log(1 - random());
}
