import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import type { EngineKvEvent } from "../../src/worker/engine.ts";
import { MockEngineCore } from "../../src/worker/mock-engine.ts";
import type { MockEngineConfig } from "../../src/worker/mock-engine-config.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";
import { handoffDelayMs } from "../../src/worker/mock-handoff.ts";
import type { MockRequest } from "../../src/worker/mock-request.ts";

/** Golden passes; `origin` in the file says where they come from. */
const golden = JSON.parse(
  readFileSync(new URL("../golden/mock-engine.json", import.meta.url), "utf8"),
) as Golden;

interface Entry {
  readonly t: number;
  readonly e: string;
  readonly [field: string]: unknown;
}

interface Scenario {
  readonly name: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly requests: readonly {
    readonly id: string;
    readonly arrival_ms: number;
    readonly input_tokens: number;
    readonly max_output_tokens: number;
    readonly hashes: readonly string[];
    readonly transferred?: boolean;
  }[];
  readonly log: readonly Entry[];
  readonly final: {
    readonly active_blocks: number;
    readonly inactive_blocks: number;
    readonly resident_hashes_lru_to_mru: readonly string[];
    readonly preemptions: number;
  };
}

interface Golden {
  readonly perf_model_for_scenarios: unknown;
  readonly points: {
    readonly kv_transfer: readonly {
      readonly tokens: number;
      readonly kv_bytes_per_token: number;
      readonly bandwidth_gb_s: number;
      readonly delay_ms: number;
    }[];
    readonly trtllm_no_evict: Readonly<Record<string, number>>;
  };
  readonly scenarios: readonly Scenario[];
}

/** Symbolic hashes as lanes `[number of the symbol, 7]`. */
class Symbols {
  readonly #names: string[] = [];

  lanes(names: readonly string[]): Uint32Array {
    return Uint32Array.from(names.flatMap((name) => [this.#numberOf(name), 7]));
  }

  names(lanes: Uint32Array): string[] {
    const out: string[] = [];
    for (let i = 0; i < lanes.length; i += 2) out.push(this.#names[lanes[i]!]!);
    return out;
  }

  #numberOf(name: string): number {
    const known = this.#names.indexOf(name);
    return known >= 0 ? known : this.#names.push(name) - 1;
  }
}

class Replay {
  readonly log: Entry[] = [];
  readonly core: MockEngineCore;
  readonly #config: MockEngineConfig;
  readonly #symbols = new Symbols();
  readonly #scenario: Scenario;

  constructor(scenario: Scenario) {
    this.#scenario = scenario;
    this.#config = readMockEngineConfig({
      ...scenario.config,
      perf_model: golden.perf_model_for_scenarios,
    });
    this.core = new MockEngineCore(this.#config, {
      hashBlock: (request, block, into) => {
        const lanes = this.#symbols.lanes([`o${this.#nameOf(request)}:${block}`]);
        into.set([...lanes, ...lanes]);
      },
      stops: () => false,
    });
  }

