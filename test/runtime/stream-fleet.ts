/**
 * Small workers and an owner on the in-process bus, under one manual clock: each worker streams
 * `mockToken(7, position)` at a fixed pace, so that every token of every answer can be checked.
 */
import { expect } from "vitest";
import { type Clock, ManualClock } from "../../src/base/clock.ts";
import { TiergridError } from "../../src/base/errors.ts";
import { mulberry32, type Random } from "../../src/base/random.ts";
import { mockToken } from "../../src/protocol/mock-tokens.ts";
import { encodeReceipt } from "../../src/protocol/receipts.ts";
import { decodeDispatch } from "../../src/protocol/request-frame.ts";
import { type Dispatch, islTokensOf } from "../../src/protocol/requests.ts";
import { decodeControl, encodeControlReply } from "../../src/protocol/stream-control.ts";
import type { EndFrame } from "../../src/protocol/stream-frames.ts";
import { controlSubject, generateSubject } from "../../src/protocol/subjects.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import { createMemoryNetwork, type MemoryNetwork } from "../../src/runtime/memory-bus.ts";
import type { CallRequest, OwnerCall, Route } from "../../src/runtime/owner-request.ts";
import { createStreamOwner, type StreamOwner } from "../../src/runtime/stream-owner.ts";
import {
  type CancelCause,
  createStreamSender,
  type SenderStream,
  type StreamSender,
} from "../../src/runtime/stream-sender.ts";

export interface WorkerOptions {
  readonly itlMs?: number;
  /** Answers nothing at all, as a hung process. */
  readonly mute?: boolean;
  /** Fails each request after that many tokens. */
  readonly failAfter?: number;
}

export interface FleetWorker {
  readonly inst: string;
  readonly bus: Bus;
  readonly sender: StreamSender;
  readonly cancels: CancelCause[];
  readonly dispatches: Dispatch[];
  /** Disappears without a word. */
  kill(): Promise<void>;
}

export interface Fleet {
  readonly clock: ManualClock;
  readonly random: Random;
  readonly network: MemoryNetwork;
  readonly bus: Bus;
  readonly owner: StreamOwner;
  readonly workers: FleetWorker[];
}

export function startFleet(seed: number, workers: readonly WorkerOptions[]): Fleet {
  const clock = new ManualClock();
  const random = mulberry32(seed);
  const network = createMemoryNetwork({ clock, random });
  const bus = network.connect({ role: "fe" });
  const gate = startEchoGate(bus, clock);
  const owner = createStreamOwner({ bus, clock, random, gate });
  const started = workers.map((options, index) =>
    startWorker(network.connect({ role: "wk" }), clock, `w${index}`, options),
  );
  return { clock, random, network, bus, owner, workers: started };
}

export function startWorker(
  bus: Bus,
  clock: Clock,
  inst: string,
  options: WorkerOptions,
): FleetWorker {
  const { itlMs = 20, mute = false, failAfter = Number.POSITIVE_INFINITY } = options;
  const cancels: CancelCause[] = [];
  const dispatches: Dispatch[] = [];
  const running = new Map<SenderStream, Dispatch>();
  const sender = createStreamSender({
    bus,
    clock,
    inst,
    epoch: "1",
    onCancel: (stream, cause) => {
      cancels.push(cause);
      running.delete(stream);
    },
  });
  let dead = false;
  const step = (): void => {
    if (dead) return;
    for (const [stream, dispatch] of [...running]) {
      if (!stream.blocked) makeToken(stream, dispatch, failAfter);
      if (isOver(stream, dispatch)) running.delete(stream);
    }
    sender.flush();
    clock.after(itlMs, step);
  };
  clock.after(itlMs, step);
  bus.subscribe(generateSubject("w", inst), ({ payload, reply }) => {
    if (mute) return;
    const dispatch = decodeDispatch({ payload, reply }, mulberry32(1));
    const place = { workerId: inst, dpRank: 0 };
    const stream = sender.open(dispatch.envelope, place);
    if (typeof stream === "string") return;
    dispatches.push(dispatch);
    running.set(stream, dispatch);
    const { attempt, decisions } = dispatch.envelope;
    const control = controlSubject("w", inst);
    const worker = { inst, epoch: "1", control, ...place };
    if (!reply) return;
    bus.publish(reply, encodeReceipt({ type: "accepted", attempt, ...worker, decisions }));
  });
  bus.subscribe(controlSubject("w", inst), ({ payload, reply }) => {
    const answer = sender.onControl(decodeControl(payload));
    if (reply) bus.publish(reply, encodeControlReply(answer));
  });
  const kill = async (): Promise<void> => {
    dead = true;
    await bus.close();
  };
  return { inst, bus, sender, cancels, dispatches, kill };
}

