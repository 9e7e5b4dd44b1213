/**
 * A global router on the in-process bus and a manual clock, with scripted local routers: each says
 * per request what it answers, and nothing else about it is real.
 */
import { ManualClock } from "../../src/base/clock.ts";
import type { ErrorCode } from "../../src/base/errors.ts";
import { mulberry32, randomHex128 } from "../../src/base/random.ts";
import { checkPoolConfig } from "../../src/config/load-pool-config.ts";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import {
  type GlobalRouterOptions,
  startGlobalRouter,
} from "../../src/global-router/global-router.ts";
import { createBlockHasher } from "../../src/protocol/block-hashes.ts";
import { decodeHashQuestion, type HashQuestion } from "../../src/protocol/hash-frame.ts";
import { encodeNotice, type Notice } from "../../src/protocol/notices.ts";
import { decodeReceipt, encodeReceipt } from "../../src/protocol/receipts.ts";
import { decodeDispatch, encodeDispatch } from "../../src/protocol/request-frame.ts";
import {
  attemptNumber,
  type Dispatch,
  type Phase,
  type Receipt,
  type RequestBody,
  type TokenDispatch,
} from "../../src/protocol/requests.ts";
import {
  askSubject,
  controlSubject,
  endpointSubject,
  generateSubject,
  noticeSubject,
} from "../../src/protocol/subjects.ts";
import { type Announcer, announce } from "../../src/runtime/announce.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import type { CardRole, InstanceCard } from "../../src/runtime/instance-card.ts";
import { type Log, type LogFields, silentLog } from "../../src/runtime/log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import {
  bookingMetrics,
  componentMetrics,
  globalRouterMetrics,
  processMetrics,
} from "../../src/runtime/metric-table.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";
import { sampleCard } from "../runtime/sample-card.ts";

export const model = "mock-model";

/** What a scripted router does with one request. */
export type Answer = "accept" | "silent" | "slow" | "slow_refusal" | ErrorCode;

export interface ScriptedRouter extends Announcer {
  readonly inst: string;
  readonly seen: Dispatch[];
  readonly bus: Bus;
  answer: Answer;
  card: Partial<InstanceCard>;
  /** Its quote; `silent` never answers, undefined is a router that does not predict. */
  quote: ScriptedQuote | ErrorCode | "silent" | undefined;
  quoteAfterMs: number;
  /** The questions for quotes that came. */
  readonly asked: HashQuestion[];
}

/** Fields of a quote; the rest is filled in. */
export interface ScriptedQuote {
  readonly ttft: number;
  readonly itl?: number;
  readonly gpuMs?: number;
  readonly queue?: number;
  readonly validForMs?: number;
}

export function aggConfig(change: Record<string, unknown> = {}): PoolConfig {
  return configOf({
    mode: "agg",
    num_agg_pools: 3,
    agg_pool_dynamo_namespaces: ["fast", "middle", "slow"],
    agg_pool_selection_strategy: {
      ttft_min_ms: 0,
      ttft_max_ms: 1000,
      ttft_resolution: 2,
      itl_min_ms: 0,
      itl_max_ms: 100,
      itl_resolution: 2,
      agg_pool_mapping: [
        [0, 1],
        [1, 2],
      ],
      priority_overrides: [{ min_priority: 10, max_priority: 20, target_pool: 0 }],
      ...((change["agg_pool_selection_strategy"] ?? {}) as object),
    },
    ...Object.fromEntries(
      Object.entries(change).filter(([key]) => key !== "agg_pool_selection_strategy"),
    ),
  });
}

export function disaggConfig(): PoolConfig {
  const pools = [
    [0, 1],
    [0, 1],
  ];
  return configOf({
    num_prefill_pools: 2,
    prefill_pool_dynamo_namespaces: ["p0", "p1"],
    prefill_pool_selection_strategy: {
      isl_min: 0,
      isl_max: 200,
      isl_resolution: 2,
      ttft_min_ms: 0,
      ttft_max_ms: 1000,
      ttft_resolution: 2,
      prefill_pool_mapping: pools,
    },
    num_decode_pools: 2,
    decode_pool_dynamo_namespaces: ["d0", "d1"],
    decode_pool_selection_strategy: {
      context_length_min: 0,
      context_length_max: 200,
      context_length_resolution: 2,
      itl_min_ms: 0,
      itl_max_ms: 100,
      itl_resolution: 2,
      decode_pool_mapping: pools,
    },
  });
}

