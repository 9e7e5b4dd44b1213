import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import {
  formatMooncakeTrace,
  parseMooncakeTrace,
  type TraceRequest,
} from "../../src/sim/mooncake-trace.ts";
import { infiniteCacheHits, pooledLruHitRatio, prefixHits } from "../../src/sim/trace-stats.ts";
import {
  type SynthesisOptions,
  synthesisPresets,
  synthesizeTrace,
} from "../../src/sim/trace-synth.ts";
import { promptTokens, readTraceFile, spreadArrivals } from "../../src/sim/workload.ts";

interface Synthesized {
  readonly name: string;
  readonly params: SynthesisOptions & { readonly blockTokens: number };
  readonly rows: number;
  readonly bytes: number;
  readonly sha256_of_jsonl: string;
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly first_rows?: readonly object[];
  readonly all_rows?: readonly object[];
}
interface Stats {
  readonly records: number;
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly hash_id_count: number;
  readonly infinite_cache_hit_blocks: number;
  readonly infinite_cache_hit_tokens: number;
  readonly block_hit_ratio: number;
  readonly token_hit_ratio: number;
  readonly mean_request_hit_fraction: number;
  readonly pooled_lru_hit_blocks_by_capacity: Record<string, { hit_blocks: number; ratio: number }>;
}

const golden = <Content>(name: string) =>
  JSON.parse(readFileSync(new URL(`../golden/${name}.json`, import.meta.url), "utf8")) as Content;
const synth = golden<{ sets: Synthesized[] }>("trace-synth");
const stats = golden<{ traces: Record<string, Stats> }>("trace-stats").traces;

it.each(synth.sets)("generates the golden trace $name, byte for byte", (set) => {
  const requests = synthesizeTrace(set.params);
  const text = formatMooncakeTrace(requests);
  const rows = text.trimEnd().split("\n");
  const expected = set.first_rows ?? set.all_rows ?? [];
  expect(rows.slice(0, expected.length).map((row) => JSON.parse(row))).toEqual(expected);
  expect(requests).toHaveLength(set.rows);
  expect(text).toHaveLength(set.bytes);
  expect(sum(requests, "inputTokens")).toBe(set.input_tokens);
  expect(sum(requests, "outputTokens")).toBe(set.output_tokens);
  expect(createHash("sha256").update(text).digest("hex")).toBe(set.sha256_of_jsonl);
});

it("has the golden parameters as presets", () => {
  const [toolagent] = synth.sets;
  if (toolagent === undefined) throw new Error("no golden traces");
  const { blockTokens, ...params } = toolagent.params;
  expect(blockTokens).toBe(512);
  expect(synthesisPresets.toolagent).toEqual(params);
  expect(synthesisPresets["toolagent-ci"]).toEqual({
    ...params,
    requests: 6000,
    durationMs: 900_000,
  });
});

it.each(["toolagent", "toolagent-ci"] as const)("finds the golden cache bounds of %s", (preset) => {
  expectStats(synthesizeTrace(synthesisPresets[preset]), stats[`gen:${preset}`]);
});

const recorded = process.env["TIERGRID_TRACE"] ?? "traces/conversation_trace.jsonl";
it.runIf(existsSync(recorded))("finds the golden cache bounds of the recorded trace", async () => {
  expectStats(await readTraceFile(recorded), stats["conversation_trace.jsonl"]);
});

it("makes a demo trace with shared prefixes, several turns and both short and long prompts", () => {
  const requests = synthesizeTrace(synthesisPresets.demo);
  const hits = infiniteCacheHits(requests);
  expect(requests).toHaveLength(300);
  expect(requests.at(-1)?.arrivalMs).toBeLessThan(20_000);
  expect(hits.blockHitRatio).toBeGreaterThan(0.3);
  expect(requests.filter(({ inputTokens }) => inputTokens > 4096).length).toBeGreaterThan(30);
  expect(requests.filter(({ inputTokens }) => inputTokens < 2048).length).toBeGreaterThan(30);
});

it("reads back what it writes", () => {
  const requests = synthesizeTrace({ ...synthesisPresets["toolagent-ci"], requests: 50 });
  expect(parseMooncakeTrace(formatMooncakeTrace(requests))).toEqual(requests);
});

it("takes an output length of 0 as 1, created_time, blank lines and a missing last newline", () => {
  const text =
    '\n{"created_time":5,"input_length":513,"output_length":0,"hash_ids":[1,2],"session_id":"x"}';
  expect(parseMooncakeTrace(text)).toEqual([
    { arrivalMs: 5, inputTokens: 513, outputTokens: 1, hashIds: [1, 2], sessionId: "x" },
  ]);
});

