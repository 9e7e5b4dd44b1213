import fc from "fast-check";
import { expect, it } from "vitest";
import type { EngineKvEvent } from "../../src/worker/engine.ts";
import { MockEngineCore } from "../../src/worker/mock-engine.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";
import type { MockRequest } from "../../src/worker/mock-request.ts";

/** Block `block` of prompt family `family`: equal families share all blocks. */
function familyLanes(family: number, blocks: number): Uint32Array {
  return Uint32Array.from({ length: 2 * blocks }, (_, i) => (i % 2 === 0 ? i >> 1 : family + 1));
}

function newCore(options: Readonly<Record<string, unknown>>): MockEngineCore {
  return new MockEngineCore(readMockEngineConfig({ watermark: 0, ...options }), {
    hashBlock: (request, block, into) =>
      into.set([request.key, block, block, 0x80000000 + request.key]),
    stops: () => false,
  });
}

interface Wanted {
  readonly key: number;
  readonly prompt: number;
  readonly output: number;
  readonly family?: number | undefined;
  readonly prefillOnly?: boolean;
  readonly transferred?: boolean;
}

function submit(core: MockEngineCore, wanted: Wanted): MockRequest | string {
  const blocks = Math.floor(wanted.prompt / core.config.blockSize);
  const lanes = familyLanes(wanted.family ?? 1000 + wanted.key, blocks);
  return core.submit({
    key: wanted.key,
    arrivedAtMs: 0,
    promptTokens: wanted.prompt,
    maxOutputTokens: wanted.output,
    sequenceHashes: lanes,
    localHashes: lanes,
    prefillOnly: wanted.prefillOnly ?? false,
    transferred: wanted.transferred ?? false,
  });
}

/** An index that knows nothing but the events. */
class EventIndex {
  readonly hashes = new Set<string>();
  stored = 0;
  removed = 0;

  apply(events: readonly EngineKvEvent[]): void {
    for (const event of events) {
      if (event.type === "cleared") this.hashes.clear();
      else this.#applyLanes(event.type, event.sequenceHashes);
      if (event.type === "stored" && event.parent) {
        expect(this.hashes).toContain(`${event.parent[0]}:${event.parent[1]}`);
      }
    }
  }

  #applyLanes(type: "stored" | "removed", lanes: Uint32Array): void {
    for (let i = 0; i < lanes.length; i += 2) {
      const hash = `${lanes[i]}:${lanes[i + 1]}`;
      // A hash is stored only when absent and removed only when present.
      expect(this.hashes.has(hash)).toBe(type === "removed");
      if (type === "stored") this.hashes.add(hash);
      else this.hashes.delete(hash);
      if (type === "stored") this.stored++;
      else this.removed++;
    }
  }
}

function checkInvariants(core: MockEngineCore, requests: Iterable<MockRequest>, index: EventIndex) {
  const { pool, config } = core;
  const held = new Map<number, number>();
  let running = 0;
  let waiting = 0;
  for (const request of requests) {
    if (request.state === "running") running++;
    if (request.state === "waiting") waiting++;
    expect(request.computed).toBeLessThanOrEqual(request.length);
    if (request.state === "waiting" || request.state === "ended") {
      expect(request.blocks).toHaveLength(0);
    } else {
      const needed = Math.ceil(request.computed / config.blockSize);
      expect(request.blocks.length).toBeGreaterThanOrEqual(needed);
    }
    for (const slot of request.blocks) held.set(slot, (held.get(slot) ?? 0) + 1);
  }
  expect(core.running).toHaveLength(running);
  expect(core.waiting.count).toBe(waiting);
  expect(pool.active).toBe(held.size);
  for (const [slot, refs] of held) expect(pool.refsOf(slot)).toBe(refs);
  const inactive = [...pool.inactiveSlots()];
  expect(new Set(inactive).size).toBe(pool.inactive);
  for (const slot of inactive) expect(pool.refsOf(slot)).toBe(0);
  expect(pool.active + pool.inactive).toBeLessThanOrEqual(pool.capacity);
  const resident = new Set<string>();
  for (const [slot, lo, hi] of pool.cachedSlots()) {
    resident.add(`${lo}:${hi}`);
    expect(pool.find(lo, hi)).toBeGreaterThanOrEqual(0);
    expect(pool.refsOf(slot) > 0 || inactive.includes(slot)).toBe(true);
  }
  expect(index.hashes).toEqual(resident);
}