export function configOf(file: Record<string, unknown>): PoolConfig {
  const result = checkPoolConfig(file, { ownNamespace: "dynamo" });
  if (!result.ok) throw new Error(JSON.stringify(result.faults));
  return result.config;
}

export type Rig = ReturnType<typeof startRig>;

export function startRig(config: PoolConfig, change: Partial<GlobalRouterOptions> = {}, seed = 7) {
  const clock = new ManualClock();
  const random = mulberry32(seed);
  const network = createMemoryNetwork({ clock, random });
  const bus = network.connect({ role: "gl" });
  const client = network.connect({ role: "fe" });
  const gate = startEchoGate(bus, clock);
  const metrics = createMetrics({
    ...globalRouterMetrics,
    ...bookingMetrics,
    ...componentMetrics,
    ...processMetrics,
  });
  const lines: string[] = [];
  const router = startGlobalRouter({
    bus,
    clock,
    random,
    gate,
    log: recordingLog(lines),
    metrics,
    config,
    blockHasher: createBlockHasher(undefined),
    model,
    namespace: "dynamo",
    component: "global_router",
    defaults: { ttftTargetMs: null, itlTargetMs: null },
    acceptTimeoutMs: 300,
    poolWaitMs: 0,
    requireAllPools: false,
    overloadHoldMs: 1000,
    version: "0.1.0",
    ...change,
  });
  const frames: string[] = [];
  client.subscribe(`${client.inboxPrefix}.s`, ({ payload }) => {
    frames.push(new TextDecoder().decode(payload));
  });
  let count = 0;
  const startPool = (
    namespace: string,
    role: CardRole = "aggregated",
    card: Partial<InstanceCard> = {},
  ): ScriptedRouter => {
    count += 1;
    const wires = { clock, random, bus: network.connect({ role: "lo" }) };
    return scriptRouter(wires, cardOf(String(count), namespace, role), card);
  };
  const request = (
    body: RequestBody = {},
    phase: Phase = "aggregated",
    tokens = 4,
  ): TokenDispatch => ({
    envelope: {
      rid: randomHex128(random),
      attempt: attemptNumber({ call: 1, global: 0, local: 0 }),
      first: 0,
      phase,
      deadlineMs: 60_000,
      stream: { subject: `${client.inboxPrefix}.s`, format: "json", key: 0, acks: true },
      notify: [],
      avoid: [],
      decisions: [],
    },
    body,
    prompt: { type: "tokens", tokens: new Uint32Array(tokens) },
  });
  const subject = generateSubject("global", router.inst);
  /** Sends to the instance and runs the clock until the receipt. */
  const ask = (dispatch: Dispatch, to = subject): Promise<Receipt> =>
    settled(clock, async () => {
      const reply = await client.request(to, encodeDispatch(dispatch), { timeoutMs: 30_000 });
      return decodeReceipt(reply.payload);
    });
  const query = (endpoint: string, payload: Uint8Array): Promise<Record<string, never>> =>
    settled(clock, async () => {
      const to = endpointSubject({ namespace: "dynamo", component: "global_router", endpoint });
      const reply = await client.request(to, payload, { timeoutMs: 5_000 });
      return JSON.parse(new TextDecoder().decode(reply.payload));
    });
  const notify = async (notice: Notice): Promise<void> => {
    client.publish(noticeSubject(router.inst), encodeNotice(notice));
    await clock.runFor(1);
  };
  const finish = async ({ envelope: { rid, attempt } }: Dispatch): Promise<void> =>
    notify({ type: "finished", rid, attempt: attempt + 1023, outcome: "ok", output_tokens: 3 });
  return {
    clock,
    network,
    bus,
    client,
    metrics,
    router,
    frames,
    lines,
    startPool,
    request,
    ask,
    query,
    notify,
    finish,
  };
}

function recordingLog(lines: string[]): Log {
  const write = (message: string, fields: LogFields = {}): void => {
    lines.push(`${message} ${Object.values(fields).join(" ")}`);
  };
  return { ...silentLog, info: write, warn: write, error: write };
}

/** The value of a series in the Prometheus text; 0 when it is not there. */
export async function metric(rig: Pick<Rig, "metrics">, series: string): Promise<number> {
  const lines = (await rig.metrics.text()).split("\n");
  return Number(lines.find((line) => line.startsWith(`${series} `))?.slice(series.length + 1) ?? 0);
}

