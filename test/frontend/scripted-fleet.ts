/**
 * A frontend on an in-process bus, with workers that follow a script instead of an engine. Each
 * phase has one worker that is dispatched to directly, without routers.
 */
import { realClock } from "../../src/base/clock.ts";
import { type ErrorCode, TiergridError } from "../../src/base/errors.ts";
import { mulberry32 } from "../../src/base/random.ts";
import type { FrontendSettings } from "../../src/frontend/frontend-parts.ts";
import { createFrontend, type Frontend } from "../../src/frontend/http-api.ts";
import type { ModelDirectory, ServedModel } from "../../src/frontend/served-model.ts";
import { encodeReceipt } from "../../src/protocol/receipts.ts";
import { decodeDispatch } from "../../src/protocol/request-frame.ts";
import {
  type Dispatch,
  type HopDecision,
  islTokensOf,
  type Phase,
  type Receipt,
} from "../../src/protocol/requests.ts";
import { decodeControl, encodeControlReply } from "../../src/protocol/stream-control.ts";
import { controlSubject, generateSubject } from "../../src/protocol/subjects.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { type Log, silentLog } from "../../src/runtime/log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { frontendMetrics } from "../../src/runtime/metric-table.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";
import { createStreamOwner, type StreamOwner } from "../../src/runtime/stream-owner.ts";
import {
  createStreamSender,
  type SenderStream,
  type StreamSender,
} from "../../src/runtime/stream-sender.ts";

/** What a script may do with a request. */
export interface Turn {
  readonly dispatch: Dispatch;
  /** Takes the request; the receipt goes out and the stream is open. */
  accept(): SenderStream;
  refuse(code: ErrorCode, message: string, retryAfterMs?: number): void;
  flush(): void;
  /** Resolves when this request is cancelled. */
  readonly cancelled: Promise<void>;
}

export type Script = (turn: Turn) => void | Promise<void>;

export interface Fleet {
  readonly frontend: Frontend;
  readonly owner: StreamOwner;
  /** Requests as they reached the workers. */
  readonly seen: Dispatch[];
  readonly cancels: number;
  readonly scripts: Map<Phase, Script>;
  readonly model: { ready: boolean; known: boolean };
  readonly bus: { connected: boolean };
  metric(name: string): Promise<string[]>;
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>;
  close(): Promise<void>;
}

export interface FleetOptions {
  readonly mode?: ServedModel["mode"];
  readonly contextLength?: number;
  readonly settings?: Partial<FrontendSettings>;
  readonly log?: Log;
}

export const blockSize = 16;

/** Answers with the bytes of `text`, one token each, `cachedTokens` of the prompt cached. */
export function say(text: string, cachedTokens?: number): Script {
  return (turn) => {
    const stream = turn.accept();
    const tokens = [...Buffer.from(text)];
    for (const token of tokens) {
      stream.push({ tokenIds: [token] });
      turn.flush();
    }
    const prompt = islTokensOf(turn.dispatch.prompt);
    stream.end({
      finishReason: "stop",
      usage: {
        prompt_tokens: prompt,
        completion_tokens: tokens.length,
        ...(cachedTokens !== undefined && {
          prompt_tokens_details: { cached_tokens: cachedTokens },
        }),
      },
    });
    turn.flush();
  };
}

