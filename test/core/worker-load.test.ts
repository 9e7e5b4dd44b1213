import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32 } from "../../src/base/random.ts";
import {
  type Booking,
  defaultLoadLimits,
  outputBlocksCrossed,
  outputFraction,
  WorkerLoad,
} from "../../src/core/worker-load.ts";
import golden from "../golden/active-sequences.json" with { type: "json" };

interface Step {
  readonly at_secs: number;
  readonly op: string;
  readonly request_id?: string;
  readonly sequence?: readonly string[] | null;
  readonly effective_prefill_tokens?: number;
  readonly track_prefill_tokens?: boolean;
  readonly expected_prefill_secs?: number;
  readonly fraction?: number | null;
  readonly query_sequence?: readonly string[];
  readonly isl_tokens?: number;
  readonly cached_tokens?: number;
  readonly expected?: Readonly<Record<string, number>>;
  readonly expected_result?: string;
  readonly expected_active_blocks?: number;
  readonly expected_active_prefill_tokens?: number;
  readonly expected_expired?: readonly string[];
}

function lanes(hashes: readonly string[]): Uint32Array {
  const pairs = hashes.map(BigInt).flatMap((hash) => [hash & 0xffffffffn, hash >> 32n]);
  return Uint32Array.from(pairs, Number);
}

function booking(key: string, slot: number, hashes: readonly string[], nowMs = 0): Booking {
  const rest = { privateBlocks: 0, prefillTokens: 0, expectedPrefillMs: 0 };
  return { key, slot, nowMs, sequence: lanes(hashes), ...rest };
}

function oneHolder(): WorkerLoad {
  const load = new WorkerLoad(mulberry32(1));
  load.addHolder(0);
  return load;
}

function apply(load: WorkerLoad, step: Step): string {
  const key = step.request_id ?? "";
  const nowMs = step.at_secs * 1000;
  switch (step.op) {
    case "add":
      return load.add({
        ...booking(key, 0, step.sequence ?? [], nowMs),
        prefillTokens:
          step.track_prefill_tokens === false ? 0 : (step.effective_prefill_tokens ?? 0),
        expectedPrefillMs: (step.expected_prefill_secs ?? 0) * 1000,
      });
    case "mark_prefill_completed":
      return load.markPrefillCompleted(key, nowMs);
    case "add_output_block":
      return load.addOutputBlocks(key, 1, step.fraction ?? undefined, nowMs);
    case "free":
      return load.free(key, nowMs);
    case "activity":
      return load.touch(key, nowMs);
    default:
      return "ok";
  }
}

function expectPotentialLoad(load: WorkerLoad, step: Step): void {
  const query = lanes(step.query_sequence ?? []);
  const shared = new Int32Array(64);
  load.sharedPrefix(query, shared);
  const own = Math.max((step.isl_tokens ?? 0) - (step.cached_tokens ?? 0), 0);
  const tracked = step.track_prefill_tokens !== false;
  expect({
    potential_decode_blocks: load.activeBlocks[0]! + query.length / 2 - shared[0]!,
    potential_prefill_tokens: tracked ? load.prefillTokensAt(step.at_secs * 1000)[0]! + own : 0,
  }).toEqual(step.expected);
}

for (const scenario of golden.scenarios) {
  it(`books as the vectors say: ${scenario.name}`, () => {
    const load = oneHolder();
    for (const step of scenario.steps as readonly Step[]) {
      if (step.op === "potential_load") {
        expectPotentialLoad(load, step);
        continue;
      }
      const outcome = apply(load, step);
      if (step.expected_result) expect(outcome).toBe(step.expected_result);
      expect(load.activeBlocks[0]).toBe(step.expected_active_blocks);
      expect(load.prefillTokensAt(step.at_secs * 1000)[0]).toBe(
        step.expected_active_prefill_tokens,
      );
    }
  });
}

it("adds an output block per crossed boundary with the fraction still to come", () => {
  for (const growth of golden.output_growth.cases) {
    let generated = 0;
    for (const item of growth.items) {
      generated += item.new_tokens;
      const { isl_tokens: isl, block_size: blockSize, expected_output_tokens: osl } = growth;
      const crossed = outputBlocksCrossed(isl, generated, item.new_tokens, blockSize);
      expect(crossed).toBe(item.expected_blocks_added);
      const fraction = crossed > 0 && osl !== null ? outputFraction(generated, osl) : null;
      expect(fraction).toBe(item.expected_fraction);
    }
  }
});