/** Runs passes until nothing is left; every pass must be followed by progress. */
function drain(core: MockEngineCore, index: EventIndex, onToken: (request: MockRequest) => void) {
  let silentPasses = 0;
  for (let pass = core.startPass(0); pass; pass = core.startPass(0)) {
    index.apply(pass.events);
    const emitted = core.endPass();
    for (const request of emitted) {
      onToken(request);
      if (request.state === "held") core.releaseHeld(request);
    }
    silentPasses = emitted.length > 0 ? 0 : silentPasses + 1;
    expect(silentPasses).toBeLessThan(500);
  }
}

const bool = fc.boolean();
const action = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      type: fc.constant("submit" as const),
      prompt: fc.integer({ min: 1, max: 70 }),
      output: fc.integer({ min: 1, max: 20 }),
      family: fc.option(fc.integer({ min: 0, max: 2 }), { nil: undefined }),
      leg: fc.constantFrom("whole", "prefill", "decode"),
    }),
  },
  { weight: 6, arbitrary: fc.record({ type: fc.constant("pass" as const) }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant("cancel" as const), which: fc.nat() }) },
);

it("keeps its invariants and makes progress under any order of submit, cancel and pass", () => {
  const options = fc.record({
    num_gpu_blocks: fc.integer({ min: 4, max: 30 }),
    block_size: fc.constantFrom(1, 4, 5),
    max_num_seqs: fc.constantFrom(1, 3, null),
    max_num_batched_tokens: fc.constantFrom(8, 64, null),
    enable_prefix_caching: bool,
    enable_chunked_prefill: bool,
    preemption_mode: fc.constantFrom("lifo", "fifo"),
    cache_output_blocks: bool,
    engine_type: fc.constantFrom("vllm", "trtllm"),
    watermark: fc.constantFrom(0, 0.2),
  });
  fc.assert(
    fc.property(options, fc.array(action, { maxLength: 60 }), (config, actions) => {
      const core = newCore(config);
      const index = new EventIndex();
      const requests: MockRequest[] = [];
      let inPass = false;
      for (const step of actions) {
        if (step.type === "submit") {
          const legs = { prefillOnly: step.leg === "prefill", transferred: step.leg === "decode" };
          const request = submit(core, { ...step, ...legs, key: requests.length });
          if (typeof request !== "string") requests.push(request);
        } else if (step.type === "cancel") {
          const request = requests[step.which % Math.max(1, requests.length)];
          if (request) core.cancel(request);
        } else if (inPass) {
          core.endPass();
          inPass = false;
        } else {
          const pass = core.startPass(0);
          if (pass) index.apply(pass.events);
          inPass = pass !== undefined;
        }
        checkInvariants(core, requests, index);
      }
      if (inPass) core.endPass();
      for (const request of requests) core.releaseHeld(request);
      drain(core, index, () => {});
      checkInvariants(core, requests, index);
      expect(core.load(0)).toMatchObject({ running: 0, waiting: 0, activeBlocks: 0 });
      expect(index.stored - index.removed).toBe(index.hashes.size);
      for (const request of requests) {
        if (request.cancelled) continue;
        expect(request).toMatchObject({ state: "ended", generated: request.maxOutputTokens });
      }
      if (config.engine_type === "trtllm") expect(core.load(0).preemptionsTotal).toBe(0);
    }),
    { numRuns: 300 },
  );
});

const onOff = [true, false];
const combinations = onOff.flatMap((caching) =>
  onOff.flatMap((chunking) => onOff.map((shared) => ({ caching, chunking, shared }))),
);

it.each(combinations)(
  "loses no token on a small pool (caching $caching, chunking $chunking, shared prefix $shared)",
  ({ caching, chunking, shared }) => {
    const core = newCore({
      num_gpu_blocks: 500,
      enable_prefix_caching: caching,
      enable_chunked_prefill: chunking,
    });
    for (let key = 0; key < 200; key++) {
      submit(core, { key, prompt: 1000, output: 100, ...(shared ? { family: 1 } : {}) });
    }
    const tokens = new Map<number, number>();
    drain(core, new EventIndex(), ({ key, generated }) => {
      expect(generated).toBe((tokens.get(key) ?? 0) + 1);
      tokens.set(key, generated);
    });
    expect([...tokens.values()].reduce((sum, count) => sum + count, 0)).toBe(20_000);
  },
);