export function startFleet(options: FleetOptions = {}): Fleet {
  const random = mulberry32(11);
  const network = createMemoryNetwork({ clock: realClock, random });
  const bus = network.connect({ role: "fe" });
  const owner = createStreamOwner({ bus, clock: realClock, random });
  const metrics = createMetrics(frontendMetrics);
  const scripts = new Map<Phase, Script>();
  const seen: Dispatch[] = [];
  const counts = { cancels: 0 };
  const model = { ready: true, known: true };
  const connection = { connected: true };
  const closers: (() => Promise<void> | void)[] = [];
  for (const phase of ["aggregated", "prefill", "decode"] as const) {
    const workerBus = network.connect({ role: "wk" });
    const sender = startWorker(workerBus, phase, { scripts, seen, counts });
    closers.push(
      () => sender.close(),
      () => workerBus.close(),
    );
  }
  const served = (): ServedModel => ({
    name: "mock-model",
    contextLength: options.contextLength ?? 4096,
    blockSize,
    mode: options.mode ?? "agg",
    ready: model.ready,
    created: 1_700_000_000,
  });
  const models: ModelDirectory = {
    find: (name) => (model.known && name === "mock-model" ? served() : undefined),
    list: () => (model.known ? [served()] : []),
    route: (phase) => (avoid) =>
      scripts.has(phase) && !avoid.includes(phase)
        ? {
            inst: phase,
            subject: generateSubject("w", phase),
            control: controlSubject("w", phase),
          }
        : undefined,
  };
  const frontend = createFrontend({
    owner,
    models,
    metrics,
    clock: realClock,
    random,
    log: options.log ?? silentLog,
    busConnected: () => connection.connected,
    ...(options.settings && { settings: options.settings }),
  });
  return {
    frontend,
    owner,
    seen,
    scripts,
    model,
    bus: connection,
    get cancels() {
      return counts.cancels;
    },
    async metric(name) {
      const lines = (await metrics.text()).split("\n");
      return lines.filter((line) => line.startsWith(name));
    },
    async post(path, body, headers = {}) {
      return await frontend.app.request(path, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: typeof body === "string" ? body : JSON.stringify(body),
      });
    },
    async close() {
      owner.close();
      await frontend.close();
      for (const close of closers) await close();
      await bus.close();
    },
  };
}

interface Shared {
  readonly scripts: ReadonlyMap<Phase, Script>;
  readonly seen: Dispatch[];
  readonly counts: { cancels: number };
}

function startWorker(bus: Bus, inst: string, shared: Shared): StreamSender {
  const left = new Map<string, () => void>();
  const epoch = "0000000000000001";
  const sender = createStreamSender({
    bus,
    clock: realClock,
    inst,
    epoch,
    onCancel(stream) {
      shared.counts.cancels++;
      left.get(stream.envelope.rid)?.();
    },
  });
  const control = controlSubject("w", inst);
  bus.subscribe(control, (message) => {
    const reply = sender.onControl(decodeControl(message.payload));
    if (message.reply) bus.publish(message.reply, encodeControlReply(reply));
  });
  bus.subscribe(generateSubject("w", inst), async (message) => {
    const dispatch = decodeDispatch(message, mulberry32(1));
    shared.seen.push(dispatch);
    const { envelope } = dispatch;
    const reply = (receipt: Receipt): void => {
      if (message.reply) bus.publish(message.reply, encodeReceipt(receipt));
    };
    const cancelled = new Promise<void>((resolve) => left.set(envelope.rid, resolve));
    await shared.scripts.get(envelope.phase)?.({
      dispatch,
      cancelled,
      flush: () => sender.flush(),
      refuse(code, text, retryAfterMs) {
        const retry = retryAfterMs === undefined ? {} : { retryAfterMs };
        reply({ type: "refused", code, message: text, ...retry });
      },
      accept() {
        const decisions = [decision(envelope.phase, islTokensOf(dispatch.prompt))].flat();
        const place = { workerId: "18446744073709551615", dpRank: 0 };
        const stream = sender.open({ ...envelope, decisions }, place);
        if (typeof stream === "string") throw new TiergridError("internal_error", stream);
        const { attempt } = envelope;
        reply({ type: "accepted", attempt, inst, epoch, control, ...place, decisions });
        return stream;
      },
    });
  });
  return sender;
}

function decision(role: Phase, islTokens: number): HopDecision[] {
  return [
    {
      tier: "global",
      decision_id: `g-${role}`,
      role,
      pool: `pool-${role}`,
      cell: "0,1",
      reason: "grid",
      config_version: "v1",
    },
    {
      tier: "local",
      decision_id: `l-${role}`,
      role,
      worker_id: "18446744073709551615",
      dp_rank: 0,
      overlap_blocks: 1,
      isl_blocks: Math.ceil(islTokens / blockSize),
    },
  ];
}

/** The JSON of every event, `[DONE]` as text. */
export function eventsOf(text: string): unknown[] {
  return text
    .split("\n\n")
    .filter((event) => event.startsWith("data: "))
    .map((event) => event.slice("data: ".length))
    .map((event) => (event === "[DONE]" ? event : JSON.parse(event)));
}
