/** The subjects a worker serves: requests, for this instance or at its public endpoint, and control. */
import type { Clock } from "../base/clock.ts";
import { type ErrorCode, TiergridError, toTiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { encodeReceipt } from "../protocol/receipts.ts";
import { decodeDispatch } from "../protocol/request-frame.ts";
import type { Dispatch, Envelope, Phase } from "../protocol/requests.ts";
import { decodeControl, encodeControlReply } from "../protocol/stream-control.ts";
import type { ControlReply } from "../protocol/stream-frames.ts";
import {
  controlSubject,
  type EndpointPath,
  endpointQueue,
  endpointSubject,
  generateSubject,
} from "../protocol/subjects.ts";
import type { Bus, BusMessage, Subscription } from "../runtime/bus.ts";
import { publishFrame, publishQuietly, refuseUnread } from "../runtime/dispatch-offer.ts";
import { type MicroService, startMicroService } from "../runtime/micro-service.ts";
import type { EngineRole } from "./engine.ts";
import type { WorkerState } from "./worker-card.ts";
import type { WorkerJobs } from "./worker-jobs.ts";
import type { WorkerMetrics } from "./worker-metrics.ts";

export interface EndpointOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly metrics: WorkerMetrics;
  readonly inst: string;
  readonly endpoint: EndpointPath;
  readonly version: string;
  readonly model: string;
  readonly role: EngineRole;
  readonly jobs: WorkerJobs;
  readonly state: () => WorkerState;
}

export interface WorkerEndpoints {
  /** Joins the public endpoint, where any client may ask. */
  open(): void;
  /** Leaves the public endpoint; the instance's own subjects go on answering. */
  leave(): void;
  close(): void;
}

/** Where a request was refused, as the `error_type` label says. */
type FailedAt = "deserialization" | "generate";
type Count = (requestBytes: number, startedMs: number, failed?: Failed) => void;
interface Failed {
  readonly error: TiergridError;
  readonly at: FailedAt;
}

export function serveWorker(options: EndpointOptions): WorkerEndpoints {
  const { bus, inst, endpoint, role } = options;
  const service = describe(options);
  const count = counterOf(options, service);
  const own = [
    bus.subscribe(generateSubject("w", inst), (message) => receive(options, count, message)),
    bus.subscribe(controlSubject("w", inst), (message) => onControl(options.jobs, bus, message)),
  ];
  // A client that asks a prefill or decode worker itself need not say which leg it wants.
  const phase = role === "aggregated" ? undefined : role;
  let shared: Subscription | undefined;
  const leave = (): void => {
    shared?.unsubscribe();
    shared = undefined;
  };
  return {
    open() {
      shared ??= bus.subscribe(
        endpointSubject(endpoint),
        (message) => receive(options, count, message, phase),
        endpointQueue,
      );
    },
    leave,
    close() {
      leave();
      for (const subscription of own) subscription.unsubscribe();
      service.stop();
    },
  };
}

function receive(options: EndpointOptions, count: Count, message: BusMessage, phase?: Phase): void {
  const { bus, clock, random, jobs } = options;
  const startedMs = clock.nowMs();
  let dispatch: Dispatch | undefined;
  try {
    dispatch = inPhase(decodeDispatch(message, random), phase);
    checkState(options.state());
    const receipt = jobs.accept(dispatch);
    if (receipt && wantsReceipt(message, dispatch.envelope)) {
      publishQuietly(bus, message.reply, encodeReceipt(receipt));
    }
    count(message.payload.length, startedMs);
  } catch (thrown) {
    const error = toTiergridError(thrown);
    if (dispatch) refuse(bus, message, dispatch.envelope, error);
    else refuseUnread(bus, message, random, error);
    const at = dispatch ? "generate" : "deserialization";
    count(message.payload.length, startedMs, { error, at });
  }
}

/** A receipt; or, for a plain client that only follows its stream, an error frame. */
function refuse(
  bus: Bus,
  message: BusMessage,
  envelope: Envelope,
  { code, message: text, retryable, details }: TiergridError,
): void {
  if (wantsReceipt(message, envelope)) {
    const receipt = encodeReceipt({ type: "refused", code, message: text, details });
    publishQuietly(bus, message.reply, receipt);
    return;
  }
  const { attempt } = envelope;
  const started = false;
  publishFrame(bus, envelope, { type: "error", attempt, code, message: text, retryable, started });
}

function wantsReceipt({ reply }: BusMessage, { stream }: Envelope): boolean {
  return reply !== undefined && reply !== stream.subject;
}

function checkState(state: WorkerState): void {
  const refusals: Readonly<Record<Exclude<WorkerState, "ready">, ErrorCode>> = {
    starting: "not_ready",
    draining: "worker_draining",
    dead: "worker_lost",
    closed: "worker_draining",
  };
  if (state !== "ready") throw new TiergridError(refusals[state], `this worker is ${state}`);
}

function inPhase(dispatch: Dispatch, phase: Phase | undefined): Dispatch {
  return phase ? { ...dispatch, envelope: { ...dispatch.envelope, phase } } : dispatch;
}

function onControl(jobs: WorkerJobs, bus: Bus, { payload, reply }: BusMessage): void {
  let answer: ControlReply = { ok: false };
  try {
    answer = jobs.onControl(decodeControl(payload));
  } catch {
    // What cannot be read names no stream of this worker.
  }
  publishQuietly(bus, reply, encodeControlReply(answer));
}

function describe({ bus, clock, inst, version, model, role }: EndpointOptions): MicroService {
  return startMicroService({
    bus,
    clock,
    name: "tiergrid-worker",
    id: inst,
    version,
    description: "Runs requests on one engine",
    metadata: { model, role },
  });
}

/** Counts each request at its receipt, in the metrics and for micro tools. */
function counterOf(options: EndpointOptions, service: MicroService): Count {
  const { metrics, clock, endpoint } = options;
  const requests = metrics.counter("dynamo_component_requests_total");
  const bytes = metrics.counter("dynamo_component_request_bytes_total");
  const micro = service.addEndpoint({
    name: endpoint.endpoint,
    subject: endpointSubject(endpoint),
  });
  return (requestBytes, startedMs, failed) => {
    requests.add();
    bytes.add(requestBytes);
    micro.count(clock.nowMs() - startedMs, failed?.error);
    if (failed) metrics.counter("dynamo_component_errors_total", { error_type: failed.at }).add();
  };
}
