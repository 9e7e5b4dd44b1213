/**
 * `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` as NATS micro tools expect them (NATS ADR-32), so that
 * `nats micro ls` shows a fleet. Only describes: the endpoints are served by their owners, who count
 * each request in what `addEndpoint` hands out.
 */
import type { Clock } from "../base/clock.ts";
import { errorTable, TiergridError } from "../base/errors.ts";
import { checkSubscribeSubject, endpointQueue, subjectToken } from "../protocol/subjects.ts";
import type { Bus, Subscription } from "./bus.ts";

export interface MicroServiceOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  /** Of the kind, e.g. `tiergrid-local`; letters, digits, `-` and `_`. */
  readonly name: string;
  /** Of this process. */
  readonly id: string;
  /** Semantic version. */
  readonly version: string;
  readonly description: string;
  readonly metadata?: Readonly<Record<string, string>>;
}

export interface MicroEndpoint {
  readonly name: string;
  readonly subject: string;
  readonly metadata?: Readonly<Record<string, string>>;
}

export interface EndpointCounters {
  /** One request answered after `processingMs`; `error` when it was refused. */
  count(processingMs: number, error?: TiergridError): void;
}

export interface MicroService {
  /** Throws `invalid_request` for a subject nobody may serve, `overloaded` beyond the maximum. */
  addEndpoint(endpoint: MicroEndpoint): EndpointCounters;
  stop(): void;
}

export const endpointsMax = 64;

interface EndpointStats {
  readonly endpoint: MicroEndpoint;
  requests: number;
  errors: number;
  lastError: string;
  processingMs: number;
}

export function startMicroService(options: MicroServiceOptions): MicroService {
  const { bus, clock, name, version } = options;
  if (!/^[A-Za-z0-9_-]+$/.test(name) || !/^\d+\.\d+\.\d+/.test(version)) {
    throw new TiergridError(
      "invalid_request",
      `not a service name and version: ${name} ${version}`,
    );
  }
  const started = new Date(clock.wallMs()).toISOString();
  const endpoints: EndpointStats[] = [];
  const answers: Readonly<Record<string, () => object>> = {
    PING: () => identity(options, "ping"),
    INFO: () => ({
      ...identity(options, "info"),
      description: options.description,
      endpoints: endpoints.map((stats) => described(stats)),
    }),
    STATS: () => ({
      ...identity(options, "stats"),
      started,
      endpoints: endpoints.map((stats) => counted(stats)),
    }),
  };
  const subscriptions = Object.entries(answers).flatMap(([verb, answer]) =>
    serveVerb(bus, `$SRV.${verb}`, [name, subjectToken(options.id)], answer),
  );
  return {
    addEndpoint: (endpoint) => {
      checkSubscribeSubject(endpoint.subject);
      if (endpoints.length >= endpointsMax) {
        throw new TiergridError("overloaded", `a service has at most ${endpointsMax} endpoints`);
      }
      const stats = { endpoint, requests: 0, errors: 0, lastError: "", processingMs: 0 };
      endpoints.push(stats);
      return { count: (processingMs, error) => count(stats, processingMs, error) };
    },
    stop: () => {
      for (const subscription of subscriptions) subscription.unsubscribe();
    },
  };
}

/** Headers that mark an answer as an error for micro tools. */
export function serviceErrorHeaders(error: TiergridError): ReadonlyMap<string, string> {
  return new Map([
    // A header is one line.
    ["Nats-Service-Error", error.message.replace(/[^ -~]+/g, " ").slice(0, 512)],
    ["Nats-Service-Error-Code", String(errorTable[error.code].status)],
  ]);
}

/** For all services, for this name, for this process. */
function serveVerb(
  bus: Bus,
  verb: string,
  [name, id]: readonly [string, string],
  answer: () => object,
): Subscription[] {
  return [verb, `${verb}.${name}`, `${verb}.${name}.${id}`].map((subject) =>
    bus.subscribe(subject, ({ reply }) => {
      if (reply === undefined) return;
      bus.publish(reply, new TextEncoder().encode(JSON.stringify(answer())));
    }),
  );
}

function identity({ name, id, version, metadata }: MicroServiceOptions, verb: string): object {
  const type = `io.nats.micro.v1.${verb}_response`;
  return { type, name, id: subjectToken(id), version, metadata: metadata ?? {} };
}

function described({ endpoint }: EndpointStats): object {
  const { name, subject, metadata = {} } = endpoint;
  return { name, subject, queue_group: endpointQueue, metadata };
}

function counted(stats: EndpointStats): object {
  const { endpoint, requests, errors, lastError, processingMs } = stats;
  const nanoseconds = Math.round(processingMs * 1e6);
  return {
    name: endpoint.name,
    subject: endpoint.subject,
    queue_group: endpointQueue,
    num_requests: requests,
    num_errors: errors,
    last_error: lastError,
    processing_time: nanoseconds,
    average_processing_time: requests === 0 ? 0 : Math.round(nanoseconds / requests),
  };
}

function count(stats: EndpointStats, processingMs: number, error?: TiergridError): void {
  stats.requests += 1;
  stats.processingMs += processingMs;
  if (!error) return;
  stats.errors += 1;
  stats.lastError = `${errorTable[error.code].status}:${error.message}`;
}
