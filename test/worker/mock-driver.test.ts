import { afterEach, expect, it } from "vitest";
import type { Clock } from "../../src/base/clock.ts";
import { ManualClock, realClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import type { EngineKvEvent, EngineRequest, EngineSink, StepEnd } from "../../src/worker/engine.ts";
import { MockDriver } from "../../src/worker/mock-driver.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";

const hasher = await loadBlockHasher();

/** Everything an engine said, with copies of what it may reuse. */
class Listener implements EngineSink {
  readonly tokens = new Map<number, number[]>();
  readonly indexes = new Map<number, number[]>();
  readonly cached = new Map<number, number>();
  readonly ends = new Map<number, StepEnd>();
  readonly events: EngineKvEvent[] = [];
  readonly log: string[] = [];
  readonly running: number[] = [];
  died: string | undefined;
  onEnd: () => void = () => {};

  onStep(step: Parameters<EngineSink["onStep"]>[0]): void {
    for (const { key, cachedTokens } of step.started) this.cached.set(key, cachedTokens);
    for (let i = 0; i < step.count; i++) {
      const key = step.keys[i]!;
      this.tokens.set(key, [...(this.tokens.get(key) ?? []), step.tokenIds[i]!]);
      this.indexes.set(key, [...(this.indexes.get(key) ?? []), step.indexes[i]!]);
      this.log.push(`token ${key}`);
    }
    for (const end of step.ended) {
      expect(this.ends.has(end.key)).toBe(false);
      this.ends.set(end.key, end);
      this.log.push(`end ${end.key}`);
    }
    if (step.ended.length > 0) this.onEnd();
  }

  onKvEvents(_dpRank: number, events: readonly EngineKvEvent[]): void {
    this.events.push(...events);
    this.log.push(...events.map((event) => event.type));
  }

  onLoad(load: { readonly running: number }): void {
    this.running.push(load.running);
  }

  onDeath(error: Error): void {
    this.died = error.message;
  }
}

const perf = {
  kind: "coefficients",
  prefill: { pass_ms: 10, ms_per_token: 1, ms_per_token_context: 0 },
  decode: { step_ms: 5, ms_per_active_kv_token: 0, ms_per_sequence: 1 },
};

const drivers: MockDriver[] = [];

afterEach(async () => {
  for (const driver of drivers.splice(0)) await driver.stop();
});

function newDriver(clock: Clock, options: Readonly<Record<string, unknown>> = {}): MockDriver {
  const config = readMockEngineConfig({ block_size: 4, perf_model: perf, ...options });
  const random = mulberry32(1);
  const driver = new MockDriver({ name: "w0", model: "m", config, clock, random, hasher });
  drivers.push(driver);
  return driver;
}

async function started(
  options: Readonly<Record<string, unknown>> = {},
): Promise<{ clock: ManualClock; driver: MockDriver; sink: Listener }> {
  const clock = new ManualClock();
  const driver = newDriver(clock, options);
  const sink = new Listener();
  const start = driver.start(sink);
  await clock.runFor(0);
  await start;
  return { clock, driver, sink };
}

function requestOf(key: number, promptTokens: number, change: Partial<EngineRequest> = {}) {
  const tokens = change.tokens ?? Uint32Array.from({ length: promptTokens }, (_, i) => i + 1);
  const { sequence, local } = hasher.hashBlocks(tokens, 4);
  const request: EngineRequest = {
    key,
    tokens,
    sequenceHashes: sequence,
    localHashes: local,
    maxOutputTokens: 3,
    minOutputTokens: 0,
    seed: 5,
    stopTokenIds: [],
    ignoreEos: true,
    dpRank: undefined,
    role: "aggregated",
    prefillResult: undefined,
    ...change,
  };
  return request;
}

it("streams the tokens of the rule, events before tokens, and ends once", async () => {
  const { clock, driver, sink } = await started();
  driver.submit(requestOf(7, 10));
  await clock.runFor(1000);
  expect(sink.tokens.get(7)).toEqual([10, 11, 12].map((position) => mockToken(5, position)));
  expect(sink.indexes.get(7)).toEqual([0, 1, 2]);
  expect(sink.cached.get(7)).toBe(0);
  const passes = ["stored", "token 7", "token 7", "stored", "token 7", "end 7"];
  expect(sink.log).toEqual(passes);
  expect(sink.ends.get(7)).toMatchObject({
    finishReason: "length",
    promptTokens: 10,
    outputTokens: 3,
    cachedTokens: 0,
  });
  expect(sink.running).toEqual([1, 1, 0]);
  expect(clock.pending()).toBe(0);
});

it("hashes output blocks as the next turn's prompt will", async () => {
  const { clock, driver, sink } = await started();
  driver.submit(requestOf(1, 3, { maxOutputTokens: 7 }));
  await clock.runFor(1000);
  const first = requestOf(1, 3);
  const next = Uint32Array.from([...first.tokens, ...sink.tokens.get(1)!]);
  const { sequence, local } = hasher.hashBlocks(next, 4);
  const stored = sink.events.filter((event) => event.type === "stored");
  expect(stored.flatMap((event) => [...event.sequenceHashes])).toEqual([...sequence.slice(0, 4)]);
  expect(stored.flatMap((event) => [...event.localHashes])).toEqual([...local.slice(0, 4)]);
  driver.submit(requestOf(2, 10, { tokens: next }));
  await clock.runFor(1000);
  expect(sink.cached.get(2)).toBe(8);
});

it("continues a migrated stream with the same sequence", async () => {
  const { clock, driver, sink } = await started();
  driver.submit(requestOf(1, 9, { maxOutputTokens: 8 }));
  await clock.runFor(1000);
  const whole = sink.tokens.get(1)!;
  const tokens = Uint32Array.from([...requestOf(1, 9).tokens, ...whole.slice(0, 3)]);
  driver.submit(requestOf(2, 12, { tokens, maxOutputTokens: 5 }));
  await clock.runFor(1000);
  expect(sink.tokens.get(2)).toEqual(whole.slice(3));
});

it("stops at a stop token once the minimum is reached, unless told to ignore it", async () => {
  const { clock, driver, sink } = await started();
  const stopTokenIds = [mockToken(5, 4), mockToken(5, 6)];
  const stop = { stopTokenIds, ignoreEos: false, maxOutputTokens: 9 };
  driver.submit(requestOf(1, 4, stop));
  driver.submit(requestOf(2, 4, { ...stop, minOutputTokens: 2 }));
  driver.submit(requestOf(3, 4, { ...stop, ignoreEos: true }));
  await clock.runFor(1000);
  expect([1, 2, 3].map((key) => sink.ends.get(key)?.outputTokens)).toEqual([1, 3, 9]);
  expect([1, 2, 3].map((key) => sink.ends.get(key)?.finishReason)).toEqual([
    "stop",
    "stop",
    "length",
  ]);
});

it("takes all requests of one instant into the first pass", async () => {
  const { clock, driver, sink } = await started();
  for (const key of [1, 2, 3]) driver.submit(requestOf(key, 4, { maxOutputTokens: 1 }));
  await clock.runFor(1000);
  expect(sink.running).toEqual([0]);
});

it("hands a prefill over after its transfer time and the decode leg delivers every token", async () => {
  const transfer = { kv_bytes_per_token: 1e6, kv_transfer_bandwidth: 1 };
  const prefill = await started({ worker_type: "prefill", ...transfer });
  prefill.driver.submit(requestOf(1, 12, { role: "prefill", maxOutputTokens: 50 }));
  prefill.clock.advanceTo(33);
  expect(prefill.sink.ends.size).toBe(0);
  expect(prefill.driver.load()[0]).toMatchObject({ running: 0, activeBlocks: 3 });
  prefill.clock.advanceTo(34);
  const end = prefill.sink.ends.get(1)!;
  expect(end).toMatchObject({ outputTokens: 1, finishReason: "length" });
  expect(prefill.driver.load()[0]).toMatchObject({ activeBlocks: 0 });

  const decode = await started({ worker_type: "decode" });
  const prefillResult = { disaggregatedParams: end.disaggregatedParams, cachedTokens: 8 };
  decode.driver.submit(requestOf(2, 12, { role: "decode", prefillResult, maxOutputTokens: 4 }));
  await decode.clock.runFor(1000);
  const expected = [12, 13, 14, 15].map((position) => mockToken(5, position));
  expect(decode.sink.tokens.get(2)).toEqual(expected);
  expect(decode.sink.indexes.get(2)).toEqual([0, 1, 2, 3]);
  expect(decode.sink.ends.get(2)).toMatchObject({ outputTokens: 4, cachedTokens: 8 });
  decode.driver.submit(requestOf(3, 12, { role: "decode", prefillResult, maxOutputTokens: 1 }));
  await decode.clock.runFor(1000);
  expect(decode.sink.tokens.get(3)).toEqual(expected.slice(0, 1));
  expect(decode.sink.ends.get(3)).toMatchObject({ finishReason: "length", outputTokens: 1 });
  expect(() => decode.driver.submit(requestOf(4, 8, { role: "decode", prefillResult }))).toThrow(
    "mock handoff of 8 tokens",
  );
});

it("charges the decode side only for missing blocks when the destination is timed", async () => {
  const { clock, driver, sink } = await started({
    worker_type: "decode",
    kv_transfer_timing_mode: "destination_missing",
    kv_bytes_per_token: 1e6,
    kv_transfer_bandwidth: 1,
  });
  const disaggregatedParams = { engine: "mock", isl: 12, first_token: mockToken(5, 12) };
  const prefillResult = { disaggregatedParams, cachedTokens: undefined };
  const leg = { role: "decode", prefillResult, maxOutputTokens: 2 } as const;
  driver.submit(requestOf(1, 12, leg));
  clock.advanceTo(11.9);
  expect(sink.tokens.size).toBe(0);
  clock.advanceTo(100);
  expect(sink.tokens.get(1)).toHaveLength(2);
  driver.submit(requestOf(2, 12, leg));
  clock.advanceTo(100.1);
  expect(sink.tokens.get(2)).toHaveLength(1);
  driver.submit(requestOf(3, 12, { ...leg, tokens: Uint32Array.from({ length: 12 }, () => 9) }));
  driver.cancel(3);
  clock.advanceTo(1000);
  expect(sink.tokens.has(3)).toBe(false);
});

it("cancels silently in every state and gives everything back", async () => {
  const { clock, driver, sink } = await started({ max_num_seqs: 1 });
  driver.submit(requestOf(1, 8, { maxOutputTokens: 50 }));
  driver.submit(requestOf(2, 8));
  driver.submit(requestOf(3, 8));
  clock.advanceTo(40);
  driver.cancel(1);
  driver.cancel(3);
  driver.cancel(99);
  clock.advanceTo(1000);
  expect([...sink.ends.keys()]).toEqual([2]);
  expect(driver.load()[0]).toMatchObject({ running: 0, waiting: 0, activeBlocks: 0 });
  expect(clock.pending()).toBe(0);
});

it("refuses with the code that fits", async () => {
  const { driver } = await started({ max_model_len: 32, max_waiting_seqs: 1, dp_size: 2 });
  const code = (request: EngineRequest): unknown => {
    try {
      driver.submit(request);
      return undefined;
    } catch (thrown) {
      return (thrown as { code: unknown }).code;
    }
  };
  expect(code(requestOf(1, 0))).toBe("invalid_request");
  expect(code(requestOf(1, 32))).toBe("context_length_exceeded");
  expect(code(requestOf(1, 8, { dpRank: 2 }))).toBe("invalid_request");
  expect(code(requestOf(1, 8))).toBeUndefined();
  expect(code(requestOf(1, 8))).toBe("duplicate_request");
  expect(code(requestOf(2, 8, { dpRank: 0 }))).toBe("overloaded");
  expect(code(requestOf(2, 8))).toBeUndefined();
  expect(code(requestOf(3, 8))).toBe("overloaded");
  expect(() => newDriver(new ManualClock()).submit(requestOf(1, 8))).toThrow("not started");
});

it("hashes the prompt itself when the given hashes are of another block size", async () => {
  const { clock, driver, sink } = await started();
  const none = new Uint32Array(0);
  driver.submit(requestOf(1, 10, { sequenceHashes: none, localHashes: none, maxOutputTokens: 1 }));
  await clock.runFor(100);
  expect(sink.events).toMatchObject([{ sequenceHashes: requestOf(1, 10).sequenceHashes }]);
});

it("becomes ready after its start-up time", async () => {
  const clock = new ManualClock();
  const driver = newDriver(clock, { startup_time: 2 });
  let ready = false;
  void driver.start(new Listener()).then(() => {
    ready = true;
  });
  await clock.runFor(1999);
  expect(ready).toBe(false);
  await clock.runFor(1);
  expect(ready).toBe(true);
});

it("acts on faults while it runs", async () => {
  const { clock, driver, sink } = await started();
  driver.setFaults({ slowFactor: 2 });
  driver.submit(requestOf(1, 4, { maxOutputTokens: 1 }));
  clock.advanceTo(39);
  expect(sink.ends.size).toBe(0);
  clock.advanceTo(40);
  expect(sink.ends.size).toBe(1);

  driver.setFaults({ slowFactor: 1, freeze: true });
  driver.submit(requestOf(2, 4));
  clock.advanceTo(1000);
  expect(sink.tokens.has(2)).toBe(false);
  driver.setFaults({ freeze: false, hangAfterTokens: 2 });
  clock.advanceTo(2000);
  expect(sink.tokens.get(2)).toHaveLength(2);
  driver.setFaults({ hangAfterTokens: undefined });
  clock.advanceTo(3000);
  expect(sink.ends.get(2)?.finishReason).toBe("length");

  driver.setFaults({ errorAfterTokens: 2 });
  driver.submit(requestOf(3, 4));
  clock.advanceTo(4000);
  expect(sink.ends.get(3)).toMatchObject({ finishReason: "error", outputTokens: 2 });
  expect(sink.ends.get(3)?.error?.code).toBe("engine_error");
  driver.setFaults({ errorAfterTokens: undefined, rejectRate: 1, wrongBlockSize: 32 });
  expect(() => driver.submit(requestOf(4, 4))).toThrow("reject_rate");
  expect(driver.card.blockSize).toBe(32);

  expect(driver.losesKvEvents()).toBe(false);
  driver.setFaults({ rejectRate: 0, dropKvEvents: 1, staleLoad: true });
  expect(driver.losesKvEvents()).toBe(true);
  const loads = sink.running.length;
  driver.submit(requestOf(5, 40));
  clock.advanceTo(4060);
  expect(driver.load()[0]?.running).toBe(0);
  clock.advanceTo(5000);
  expect(sink.running).toHaveLength(loads);

  driver.setFaults({ crashOnMarker: [3, 4] });
  driver.submit(requestOf(6, 4));
  clock.advanceTo(6000);
  expect(sink.died).toContain("marker");
  expect(() => driver.submit(requestOf(7, 4))).toThrow("not started");
  expect(() => driver.setFaults({ slowFactor: 0 })).toThrow("slowFactor");
});

it("spreads requests over ranks and keeps their caches apart", async () => {
  const { clock, driver, sink } = await started({ dp_size: 2 });
  driver.submit(requestOf(1, 9));
  driver.submit(requestOf(2, 9));
  await clock.runFor(1000);
  expect([sink.cached.get(1), sink.cached.get(2)]).toEqual([0, 0]);
  expect(driver.load().map((load) => load.dpRank)).toEqual([0, 1]);
  expect(driver.clearCache()).toBe(true);
  expect(sink.log.slice(-2)).toEqual(["cleared", "cleared"]);
});

/** A clock whose one live timer fires only when the test says the process got round to it. */
class LazyClock implements Clock {
  now = 0;
  readonly #timers = new Set<() => void>();

  nowMs(): number {
    return this.now;
  }

  wallMs(): number {
    return this.now;
  }

  after(_delayMs: number, fire: () => void): () => void {
    this.#timers.add(fire);
    return () => void this.#timers.delete(fire);
  }

  wakeAt(nowMs: number): void {
    this.now = nowMs;
    const due = [...this.#timers];
    this.#timers.clear();
    for (const fire of due) fire();
  }
}

async function startedLazily(): Promise<{ clock: LazyClock; driver: MockDriver; sink: Listener }> {
  const clock = new LazyClock();
  const driver = newDriver(clock);
  const sink = new Listener();
  const start = driver.start(sink);
  clock.wakeAt(0);
  await start;
  return { clock, driver, sink };
}

it("finishes every pass that is due in one late wake, planned from the ends, not the wake", async () => {
  const { clock, driver, sink } = await startedLazily();
  driver.submit(requestOf(1, 4, { maxOutputTokens: 9 }));
  clock.wakeAt(0);
  // Passes end at 20, 26, 32, 38, 44.
  clock.wakeAt(38);
  expect(sink.tokens.get(1)).toHaveLength(4);
  clock.wakeAt(43.9);
  expect(sink.tokens.get(1)).toHaveLength(4);
  clock.wakeAt(44);
  expect(sink.tokens.get(1)).toHaveLength(5);
  expect(driver.reanchors).toBe(0);
});

it("keeps a request out of passes planned to start before it arrived", async () => {
  const { clock, driver, sink } = await startedLazily();
  driver.submit(requestOf(1, 4, { maxOutputTokens: 9 }));
  clock.wakeAt(0);
  clock.now = 30;
  driver.submit(requestOf(2, 4, { tokens: Uint32Array.of(9, 9, 9, 9), maxOutputTokens: 1 }));
  clock.wakeAt(33);
  // Passes of request 1 end at 20, 26 and 32; the one from 32 takes request 2 and ends at 53.
  clock.wakeAt(52.9);
  expect(sink.tokens.has(2)).toBe(false);
  clock.wakeAt(53);
  expect(sink.tokens.get(2)).toHaveLength(1);
});

it("plans anew from the wake after a stall of more than 50 ms", async () => {
  const { clock, driver, sink } = await startedLazily();
  driver.submit(requestOf(1, 4, { maxOutputTokens: 99 }));
  clock.wakeAt(0);
  clock.wakeAt(70);
  expect(driver.reanchors).toBe(0);
  const tokens = sink.tokens.get(1)!.length;
  clock.wakeAt(1000);
  expect(driver.reanchors).toBe(1);
  expect(sink.tokens.get(1)).toHaveLength(tokens + 1);
});

/** One slice of work: arrivals every few ms, shared prefixes, a pool small enough to preempt. */
async function runSlice(clock: Clock, settle: () => Promise<void>): Promise<Listener> {
  const driver = newDriver(clock, { num_gpu_blocks: 60, max_num_seqs: 8, speedup_ratio: 10 });
  const sink = new Listener();
  const random = mulberry32(3);
  const starting = driver.start(sink);
  const done = new Promise<void>((resolve) => {
    sink.onEnd = () => {
      if (sink.ends.size === 40) resolve();
    };
  });
  void starting.then(() => {
    for (let key = 0; key < 40; key++) {
      const tokens = Uint32Array.from({ length: 8 + (key % 20) }, (_, i) => (i < 8 ? i : key));
      const request = requestOf(key, 0, { tokens, maxOutputTokens: 1 + (key % 13) });
      clock.after(random() * 100, () => driver.submit(request));
    }
  });
  await settle();
  await done;
  return sink;
}

it("streams the same tokens in the same order on the virtual and on the real clock", async () => {
  const manual = new ManualClock();
  const virtual = await runSlice(manual, () => manual.runFor(60_000));
  const real = await runSlice(realClock, async () => {});
  const byKey = (sink: Listener) => [...sink.tokens].sort(([a], [b]) => a - b);
  expect(byKey(real)).toEqual(byKey(virtual));
  for (const [key, indexes] of real.indexes) {
    expect(indexes).toEqual(Array.from({ length: 1 + (key % 13) }, (_, i) => i));
  }
});
