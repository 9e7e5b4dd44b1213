/**
 * Traces from a seed, without data: agent requests that share a few long prompts, and multi-turn
 * conversations that share one system prompt. Every draw has its place in the order, so that one
 * seed gives the same file on every machine.
 */
import { mulberry32, type Random, randomInt } from "../base/random.ts";
import { type TraceRequest, traceBlockTokens } from "./mooncake-trace.ts";

export interface SynthesisOptions {
  readonly seed: number;
  readonly requests: number;
  readonly durationMs: number;
  /** Distinct agent prompts, chosen with weights `1 / (rank + 1) ^ zipf`. */
  readonly agents: number;
  readonly zipf: number;
  /** Length of an agent's prompt in blocks of 512 tokens. */
  readonly agentBlocksMin: number;
  readonly agentBlocksMax: number;
  /** Share of the requests that are agent requests; the rest are conversation turns. */
  readonly agentShare: number;
  /** Mean of what an agent request adds to its prompt. */
  readonly userMeanTokens: number;
  /** Share of the agent requests that answer with 3 tokens. */
  readonly shortOutShare: number;
  readonly sessionTurns: number;
  readonly sessionGapMs: number;
  /** Log-normal lengths of the first and the later turns. */
  readonly firstMu: number;
  readonly firstSigma: number;
  readonly turnMu: number;
  readonly turnSigma: number;
  readonly outMedian: number;
  readonly outSigma: number;
  readonly maxIsl: number;
  /** Rounds arrivals down to multiples; 1 when left out. */
  readonly batchMs?: number;
}

const toolagent: SynthesisOptions = {
  seed: 42,
  requests: 24_000,
  durationMs: 3_600_000,
  agents: 24,
  zipf: 1.2,
  agentBlocksMin: 3,
  agentBlocksMax: 16,
  agentShare: 0.5,
  userMeanTokens: 900,
  shortOutShare: 0.35,
  sessionTurns: 1.6,
  sessionGapMs: 180_000,
  firstMu: 8.5,
  firstSigma: 1.1,
  turnMu: 7.3,
  turnSigma: 1.2,
  outMedian: 260,
  outSigma: 0.7,
  maxIsl: 126_976,
};

export const synthesisPresets = {
  toolagent,
  "toolagent-ci": { ...toolagent, requests: 6_000, durationMs: 900_000 },
  /** Small enough for a demo: five conversations a second, prompts up to 16 k tokens. */
  demo: {
    ...toolagent,
    requests: 300,
    durationMs: 20_000,
    agents: 4,
    agentBlocksMin: 2,
    agentBlocksMax: 12,
    agentShare: 0.4,
    userMeanTokens: 400,
    sessionTurns: 3,
    sessionGapMs: 4_000,
    firstMu: 7.4,
    firstSigma: 0.9,
    turnMu: 5.8,
    turnSigma: 0.8,
    outMedian: 80,
    outSigma: 0.6,
    maxIsl: 16_384,
  },
} as const satisfies Record<string, SynthesisOptions>;

export type SynthesisPreset = keyof typeof synthesisPresets;

interface Draft {
  readonly atMs: number;
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly ids: readonly number[];
}

interface Draws {
  readonly random: Random;
  /** Hands out ids from 1 upwards. */
  readonly fresh: () => number;
}

/** Makes a trace; the same options give the same trace. */
export function synthesizeTrace(options: SynthesisOptions): TraceRequest[] {
  let lastId = 0;
  const draws = { random: mulberry32(options.seed), fresh: () => ++lastId };
  const drafts = agentRequests(options, draws);
  const systemPrompt = draws.fresh();
  while (drafts.length < options.requests) addSession(options, draws, systemPrompt, drafts);
  drafts.sort((a, b) => a.atMs - b.atMs);
  return renumbered(drafts, options.batchMs ?? 1);
}

