/** The load of the demo: a trace replayed over HTTP at its own pace, whatever the answers take. */
import { setMaxListeners } from "node:events";
import { Agent } from "node:http";
import { type Clock, sleep } from "../base/clock.ts";
import { mulberry32 } from "../base/random.ts";
import {
  type Completion,
  type CompletionClient,
  type CompletionResult,
  complete,
} from "./completion-client.ts";
import type { TraceRequest } from "./mooncake-trace.ts";
import { promptTokens } from "./workload.ts";

/** Requests under way; later ones wait for their turn, and their TTFT counts from their arrival. */
export const concurrencyMax = 1024;
const idleConnectionsMax = 64;

export interface LoadOptions {
  /** `http://host:port`. */
  readonly url: string;
  readonly model: string;
  /** In order of arrival; `arrivalMs` is from the start of the load. */
  readonly requests: readonly TraceRequest[];
  readonly seed: number;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly onStart: () => void;
  readonly onResult: (result: CompletionResult) => void;
}

/** Sends every request at its arrival; resolves when the last has ended, or soon after `signal`. */
export async function runLoad(options: LoadOptions): Promise<void> {
  const { url, model, requests, clock, signal } = options;
  const agent = new Agent({
    keepAlive: true,
    maxSockets: concurrencyMax,
    maxFreeSockets: idleConnectionsMax,
  });
  const client: CompletionClient = { url, model, agent, clock, signal };
  // Every request under way listens to the one signal.
  setMaxListeners(concurrencyMax + 1, signal);
  const underWay = new Set<Promise<void>>();
  const startMs = clock.nowMs();
  for (const [number, request] of requests.entries()) {
    const arrivalMs = startMs + request.arrivalMs;
    const waitMs = arrivalMs - clock.nowMs();
    if (waitMs > 0) await sleep(clock, waitMs, signal);
    while (underWay.size >= concurrencyMax) await Promise.race(underWay);
    if (signal.aborted) break;
    options.onStart();
    const answer = complete(client, completionOf(options, request, { number, arrivalMs }))
      .then(options.onResult)
      .finally(() => underWay.delete(answer));
    underWay.add(answer);
  }
  await Promise.all(underWay);
  agent.destroy();
}

function completionOf(
  { seed }: LoadOptions,
  request: TraceRequest,
  { number, arrivalMs }: { readonly number: number; readonly arrivalMs: number },
): Completion {
  return {
    arrivalMs,
    seed: (seed + Math.imul(number + 1, 0x9e3779b1)) >>> 0,
    prompt: promptTokens(request),
    outputTokens: request.outputTokens,
    ...targetsOf(seed, request),
  };
}

export interface Targets {
  readonly ttftTargetMs: number | null;
  readonly itlTargetMs: number | null;
}

const targetClasses: readonly Targets[] = [
  { ttftTargetMs: 300, itlTargetMs: 15 },
  { ttftTargetMs: null, itlTargetMs: null },
  { ttftTargetMs: null, itlTargetMs: null },
  { ttftTargetMs: 5000, itlTargetMs: 60 },
];

/**
 * A conversation keeps its targets. Its own blocks begin after the system prompt that a trace's
 * first block holds: the second id tells conversations apart.
 */
export function targetsOf(seed: number, { hashIds }: TraceRequest): Targets {
  const conversation = hashIds[1] ?? hashIds[0] ?? 0;
  const draw = mulberry32(seed ^ Math.imul(conversation + 1, 0x85ebca6b))();
  return targetClasses[Math.floor(draw * targetClasses.length)] as Targets;
}
