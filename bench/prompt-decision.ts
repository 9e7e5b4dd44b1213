/**
 * D1, D2: from a prompt to a booked worker. 64 workers that hold what earlier prompts left behind,
 * 256 live requests, prompts of 16,384 tokens of which the first half is common to all; half of the
 * prompts have been seen before.
 *
 *   D2   tokens ─▶ hashes ─▶ match ─▶ cost, choice, booking
 *   D1   the same, from the bytes of a request: a frame for ours, JSON for the baseline
 */
import type { Random } from "../src/base/random.ts";
import { mulberry32, randomInt } from "../src/base/random.ts";
import { type ChoiceTables, choiceTables } from "../src/core/choice.ts";
import { createKvIndex } from "../src/core/create-kv-index.ts";
import { chooseAndBook } from "../src/core/decision.ts";
import type { KvIndex } from "../src/core/kv-index.ts";
import { wasmIndexCore } from "../src/core/wasm-index.ts";
import type { CostWeights } from "../src/core/worker-cost.ts";
import { WorkerLoad } from "../src/core/worker-load.ts";
import { WorkerRoster } from "../src/core/worker-roster.ts";
import { type BlockHasher, createBlockHasher } from "../src/protocol/block-hashes.ts";
import { decodeDispatch, encodeDispatch } from "../src/protocol/request-frame.ts";
import { encodeDispatchJson } from "../src/protocol/request-json.ts";
import { attemptNumber, type TokenDispatch } from "../src/protocol/requests.ts";
import { NaiveRouter } from "./baselines/naive-router.ts";
import { benchCore } from "./bench-core.ts";
import { type BenchRow, quantile } from "./bench-row.ts";

const workers = 64;
const blockSize = 64;
const islTokens = 16_384;
const blocks = islTokens / blockSize;
/** As many as there are live requests. */
const prompts = 256;

interface Side {
  /** Chooses and books, from the tokens. */
  decide(prompt: Prompt, key: string): number;
  /** The same from bytes. */
  decideWire(prompt: Prompt, key: string): number;
  free(key: string): void;
}

interface Prompt {
  readonly tokens: Uint32Array;
  readonly numbers: readonly number[];
  readonly frame: Uint8Array;
  readonly json: Uint8Array;
}

export async function promptDecisionRows(
  options: { quick: boolean; seed: number },
  weights: CostWeights,
): Promise<BenchRow[]> {
  const random = mulberry32(options.seed);
  const core = await benchCore();
  const hasher = createBlockHasher(core);
  const made = Array.from({ length: prompts }, promptMaker(random));
  const index = createKvIndex({
    ...{ mode: "identity", random, chain: hasher.chain },
    core: core && wasmIndexCore(core),
  });
  const ours = oursSide({ hasher, index, weights, random }, made);
  const naive = naiveSide(made, random);
  const rounds = options.quick ? 3 : 12;
  return (["decide", "decideWire"] as const).flatMap((way) => {
    const times = timesOf([naive, ours], way, made, rounds);
    const id = way === "decide" ? "D2 tokens to booking" : "D1 bytes to booking";
    const target = (limitUs: number): string => (way === "decide" ? `<= ${limitUs} µs` : "report");
    return ([50, 99] as const).map((percent): BenchRow => {
      const [baseline = 0, mine = 0] = times.map((one) => quantile(one, percent / 100));
      return {
        id: `${id}, p${percent}`,
        unit: "µs",
        baseline,
        ours: mine,
        ratio: baseline / mine,
        target: target(percent === 50 ? 60 : 300),
        note: `${islTokens} tokens, block ${blockSize}, ${workers} workers`,
      };
    });
  });
}

/** D2 as one object. */
export function promptDecisionFigures(rows: readonly BenchRow[]): object {
  const us = (percent: number): number =>
    rows.find(({ id }) => id === `D2 tokens to booking, p${percent}`)?.ours ?? Number.NaN;
  const sizes = { workers, prompt_tokens: islTokens, block_size: blockSize };
  return { p50_us: us(50), p99_us: us(99), ...sizes };
}

/**
 * µs of each side's decisions but the first round's. Rounds alternate; every decision ends the
 * oldest request, untimed.
 */
function timesOf(
  sides: readonly Side[],
  way: "decide" | "decideWire",
  made: readonly Prompt[],
  rounds: number,
): number[][] {
  const times = sides.map((): number[] => []);
  for (let round = 0; round <= rounds; round++) {
    for (const [at, side] of sides.entries()) {
      for (const [which, prompt] of made.entries()) {
        const start = performance.now();
        const slot = side[way](prompt, `${round} ${which}`);
        const end = performance.now();
        if (Number.isNaN(slot)) throw new Error("a decision chose no worker");
        if (round > 0) times[at]?.push((end - start) * 1000);
        side.free(`${round - 1} ${which}`);
      }
    }
  }
  for (const side of sides) for (const which of made.keys()) side.free(`${rounds} ${which}`);
  return times;
}