function agentRequests(options: SynthesisOptions, draws: Draws): Draft[] {
  const { random } = draws;
  const prompts = Array.from({ length: options.agents }, () =>
    freshIds(draws, randomInt(random, options.agentBlocksMin, options.agentBlocksMax)),
  );
  const weights = prompts.map((_, rank) => 1 / (rank + 1) ** options.zipf);
  const count = Math.floor(options.requests * options.agentShare + 0.5);
  const drafts: Draft[] = [];
  while (drafts.length < count) {
    const atMs = random() * options.durationMs;
    const prompt = prompts[weighted(random, weights)] ?? [];
    const extra = 1 + Math.floor(exponential(random, options.userMeanTokens));
    const inputTokens = Math.min(options.maxIsl, prompt.length * traceBlockTokens + extra);
    const blocks = Math.ceil(inputTokens / traceBlockTokens);
    const ids = [...prompt.slice(0, blocks), ...freshIds(draws, blocks - prompt.length)];
    const outputTokens = random() < options.shortOutShare ? 3 : randomInt(random, 20, 79);
    drafts.push({ atMs, inputTokens, outputTokens, ids });
  }
  return drafts;
}

/** Adds one conversation; each turn continues the one before it, with its output in the prompt. */
function addSession(
  options: SynthesisOptions,
  draws: Draws,
  systemPrompt: number,
  drafts: Draft[],
): void {
  const { random } = draws;
  const { maxIsl } = options;
  let atMs = random() * options.durationMs;
  let turns = 1;
  while (random() < 1 - 1 / options.sessionTurns) turns += 1;
  let history = [systemPrompt];
  let contextTokens = traceBlockTokens;
  for (let turn = 0; turn < turns && drafts.length < options.requests; turn++) {
    const mu = turn === 0 ? options.firstMu : options.turnMu;
    const sigma = turn === 0 ? options.firstSigma : options.turnSigma;
    const added = Math.max(16, logNormal(random, mu, sigma));
    const inputTokens = clamp(Math.floor(contextTokens + added), 1, maxIsl);
    const fullBlocks = Math.floor(inputTokens / traceBlockTokens);
    const blocks = Math.ceil(inputTokens / traceBlockTokens);
    const reused = history.slice(0, blocks);
    history = [...reused, ...freshIds(draws, fullBlocks - reused.length)];
    const partial = freshIds(draws, blocks - history.length);
    const drawn = logNormal(random, Math.log(options.outMedian), options.outSigma);
    const outputTokens = clamp(Math.floor(drawn + 0.5), 1, 2000);
    drafts.push({ atMs, inputTokens, outputTokens, ids: [...history, ...partial] });
    if (inputTokens === maxIsl) return;
    contextTokens = Math.min(maxIsl, inputTokens + outputTokens);
    atMs += exponential(random, options.sessionGapMs);
    if (atMs >= options.durationMs) return;
  }
}

/** Rounds the arrivals and numbers the ids from 0 in the order of their first appearance. */
function renumbered(drafts: readonly Draft[], batchMs: number): TraceRequest[] {
  const numbers = new Map<number, number>();
  return drafts.map(({ atMs, inputTokens, outputTokens, ids }) => ({
    arrivalMs: Math.floor(atMs / batchMs) * batchMs,
    inputTokens,
    outputTokens,
    hashIds: ids.map((id) => {
      const number = numbers.get(id) ?? numbers.size;
      numbers.set(id, number);
      return number;
    }),
  }));
}

function freshIds({ fresh }: Draws, count: number): number[] {
  return Array.from({ length: Math.max(0, count) }, fresh);
}

function weighted(random: Random, weights: readonly number[]): number {
  let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
  for (let choice = 0; choice < weights.length - 1; choice++) {
    left -= weights[choice] ?? 0;
    if (left <= 0) return choice;
  }
  return weights.length - 1;
}

function exponential(random: Random, mean: number): number {
  return -mean * Math.log(1 - random());
}

function logNormal(random: Random, mu: number, sigma: number): number {
  const u = 1 - random();
  const v = random();
  return Math.exp(mu + sigma * Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * v));
}

function clamp(value: number, min: number, max: number): number {
  return Math.min(Math.max(value, min), max);
}
