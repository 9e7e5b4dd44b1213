/**
 * Request traces in the CSV form of Azure's LLM inference traces: arrival and lengths, no content.
 *
 *   TIMESTAMP,ContextTokens,GeneratedTokens
 *   2023-11-16 18:17:03.9799600,4808,10
 *
 * Prompts get ids of their own; `withSharedPrefixes` gives some of them a beginning in common.
 */
import { TiergridError } from "../base/errors.ts";
import { type Random, randomInt } from "../base/random.ts";
import {
  type TraceRequest,
  traceBlockTokens,
  traceInputTokensMax,
  traceRequestsMax,
} from "./mooncake-trace.ts";

const header = "TIMESTAMP,ContextTokens,GeneratedTokens";
const problemsMax = 20;
const rowForm = /^(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?,(\d+),(\d+)$/;

/**
 * Parses a whole file, arrivals in ms from the first row's (UTC); throws `config_invalid` naming the
 * first lines that are wrong.
 */
export function parseAzureTrace(text: string): TraceRequest[] {
  const problems: string[] = [];
  const requests: TraceRequest[] = [];
  let startMs: number | undefined;
  let nextId = 0;
  const lines = text.split(/\r?\n/);
  if (lines[0] !== header) problems.push(`line 1: expected ${header}`);
  for (let at = 1; at < lines.length && problems.length < problemsMax; at++) {
    const line = lines[at] ?? "";
    if (line === "") continue;
    const row = readRow(line);
    if (requests.length >= traceRequestsMax) {
      problems.push(`line ${at + 1}: more than ${traceRequestsMax} requests`);
      break;
    }
    if (!row) {
      const expected = "expected a timestamp and two counts, the first at least 1";
      problems.push(`line ${at + 1}: ${expected}, got ${JSON.stringify(line.slice(0, 80))}`);
      continue;
    }
    startMs ??= row.atMs;
    const { inputTokens } = row;
    const blocks = Math.ceil(inputTokens / traceBlockTokens);
    const hashIds = Array.from({ length: blocks }, (_, block) => nextId + block);
    nextId += blocks;
    const outputTokens = Math.max(1, row.outputTokens);
    requests.push({ arrivalMs: row.atMs - startMs, inputTokens, outputTokens, hashIds });
  }
  if (problems.length > 0) {
    throw new TiergridError("config_invalid", problems.join("\n"), { problems });
  }
  return requests.sort((a, b) => a.arrivalMs - b.arrivalMs);
}

function readRow(
  line: string,
): { atMs: number; inputTokens: number; outputTokens: number } | undefined {
  const match = rowForm.exec(line);
  if (!match) return undefined;
  const [year, month, day, hour, minute, second] = match.slice(1, 7).map(Number);
  const seconds = Date.UTC(year ?? 0, (month ?? 1) - 1, day, hour, minute, second);
  const inputTokens = Number(match[8]);
  const outputTokens = Number(match[9]);
  if (inputTokens < 1 || inputTokens > traceInputTokensMax) return undefined;
  if (!Number.isFinite(seconds) || !Number.isSafeInteger(outputTokens)) return undefined;
  return { atMs: seconds + Number(`0.${match[7] ?? "0"}`) * 1000, inputTokens, outputTokens };
}

export interface PrefixOptions {
  /** Share of the requests that begin with one of the prompts. */
  readonly share: number;
  /** Different prompts, chosen with weights `1 / (rank + 1) ^ zipf`. */
  readonly prompts: number;
  readonly zipf: number;
  /** Their lengths in blocks of 512 tokens. */
  readonly blocksMin: number;
  readonly blocksMax: number;
}

export const prefixDefaults: PrefixOptions = {
  share: 0.5,
  prompts: 24,
  zipf: 1.2,
  blocksMin: 1,
  blocksMax: 6,
};

/**
 * Lets a share of the requests begin with a prompt of a few; lengths and arrivals stay. A request
 * shorter than the prompt begins with a part of it, and its last, partial block stays its own.
 */
export function withSharedPrefixes(
  requests: readonly TraceRequest[],
  options: PrefixOptions,
  random: Random,
): TraceRequest[] {
  let nextId = requests.reduce((next, { hashIds }) => Math.max(next, (hashIds.at(-1) ?? 0) + 1), 0);
  const prompts = Array.from({ length: options.prompts }, () => {
    const blocks = randomInt(random, options.blocksMin, options.blocksMax);
    return Array.from({ length: blocks }, () => nextId++);
  });
  const weights = prompts.map((_, rank) => 1 / (rank + 1) ** options.zipf);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return requests.map((request) => {
    if (random() >= options.share) return request;
    let left = random() * total;
    const drawn = weights.findIndex((weight) => {
      left -= weight;
      return left < 0;
    });
    const fullBlocks = Math.floor(request.inputTokens / traceBlockTokens);
    const prefix = (prompts.at(drawn) ?? []).slice(0, fullBlocks);
    return { ...request, hashIds: [...prefix, ...request.hashIds.slice(prefix.length)] };
  });
}