  run(): void {
    const arrivals = [...this.#scenario.requests];
    const handoffs: { at: number; request: MockRequest }[] = [];
    let t = 0;
    for (;;) {
      while (arrivals[0] && arrivals[0].arrival_ms <= t) this.#submit(arrivals.shift()!, t);
      while (handoffs[0] && handoffs[0].at <= t) {
        const { request } = handoffs.shift()!;
        this.core.releaseHeld(request);
        this.log.push({ t, e: "handoff_done", id: this.#nameOf(request) });
      }
      const pass = this.core.startPass(0);
      if (!pass) {
        t = Math.min(arrivals[0]?.arrival_ms ?? Infinity, handoffs[0]?.at ?? Infinity);
        if (t === Infinity) return;
        continue;
      }
      this.#logStart(pass, t);
      t += pass.durationMs;
      // A pass never spans a handoff in these scenarios.
      while (arrivals[0] && arrivals[0].arrival_ms <= t) this.#submit(arrivals.shift()!, t);
      for (const request of this.core.endPass()) {
        const id = this.#nameOf(request);
        this.log.push({ t, e: "token", id, n: request.generated });
        if (request.state === "running") continue;
        if (request.state === "held") {
          const delay = handoffDelayMs(this.#config, request.promptTokens);
          handoffs.push({ at: t + delay, request });
          this.log.push({ t, e: "completed", id, handoff_delay_ms: delay });
        } else this.log.push({ t, e: "completed", id });
      }
    }
  }

  residentHashes(): string[] {
    const bySlot = new Map<number, string>();
    for (const [slot, lo, hi] of this.core.pool.cachedSlots()) {
      bySlot.set(slot, this.#symbols.names(Uint32Array.of(lo, hi))[0]!);
    }
    return [...this.core.pool.inactiveSlots()].map((slot) => bySlot.get(slot)!);
  }

  #submit(row: Scenario["requests"][number], t: number): void {
    const lanes = this.#symbols.lanes(row.hashes);
    const answer = this.core.submit({
      key: this.#scenario.requests.indexOf(row),
      arrivedAtMs: 0,
      promptTokens: row.input_tokens,
      maxOutputTokens: row.max_output_tokens,
      sequenceHashes: lanes,
      localHashes: lanes,
      prefillOnly: this.#config.workerType === "prefill",
      transferred: row.transferred ?? false,
    });
    if (typeof answer === "string") this.log.push({ t, e: "rejected", id: row.id });
  }

  #logStart(pass: NonNullable<ReturnType<MockEngineCore["startPass"]>>, t: number): void {
    for (const { request, cachedTokens, computedFrom } of pass.admitted) {
      const id = this.#nameOf(request);
      this.log.push({
        t,
        e: "admitted",
        id,
        cached_tokens: cachedTokens,
        computed_from: computedFrom,
      });
    }
    for (const request of pass.preempted) {
      this.log.push({ t, e: "preempted", id: this.#nameOf(request) });
    }
    for (const event of pass.events) this.log.push({ t, ...this.#eventFields(event) });
    const waiting: string[] = [];
    for (let r = this.core.waiting.head; r; r = r.after) waiting.push(this.#nameOf(r));
    this.log.push({
      t,
      e: "pass",
      dt: pass.durationMs,
      prefill_tokens: pass.prefillTokens,
      prefill_ms: pass.prefillMs,
      decode_ms: pass.decodeMs,
      ready: pass.ready.map((request) => this.#nameOf(request)),
      running: this.core.running.map((request) => this.#nameOf(request)),
      waiting,
      active_blocks: this.core.pool.active,
      inactive_blocks: this.core.pool.inactive,
    });
  }

  #eventFields(event: EngineKvEvent): { e: string; [field: string]: unknown } {
    if (event.type === "cleared") return { e: "cleared" };
    const block_hashes = this.#symbols.names(event.sequenceHashes);
    if (event.type === "removed") return { e: "removed", block_hashes };
    const parent_hash = event.parent ? this.#symbols.names(event.parent)[0]! : null;
    return { e: "stored", block_hashes, parent_hash };
  }

  #nameOf(request: MockRequest): string {
    return this.#scenario.requests[request.key]!.id;
  }
}

/**
 * The core reports KV events, admissions and preemptions as separate ordered lists; each list, and
 * the passes and tokens around them, must equal the golden log.
 */
function lists(log: readonly Entry[]): Record<string, Entry[]> {
  const kinds: Record<string, Entry[]> = {};
  for (const entry of log) {
    let kind = "passes";
    if (["stored", "removed"].includes(entry.e)) kind = "events";
    else if (["admitted", "preempted", "rejected"].includes(entry.e)) kind = entry.e;
    kinds[kind] = [...(kinds[kind] ?? []), entry];
  }
  return kinds;
}

it.each(golden.scenarios.map((scenario) => [scenario.name, scenario] as const))(
  "replays scenario %s pass by pass",
  (_name, scenario) => {
    const replay = new Replay(scenario);
    replay.run();
    expect(lists(replay.log)).toEqual(lists(scenario.log));
    const { core } = replay;
    expect({
      active_blocks: core.pool.active,
      inactive_blocks: core.pool.inactive,
      resident_hashes_lru_to_mru: replay.residentHashes(),
      preemptions: core.load(0).preemptionsTotal,
    }).toEqual(scenario.final);
  },
);

it.each(golden.points.kv_transfer)("a handoff of $tokens tokens takes $delay_ms ms", (point) => {
  const config = readMockEngineConfig({
    kv_bytes_per_token: point.kv_bytes_per_token,
    kv_transfer_bandwidth: point.bandwidth_gb_s,
  });
  expect(handoffDelayMs(config, point.tokens)).toBeCloseTo(point.delay_ms, 9);
});

it("admits exactly as many requests as can finish without eviction in trtllm style", () => {
  const point = golden.points.trtllm_no_evict;
  const config = readMockEngineConfig({
    engine_type: "trtllm",
    block_size: point["block_size"],
    num_gpu_blocks: point["num_gpu_blocks"],
  });
  const core = new MockEngineCore(config, { hashBlock: () => {}, stops: () => false });
  const none = new Uint32Array(0);
  for (let key = 0; key < 64; key++) {
    core.submit({
      key,
      arrivedAtMs: 0,
      promptTokens: point["prompt_tokens"]!,
      maxOutputTokens: point["max_output_tokens"]!,
      sequenceHashes: none,
      localHashes: none,
      prefillOnly: false,
      transferred: false,
    });
  }
  for (let pass = 0; pass < 100; pass++) {
    core.startPass(0);
    core.endPass();
  }
  expect(core.running).toHaveLength(point["concurrent_requests_admitted"]!);
  while (core.startPass(0)) core.endPass();
  expect(core.load(0)).toMatchObject({ running: 0, waiting: 0, preemptionsTotal: 0 });
});