function makeToken(stream: SenderStream, { envelope, prompt, body }: Dispatch, failAfter: number) {
  const made = stream.made - envelope.first;
  const islTokens = islTokensOf(prompt);
  if (made >= failAfter) {
    stream.fail(new TiergridError("engine_error", "the engine broke"));
    return;
  }
  const max = body.stop_conditions?.max_tokens ?? 16;
  if (made < max) stream.push({ tokenIds: [mockToken(7, islTokens + made)] });
  if (made + 1 < max) return;
  const usage = { prompt_tokens: islTokens, completion_tokens: max };
  stream.end({ finishReason: "length", usage });
}

function isOver(stream: SenderStream, { envelope, body }: Dispatch): boolean {
  return stream.made - envelope.first >= (body.stop_conditions?.max_tokens ?? 16);
}

export interface Answer {
  readonly call: OwnerCall;
  readonly tokens: number[];
  readonly ends: EndFrame[];
  readonly errors: TiergridError[];
  readonly accepted: string[];
  readonly promptTokens: number;
}

export type AnswerOptions = Partial<Omit<CallRequest, "sink">> & {
  readonly maxTokens?: number;
  readonly promptTokens?: number;
};

/** Asks a worker that is not avoided, in order. */
export const routeInOrder =
  (fleet: Fleet, from = 0): CallRequest["route"] =>
  (avoid) => {
    const { workers } = fleet;
    const turned = [...workers.slice(from % workers.length), ...workers];
    const worker = turned.find(({ inst }) => !avoid.includes(inst));
    return worker && routeTo(worker.inst);
  };

export const routeTo = (inst: string): Route => ({
  inst,
  subject: generateSubject("w", inst),
  control: controlSubject("w", inst),
});

export function ask(fleet: Fleet, options: AnswerOptions = {}): Answer {
  const { maxTokens = 50, promptTokens = 5, ...request } = options;
  const answer = {
    tokens: [] as number[],
    ends: [] as EndFrame[],
    errors: [] as TiergridError[],
    accepted: [] as string[],
    promptTokens,
  };
  const call = fleet.owner.call({
    route: routeInOrder(fleet),
    phase: "aggregated",
    body: { model: "m", stop_conditions: { max_tokens: maxTokens, min_tokens: 4 } },
    tokens: Uint32Array.from({ length: promptTokens }, (_, index) => index),
    deadlineMs: 60_000,
    firstTokenTimeoutMs: 5_000,
    migration: { limit: 3, allowed: true },
    ...request,
    sink: {
      onAccepted: (frame) => answer.accepted.push(frame.inst),
      onOutput: (output, first) => {
        expect(first).toBe(answer.tokens.length);
        answer.tokens.push(...output.tokenIds);
      },
      onEnd: (end) => answer.ends.push(end),
      onError: (error) => answer.errors.push(error),
    },
  });
  return { call, ...answer };
}

/** The tokens an answer must have so far, or at its end. */
export function exactTokens(answer: Answer, count = answer.tokens.length): number[] {
  return Array.from({ length: count }, (_, index) => mockToken(7, answer.promptTokens + index));
}

export function expectWhole(answer: Answer, maxTokens = 50): void {
  expect(answer.errors).toEqual([]);
  expect(answer.ends).toHaveLength(1);
  expect(answer.tokens).toEqual(exactTokens(answer, maxTokens));
}

/** Nothing is left of any answer, on either side, once finished streams were let go. */
export async function expectNothingLeft(fleet: Fleet): Promise<void> {
  expect(fleet.owner.open).toBe(0);
  await fleet.clock.runFor(11_000);
  for (const { sender } of fleet.workers) expect(sender.held).toBe(0);
}