/** Time in which cards arrive. */
export const cardsMs = 5;

async function settled<T>(clock: ManualClock, start: () => Promise<T>): Promise<T> {
  let done = false;
  const outcome = start().finally(() => {
    done = true;
  });
  outcome.catch(() => {});
  await clock.runUntil(() => done, 60_000);
  return outcome;
}

interface Wires {
  readonly clock: ManualClock;
  readonly random: () => number;
  readonly bus: Bus;
}

function scriptRouter(
  { clock, random, bus }: Wires,
  fixed: InstanceCard,
  card: Partial<InstanceCard>,
): ScriptedRouter {
  const { inst } = fixed;
  const seen: Dispatch[] = [];
  const router = {
    ...{ inst, bus, seen, answer: "accept" as Answer, card },
    ...{
      quote: undefined as ScriptedRouter["quote"],
      quoteAfterMs: 0,
      asked: [] as HashQuestion[],
    },
  };
  bus.subscribe(askSubject("local", inst, "best_worker_id"), ({ payload, reply }) => {
    router.asked.push(decodeHashQuestion(payload)!);
    const { quote, quoteAfterMs } = router;
    if (quote === "silent" || reply === undefined) return;
    const json = typeof quote === "object" ? quoteJson(quote) : errorJson(quote);
    const answer = (): void => bus.publish(reply, new TextEncoder().encode(JSON.stringify(json)));
    clock.after(quoteAfterMs, answer);
  });
  bus.subscribe(generateSubject("local", inst), (message) => {
    const dispatch = decodeDispatch(message, random);
    seen.push(dispatch);
    const { answer } = router;
    if (answer === "silent" || message.reply === undefined) return;
    const reply = message.reply;
    if (answer !== "slow" && answer !== "slow_refusal")
      return bus.publish(reply, encodeReceipt(receiptOf(answer, dispatch)));
    // Looks for a worker for a second and says so.
    const { rid, attempt, notify } = dispatch.envelope;
    const queued = encodeNotice({ type: "queued", rid, attempt, position: 0 });
    for (const ms of [250, 500, 750]) clock.after(ms, () => bus.publish(notify[0]!, queued));
    const last = receiptOf(answer === "slow" ? "accept" : "accept_timeout", dispatch);
    clock.after(1000, () => bus.publish(reply, encodeReceipt(last)));
  });
  const announcer = announce({
    bus,
    clock,
    random,
    card: () => ({ ...fixed, ...router.card }),
  });
  return Object.assign(router, announcer);
}

function quoteJson({ ttft, itl = 10, gpuMs = 100, queue = 0, validForMs = 50 }: ScriptedQuote) {
  return {
    ...{ worker_id: "1", dp_rank: 0, overlap_blocks: 0 },
    quote: {
      ...{ version: 1, predicted_ttft_ms: ttft, predicted_itl_ms: itl, queue_ms: queue },
      ...{ prefill_ms: ttft - queue, cached_tokens: 0, uncached_tokens: 4, gpus: 1 },
      ...{ prefill_gpu_ms: gpuMs, decode_gpu_ms: gpuMs, kv_usage: 0, valid_for_ms: validForMs },
    },
  };
}

function errorJson(code: ErrorCode = "not_implemented") {
  return { error: { code, message: `scripted ${code}` } };
}

function receiptOf(
  answer: Exclude<Answer, "silent" | "slow" | "slow_refusal">,
  { envelope }: Dispatch,
): Receipt {
  if (answer !== "accept") return { type: "refused", code: answer, message: `scripted ${answer}` };
  return {
    type: "accepted",
    attempt: envelope.attempt,
    inst: "w1",
    epoch: "0000000000000001",
    control: controlSubject("w", "w1"),
    workerId: "1",
    dpRank: 0,
    decisions: envelope.decisions,
  };
}

function cardOf(inst: string, namespace: string, role: CardRole): InstanceCard {
  return sampleCard(inst, {
    epoch: "0000000000000001",
    kind: "local",
    ...{ namespace, component: "router", model, role },
    totalKvBlocks: 0,
    maxNumBatchedTokens: 0,
    contextLength: 4096,
    kvEvents: false,
    workersReady: 2,
  });
}