it("frees requests that were idle for longer than the stale time", () => {
  const load = oneHolder();
  for (const step of golden.expiry.steps as readonly Step[]) {
    if (step.op === "activity") {
      apply(load, step);
      continue;
    }
    const expired = load.expireStale(step.at_secs * 1000);
    if (step.expected_expired) expect(expired).toEqual(step.expected_expired);
    if (step.op === "add") apply(load, step);
  }
});

it("tells when prefill tokens leave a slot, by whatever way", () => {
  const load = oneHolder();
  let reliefs = 0;
  load.onRelief = () => {
    reliefs++;
    // Whoever is told sees the load without them.
    expect(load.prefillTokensAt(0)[0]).toBe(10 * (4 - reliefs));
  };
  for (const key of ["a", "b", "c", "d"]) load.add({ ...booking(key, 0, []), prefillTokens: 10 });
  load.add(booking("no prefill", 0, []));
  load.markPrefillCompleted("a", 1);
  load.markPrefillCompleted("a", 1);
  load.free("a", 2);
  load.free("b", 2);
  load.free("no prefill", 2);
  expect(reliefs).toBe(2);
  load.touch("c", 1);
  load.expireStale(300_001);
  expect(reliefs).toBe(3);
  load.removeHolder(0);
  expect(reliefs).toBe(4);
});

it("refuses an unknown holder and forgets the requests of a removed one", () => {
  const load = new WorkerLoad(mulberry32(2));
  load.addHolder(70);
  expect(load.add(booking("a", 3, ["1"]))).toBe("worker_not_found");
  expect(load.add(booking("a", 70, ["1"]))).toBe("ok");
  expect(load.slotOf("a")).toBe(70);
  expect(load.removeHolder(70)).toEqual(["a"]);
  expect(load.activeBlocks[70]).toBe(0);
  expect(load.sharedBlockCount).toBe(0);
  expect(load.free("a", 0)).toBe("request_not_found");
  expect(load.add(booking("a", 70, ["1"]))).toBe("worker_not_found");
});

it("takes requests and blocks up to their maximum and refuses one more", () => {
  const load = new WorkerLoad(mulberry32(3), {
    ...defaultLoadLimits,
    requestsMax: 2,
    blocksMax: 3,
  });
  load.addHolder(0);
  expect(load.add(booking("a", 0, ["1", "2", "3", "4"]))).toBe("capacity");
  expect(load.add(booking("a", 0, ["1", "2", "3"]))).toBe("ok");
  expect(load.add(booking("b", 0, []))).toBe("ok");
  expect(load.add(booking("c", 0, []))).toBe("capacity");
  expect(load.activeRequests[0]).toBe(2);
});

it("counts private blocks once per request and lets the fraction weigh them", () => {
  const load = oneHolder();
  load.add({ ...booking("a", 0, []), privateBlocks: 4 });
  load.add({ ...booking("b", 0, []), privateBlocks: 4 });
  expect(load.activeBlocks[0]).toBe(8);
  load.addOutputBlocks("a", 1, 0.5, 0);
  expect(load.activeBlocks[0]).toBe(7);
  load.free("a", 0);
  load.free("b", 0);
  expect(load.activeBlocks[0]).toBe(0);
});

/** The book as plain sets and lists, recounted from nothing at every read. */
class NaiveBook {
  readonly live: {
    key: string;
    slot: number;
    prompt: string[];
    outputs: number[];
    prefill: number;
    atMs: number;
  }[] = [];
  readonly weights = new Map<string, number>();

  free(key: string): void {
    const place = this.live.findIndex((request) => request.key === key);
    if (place >= 0) this.live.splice(place, 1);
    for (const name of this.weights.keys()) {
      if (this.users(name) === 0) this.weights.delete(name);
    }
  }

  users(name: string): number {
    const names = this.live.flatMap((one) => one.prompt.map((hash) => `${one.slot}/${hash}`));
    return names.filter((other) => other === name).length;
  }