it("names the line, the field, what was expected and what came", () => {
  const line = (fields: object) =>
    JSON.stringify({ timestamp: 0, input_length: 1, output_length: 1, hash_ids: [0], ...fields });
  const text = [
    line({}),
    "nonsense",
    line({ timestamp: -1 }),
    line({ input_length: 1.5 }),
    line({ output_length: "x" }),
    line({ hash_ids: [0, -1] }),
    line({ input_length: 1025 }),
  ].join("\n");
  expect(() => parseMooncakeTrace(text)).toThrow(
    [
      'line 2: expected a JSON object, got "nonsense"',
      "line 3: timestamp: expected milliseconds, at least 0, got -1",
      "line 4: input_length: expected an integer from 1 to 4194304, got 1.5",
      'line 5: output_length: expected an integer, at least 0, got "x"',
      "line 6: hash_ids: expected integers, at least 0, got [0,-1]",
      "line 7: hash_ids: expected 3 ids (one per 512 of 1025 tokens), got 1",
    ].join("\n"),
  );
  expect(() => parseMooncakeTrace("x\n".repeat(500))).toThrow(/(?:line \d+: .*\n?){20}$/);
});

it("refuses a trace file that is not there", async () => {
  await expect(readTraceFile("/nonexistent.jsonl")).rejects.toMatchObject({
    code: "config_invalid",
  });
});

it("spreads batches by a seeded draw per request, sorts, then applies the speed", () => {
  const requests = [0, 0, 3000].map((arrivalMs, id): TraceRequest => {
    return { arrivalMs, inputTokens: 1, outputTokens: 1, hashIds: [id] };
  });
  const draws = mulberry32(7);
  const expected = requests
    .map(({ arrivalMs, hashIds }) => ({ at: (arrivalMs + draws() * 3000) / 2, id: hashIds[0] }))
    .sort((a, b) => a.at - b.at);
  const spread = spreadArrivals(requests, { spreadMs: 3000, speed: 2, random: mulberry32(7) });
  expect(spread.map(({ arrivalMs, hashIds }) => ({ at: arrivalMs, id: hashIds[0] }))).toEqual(
    expected,
  );
  const kept = spreadArrivals(requests, { spreadMs: 0, speed: 1, random: mulberry32(7) });
  expect(kept).toEqual(requests);
});

it("gives equal tokens to equal ids and follows the token rule", () => {
  const first = promptTokens({ arrivalMs: 0, inputTokens: 700, outputTokens: 1, hashIds: [3, 9] });
  const second = promptTokens({ arrivalMs: 0, inputTokens: 600, outputTokens: 1, hashIds: [3, 4] });
  expect(first).toHaveLength(700);
  expect(first.subarray(0, 512)).toEqual(second.subarray(0, 512));
  expect(first[512]).not.toBe(second[512]);
  expect(first[511]).toBe(mockToken(0, 3 * 512 + 511));
  expect(first[699]).toBe(mockToken(0, 9 * 512 + 187));
});

it("hits an LRU as a naive list of blocks does", () => {
  const rows = fc.array(fc.array(fc.nat(12), { minLength: 1, maxLength: 6 }), { maxLength: 40 });
  fc.assert(
    fc.property(rows, fc.nat(15), (ids, capacity) => {
      const requests = ids.map(
        (hashIds): TraceRequest => ({
          arrivalMs: 0,
          inputTokens: hashIds.length * 512,
          outputTokens: 1,
          hashIds,
        }),
      );
      expect(prefixHits(requests, capacity).hitBlocks).toBe(naiveHits(ids, capacity));
    }),
  );
});

/** Most recent first. */
function naiveHits(rows: readonly number[][], capacity: number): number {
  let recent: number[] = [];
  let hits = 0;
  for (const ids of rows) {
    for (const id of ids) {
      if (!recent.includes(id)) break;
      hits += 1;
    }
    const seen = [...new Set(ids)];
    recent = [...seen, ...recent.filter((id) => !seen.includes(id))].slice(0, capacity);
  }
  return hits;
}

function expectStats(requests: readonly TraceRequest[], expected: Stats | undefined): void {
  if (expected === undefined) throw new Error("no golden statistics");
  const hits = infiniteCacheHits(requests);
  expect(requests).toHaveLength(expected.records);
  expect(hits.tokens).toBe(expected.input_tokens);
  expect(sum(requests, "outputTokens")).toBe(expected.output_tokens);
  expect(hits.blocks).toBe(expected.hash_id_count);
  expect(hits.hitBlocks).toBe(expected.infinite_cache_hit_blocks);
  expect(hits.hitTokens).toBe(expected.infinite_cache_hit_tokens);
  expect(hits.blockHitRatio).toBeCloseTo(expected.block_hit_ratio, 4);
  expect(hits.tokenHitRatio).toBeCloseTo(expected.token_hit_ratio, 4);
  expect(hits.meanRequestHitRatio).toBeCloseTo(expected.mean_request_hit_fraction, 4);
  for (const [blocks, lru] of Object.entries(expected.pooled_lru_hit_blocks_by_capacity)) {
    expect(prefixHits(requests, Number(blocks)).hitBlocks).toBe(lru.hit_blocks);
    expect(pooledLruHitRatio(requests, Number(blocks) * 512)).toBeCloseTo(lru.ratio, 4);
  }
}

function sum(requests: readonly TraceRequest[], field: "inputTokens" | "outputTokens"): number {
  return requests.reduce((total, request) => total + request[field], 0);
}