it("reports 64 cached tokens for nine of ten identical 65-token requests", () => {
  const core = newCore({});
  const cached: number[] = [];
  const index = new EventIndex();
  for (let key = 0; key < 10; key++) {
    const request = submit(core, { key, prompt: 65, output: 1, family: 0 }) as MockRequest;
    drain(core, index, () => {});
    cached.push(request.cachedTokens);
  }
  expect(cached).toEqual([0, ...Array.from({ length: 9 }, () => 64)]);
  expect(core.load(0).hitRatio).toBeCloseTo((9 * 64) / 65 / 10, 12);
});

it("refuses what can never run and clamps what would outgrow the pool", () => {
  const core = newCore({ num_gpu_blocks: 4, block_size: 4, max_waiting_seqs: 2 });
  expect(submit(core, { key: 0, prompt: 0, output: 1 })).toBe("empty_prompt");
  expect(submit(core, { key: 0, prompt: 17, output: 1 })).toBe("prompt_too_long");
  expect(submit(core, { key: 0, prompt: 16, output: 9, transferred: true })).toBe(
    "nothing_to_decode",
  );
  expect(submit(core, { key: 0, prompt: 14, output: 9 })).toMatchObject({ maxOutputTokens: 2 });
  expect(submit(core, { key: 1, prompt: 16, output: 9 })).toMatchObject({ maxOutputTokens: 1 });
  expect(submit(core, { key: 2, prompt: 1, output: 1 })).toBe("queue_full");
  const unchunked = newCore({ max_num_batched_tokens: 8, enable_chunked_prefill: false });
  expect(submit(unchunked, { key: 0, prompt: 9, output: 1 })).toBe("prompt_too_long");
  const short = newCore({ max_model_len: 10 });
  expect(submit(short, { key: 0, prompt: 10, output: 1 })).toBe("prompt_too_long");
  expect(submit(short, { key: 1, prompt: 9, output: 5 })).toMatchObject({ maxOutputTokens: 1 });
});

it("gives the tokens of a preempted request back to the budget of the pass", () => {
  const core = newCore({
    num_gpu_blocks: 4,
    block_size: 4,
    max_num_batched_tokens: 3,
    preemption_mode: "fifo",
    enable_prefix_caching: false,
  });
  const [first, second, third] = [1, 1, 8].map(
    (prompt, key) => submit(core, { key, prompt, output: 20 }) as MockRequest,
  );
  for (let pass = 1; pass <= 4; pass++) {
    core.startPass(0);
    core.endPass();
  }
  expect([first, second, third].map((request) => request?.computed)).toEqual([4, 4, 4]);
  // The first takes the last free block; the second preempts it, and the third gets its token.
  expect(core.startPass(0)?.preempted).toEqual([first]);
  expect([first, second, third].map((request) => request?.computed)).toEqual([0, 5, 6]);
});

it("holds a prefill leg's blocks until they are released", () => {
  const core = newCore({ worker_type: "prefill" });
  const request = submit(core, { key: 0, prompt: 130, output: 9, prefillOnly: true });
  core.startPass(0);
  expect(core.endPass()).toEqual([request]);
  expect(request).toMatchObject({ state: "held", generated: 1 });
  expect(core.load(0)).toMatchObject({ running: 0, activeBlocks: 3 });
  core.releaseHeld(request as MockRequest);
  expect(core.load(0).activeBlocks).toBe(0);
});

it("clears the cache only while no block is in use", () => {
  const core = newCore({});
  submit(core, { key: 0, prompt: 200, output: 2 });
  core.startPass(0);
  expect(core.clearCache()).toBeUndefined();
  core.endPass();
  drain(core, new EventIndex(), () => {});
  expect(core.pool.inactive).toBe(3);
  expect(core.clearCache()).toEqual({ type: "cleared" });
  expect(core.pool.inactive).toBe(0);
});