  blocks(slot: number): number {
    let sum = 0;
    for (const [name, weight] of this.weights) if (name.startsWith(`${slot}/`)) sum += weight;
    for (const one of this.live) {
      if (one.slot === slot) sum += one.outputs.reduce((total, weight) => total + weight, 0);
    }
    return Math.floor(sum + 0.5);
  }

  shared(slot: number, query: readonly string[]): number {
    let length = 0;
    while (length < query.length && this.weights.has(`${slot}/${query[length]}`)) length++;
    return length;
  }
}

const holders = 3;
/** Nodes of a binary tree from the root, as chained hashes are. */
const prompt = fc
  .array(fc.integer({ min: 0, max: 1 }), { maxLength: 6 })
  .map((turns) => turns.map((_, at) => `1${turns.slice(0, at + 1).join("")}`));
const step = fc.record({
  op: fc.constantFrom("add", "add", "add", "mark", "output", "free", "remove"),
  key: fc.integer({ min: 0, max: 9 }).map(String),
  slot: fc.integer({ min: 0, max: holders - 1 }),
  prompt,
  tokens: fc.integer({ min: 0, max: 100 }),
  sixteenths: fc.option(fc.integer({ min: 0, max: 16 })),
});

it("agrees with a naive recount under random lifecycles", () => {
  const property = fc.property(fc.array(step, { maxLength: 60 }), prompt, (steps, query) => {
    const load = new WorkerLoad(mulberry32(4));
    for (let slot = 0; slot < holders; slot++) load.addHolder(slot);
    const naive = new NaiveBook();
    for (const { op, key, slot, prompt: hashes, tokens, sixteenths } of steps) {
      const one = naive.live.find((request) => request.key === key);
      if (op === "add") {
        const outcome = load.add({ ...booking(key, slot, hashes), prefillTokens: tokens });
        expect(outcome).toBe(one ? "duplicate_request" : "ok");
        if (one) continue;
        naive.live.push({ key, slot, prompt: hashes, outputs: [], prefill: tokens, atMs: 0 });
        for (const hash of hashes) {
          const name = `${slot}/${hash}`;
          if (!naive.weights.has(name)) naive.weights.set(name, 1);
        }
      } else if (op === "mark") {
        expect(load.markPrefillCompleted(key, 0)).toBe(one ? "ok" : "request_not_found");
        if (one) one.prefill = 0;
      } else if (op === "output") {
        const fraction = sixteenths === null ? undefined : sixteenths / 16;
        expect(load.addOutputBlocks(key, 1, fraction, 0)).toBe(one ? "ok" : "request_not_found");
        one?.outputs.push(1);
        if (!one || fraction === undefined) continue;
        one.outputs.fill(fraction);
        for (const hash of one.prompt) {
          const name = `${one.slot}/${hash}`;
          if (naive.users(name) === 1) naive.weights.set(name, fraction);
        }
      } else if (op === "free") {
        expect(load.free(key, 0)).toBe(one ? "ok" : "request_not_found");
        naive.free(key);
      } else {
        const keys = naive.live.filter((request) => request.slot === slot).map(({ key: k }) => k);
        expect(load.removeHolder(slot)).toEqual(keys);
        for (const gone of keys) naive.free(gone);
        load.addHolder(slot);
      }
      const shared = new Int32Array(64);
      load.sharedPrefix(lanes(query), shared);
      for (let at = 0; at < holders; at++) {
        const own = naive.live.filter((request) => request.slot === at);
        expect(load.activeBlocks[at]).toBe(naive.blocks(at));
        expect(load.activeRequests[at]).toBe(own.length);
        expect(load.prefillTokens[at]).toBe(own.reduce((sum, { prefill }) => sum + prefill, 0));
        expect(shared[at]).toBe(naive.shared(at, query));
      }
    }
    for (const { key } of [...naive.live]) load.free(key, 0);
    expect([load.requestCount, load.sharedBlockCount]).toEqual([0, 0]);
    expect([...load.activeBlocks.slice(0, holders)]).toEqual([0, 0, 0]);
  });
  fc.assert(property, { numRuns: 300 });
});
