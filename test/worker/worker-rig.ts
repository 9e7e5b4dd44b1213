/**
 * Workers with mock engines, an owner and a scripted dispatcher on the in-process bus, under one
 * manual clock. A decode step takes 5 ms plus 1 ms per sequence, a prefill 10 ms plus 1 ms a token.
 */
import { expect } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import type { TiergridError } from "../../src/base/errors.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { decodeNotices } from "../../src/protocol/notice-frame.ts";
import type { Notice } from "../../src/protocol/notices.ts";
import type { Phase, RequestBody } from "../../src/protocol/requests.ts";
import type { EndFrame, EngineOutput } from "../../src/protocol/stream-frames.ts";
import { controlSubject, generateSubject, noticeSubject } from "../../src/protocol/subjects.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import type { DurableLog } from "../../src/runtime/durable-log.ts";
import { silentLog } from "../../src/runtime/log.ts";
import { createMemoryNetwork, type MemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { componentMetrics, workerMetrics } from "../../src/runtime/metric-table.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";
import type { OwnerCall } from "../../src/runtime/owner-request.ts";
import { alwaysOpen } from "../../src/runtime/stream-defaults.ts";
import { createStreamOwner, type StreamOwner } from "../../src/runtime/stream-owner.ts";
import { MockDriver } from "../../src/worker/mock-driver.ts";
import { readMockEngineConfig } from "../../src/worker/mock-engine-config.ts";
import { startWorker, type Worker } from "../../src/worker/worker.ts";

export const hasher = await loadBlockHasher();
export const endpoint = { namespace: "pool", component: "backend", endpoint: "generate" };
export const seed = 7;

const perf = {
  kind: "coefficients",
  prefill: { pass_ms: 10, ms_per_token: 1, ms_per_token_context: 0 },
  decode: { step_ms: 5, ms_per_active_kv_token: 0, ms_per_sequence: 1 },
};

export interface RigWorker {
  readonly worker: Worker;
  readonly engine: MockDriver;
  readonly bus: Bus;
  readonly metrics: { text(): Promise<string> };
}

export interface Rig {
  readonly clock: ManualClock;
  readonly network: MemoryNetwork;
  /** The owner's connection. */
  readonly bus: Bus;
  readonly owner: StreamOwner;
}

export function newRig(): Rig {
  const clock = new ManualClock();
  const random = mulberry32(1);
  const network = createMemoryNetwork({ clock, random });
  const bus = network.connect({ role: "fe" });
  const promptHashing = { hasher, minTokens: 1 };
  return { clock, network, bus, owner: createStreamOwner({ bus, clock, random, promptHashing }) };
}

/** Only what belongs to the owner's and the bus's own upkeep may be left on the clock. */
export async function expectQuiet(
  { clock, owner }: Rig,
  workers: readonly RigWorker[],
): Promise<void> {
  expect(owner.promptsHeld).toBe(0);
  for (const { worker } of workers) await worker.close();
  owner.close();
  await clock.runFor(11_000);
  expect(clock.pending()).toBe(0);
  for (const { worker, engine } of workers) {
    expect(worker.active()).toBe(0);
    for (const load of engine.load()) {
      expect(load).toMatchObject({ running: 0, waiting: 0, activeBlocks: 0 });
    }
  }
}

/** Engine blocks hold 4 tokens. */
export async function addWorker(
  { clock, network }: Rig,
  options: Readonly<Record<string, unknown>> = {},
  durableLog?: DurableLog,
): Promise<RigWorker> {
  const added = launchWorker({ clock, network }, options, durableLog);
  await clock.runFor(1);
  await added.worker.started;
  return added;
}

export function launchWorker(
  { clock, network }: Pick<Rig, "clock" | "network">,
  options: Readonly<Record<string, unknown>> = {},
  durableLog?: DurableLog,
): RigWorker {
  const random = mulberry32(2 + clock.nowMs());
  const bus = network.connect({ role: "wk" });
  const config = readMockEngineConfig({ block_size: 4, perf_model: perf, ...options });
  const engine = new MockDriver({ name: "w", model: "m", config, clock, random, hasher });
  const metrics = createMetrics({ ...workerMetrics, ...componentMetrics });
  const worker = startWorker({
    bus,
    clock,
    random,
    gate: alwaysOpen,
    log: silentLog,
    metrics,
    engine,
    endpoint,
    blockHasher: hasher,
    version: "0.0.0",
    losesKvEvents: () => engine.losesKvEvents(),
    durableLog,
  });
  return { worker, engine, bus, metrics };
}

export const promptOf = (count: number, first = 100): Uint32Array =>
  Uint32Array.from({ length: count }, (_, index) => first + index);

export const bodyOf = (maxTokens: number, more: Partial<RequestBody> = {}): RequestBody => ({
  model: "m",
  stop_conditions: { max_tokens: maxTokens },
  sampling_options: { seed },
  ...more,
});

export const tokensOf = (promptTokens: number, count: number, from = 0): number[] =>
  Array.from({ length: count }, (_, index) => mockToken(seed, promptTokens + from + index));

export interface Answer {
  readonly call: OwnerCall;
  readonly tokens: number[];
  readonly outputs: EngineOutput[];
  readonly ends: EndFrame[];
  readonly errors: TiergridError[];
}

export interface Ask {
  readonly workers: readonly RigWorker[];
  readonly tokens: Uint32Array;
  readonly body: RequestBody;
  readonly phase?: Phase;
  readonly migrations?: number;
  /** The prompt travels as hashes of 4-token blocks. */
  readonly hashed?: boolean;
}

/** Asks the first worker that is not to be avoided. */
export function ask({ owner }: Rig, asked: Ask): Answer {
  const { workers, tokens, body, phase, migrations = 0, hashed = false } = asked;
  const answer = {
    tokens: [] as number[],
    outputs: [] as EngineOutput[],
    ends: [] as EndFrame[],
    errors: [] as TiergridError[],
  };
  const call = owner.call({
    route: (avoid) => {
      const inst = workers.map(({ worker }) => worker.inst).find((one) => !avoid.includes(one));
      if (inst === undefined) return undefined;
      const [subject, control] = [generateSubject("w", inst), controlSubject("w", inst)];
      return { inst, subject, control, promptHashes: hashed ? 4 : undefined };
    },
    phase: phase ?? "aggregated",
    body,
    tokens,
    deadlineMs: 60_000,
    firstTokenTimeoutMs: 30_000,
    migration: { limit: migrations, allowed: migrations > 0 },
    sink: {
      onAccepted: () => {},
      onOutput: (output) => {
        answer.outputs.push(output);
        answer.tokens.push(...output.tokenIds);
      },
      onEnd: (end) => answer.ends.push(end),
      onError: (error) => answer.errors.push(error),
    },
  });
  return { call, ...answer };
}

export interface Dispatcher {
  /** What a request's `notify` list names. */
  readonly subject: string;
  readonly notices: Notice[];
  ofType<Type extends Notice["type"]>(type: Type): Extract<Notice, { type: Type }>[];
}

/** Hears notices; answers `failed` with `taken`, or not at all. */
export function addDispatcher({ network }: Rig, name: string, taken?: boolean): Dispatcher {
  const bus = network.connect({ role: "lo" });
  const subject = noticeSubject(name);
  const notices: Notice[] = [];
  bus.subscribe(subject, ({ payload, reply }) => {
    notices.push(...decodeNotices(payload));
    if (!reply || taken === undefined) return;
    bus.publish(reply, new TextEncoder().encode(JSON.stringify({ taken })));
  });
  const ofType = <Type extends Notice["type"]>(type: Type) =>
    notices.filter((notice) => notice.type === type) as Extract<Notice, { type: Type }>[];
  return { subject, notices, ofType };
}