function promptMaker(random: Random): () => Prompt {
  const common = Uint32Array.from({ length: islTokens / 2 }, () => randomInt(random, 0, 128_000));
  return () => {
    const tokens = Uint32Array.from({ length: islTokens }, () => randomInt(random, 0, 128_000));
    tokens.set(common);
    const dispatch = dispatchOf(tokens);
    const frame = encodeDispatch(dispatch);
    const json = encodeDispatchJson(dispatch);
    return { tokens, numbers: Array.from(tokens), frame, json };
  };
}

function dispatchOf(tokens: Uint32Array): TokenDispatch {
  return {
    envelope: {
      rid: "0123456789abcdef0123456789abcdef",
      attempt: attemptNumber({ call: 1, global: 0, local: 0 }),
      first: 0,
      phase: "aggregated",
      deadlineMs: 30_000,
      stream: { subject: "_R.fe.bench.s", format: "bundle", key: 1, acks: true },
      notify: [],
      avoid: [],
      decisions: [],
    },
    body: { model: "bench", stop_conditions: { max_tokens: 256 } },
    prompt: { type: "tokens", tokens },
  };
}

function oursSide(parts: Omit<Columns, "tables" | "depths">, made: readonly Prompt[]): Side {
  const { hasher, index, random } = parts;
  const tables = choiceTables(new WorkerRoster(), new WorkerLoad(random));
  for (let slot = 0; slot < workers; slot++) {
    index.holder(String(slot), 0);
    tables.roster.set(slot, { workerId: String(slot), taints: new Set() }, 0);
    tables.load.addHolder(slot);
    // Every worker has the common half; the first half of the prompts lies on one worker each.
    for (const [at, { tokens }] of made.entries()) {
      const isOwn = at < prompts / 2 && at % workers === slot;
      if (!isOwn && at !== 0) continue;
      const { local, sequence } = hasher.hashBlocks(tokens, blockSize);
      index.store(slot, undefined, interleaved(local, sequence, isOwn ? blocks : blocks / 2));
    }
  }
  const depths = new Int32Array(index.slots);
  const decide = (tokens: Uint32Array, key: string): number =>
    decideWithColumns({ ...parts, tables, depths }, tokens, key);
  return {
    decide: ({ tokens }, key) => decide(tokens, key),
    decideWire({ frame }, key) {
      const { prompt } = decodeDispatch({ payload: frame, reply: undefined }, random);
      if (prompt.type !== "tokens") throw new Error("expected tokens");
      return decide(prompt.tokens, key);
    },
    free: (key) => tables.load.free(key, 0),
  };
}

interface Columns {
  readonly hasher: BlockHasher;
  readonly index: KvIndex;
  readonly tables: ChoiceTables;
  readonly depths: Int32Array;
  readonly weights: CostWeights;
  readonly random: Random;
}

function decideWithColumns(columns: Columns, tokens: Uint32Array, key: string): number {
  const { hasher, index, tables, depths, weights, random } = columns;
  const hashes = hasher.hashBlocks(tokens, blockSize);
  index.match(hashes.sequence, hashes.blocks, depths);
  const choice = chooseAndBook(
    tables,
    {
      key,
      nowMs: 0,
      islTokens: tokens.length,
      sequence: hashes.sequence,
      privateBlocks: 0,
      overlap: { device: depths },
      constraints: {},
      settings: {
        blockSize,
        policy: "blocks",
        temperature: 0,
        trackPrefillTokens: true,
        decodeOnly: false,
        herdGuard: true,
        weights,
      },
    },
    random,
  );
  return choice.outcome === "chosen" ? choice.slot : Number.NaN;
}

function interleaved(local: Uint32Array, sequence: Uint32Array, count: number): Uint32Array {
  const lanes = new Uint32Array(4 * count);
  for (let block = 0; block < count; block++) {
    lanes.set(local.subarray(2 * block, 2 * block + 2), 4 * block);
    lanes.set(sequence.subarray(2 * block, 2 * block + 2), 4 * block + 2);
  }
  return lanes;
}

function naiveSide(made: readonly Prompt[], random: Random): Side {
  const router = new NaiveRouter(workers, blockSize, random);
  for (let slot = 0; slot < workers; slot++) {
    router.store(slot, made[0]!.tokens, blocks / 2);
    for (let at = slot; at < prompts / 2; at += workers) {
      router.store(slot, made[at]!.tokens, blocks);
    }
  }
  const decoder = new TextDecoder();
  return {
    decide: ({ numbers }, key) => router.decide(numbers, key),
    decideWire({ json }, key) {
      const { token_ids } = JSON.parse(decoder.decode(json)) as { token_ids: number[] };
      return router.decide(token_ids, key);
    },
    free: (key) => router.free(key),
  };
}
