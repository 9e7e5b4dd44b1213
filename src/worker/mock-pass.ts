/** One pass of the mock engine: what it scheduled, what it changed in the cache, what it costs. */
import type { EngineKvEvent } from "./engine.ts";
import type { MockEngineConfig } from "./mock-engine-config.ts";
import type { MockRequest } from "./mock-request.ts";

export interface MockAdmission {
  readonly request: MockRequest;
  /** Prompt tokens found in the cache. */
  readonly cachedTokens: number;
  readonly computedFrom: number;
}

/** One engine pass; lists are in order of occurrence, `ready` in running order. */
export interface MockPass {
  durationMs: number;
  prefillTokens: number;
  prefillMs: number;
  decodeMs: number;
  readonly events: EngineKvEvent[];
  readonly admitted: MockAdmission[];
  readonly preempted: MockRequest[];
  readonly ready: MockRequest[];
}

/** A pass that schedules nothing still lasts this long, so that virtual time advances. */
const idlePassMs = 1;

export function newPass(): MockPass {
  return {
    durationMs: 0,
    prefillTokens: 0,
    prefillMs: 0,
    decodeMs: 0,
    events: [],
    admitted: [],
    preempted: [],
    ready: [],
  };
}

/** Fills in `ready` and the times, once everything is scheduled and allocated. */
export function measurePass(
  pass: MockPass,
  config: MockEngineConfig,
  running: readonly MockRequest[],
  activeBlocks: number,
): void {
  let attention = 0;
  let contextTokens = 0;
  for (const request of running) {
    const { passTokens: tokens, passContext: context } = request;
    if (tokens === 0) continue;
    if (tokens > 1 || context < request.promptTokens) {
      pass.prefillTokens += tokens;
      attention += tokens * (context + tokens / 2);
    }
    if (request.computed !== request.length) continue;
    pass.ready.push(request);
    contextTokens += request.length;
  }
  pass.prefillMs = config.perf.prefillMs(pass.prefillTokens, attention);
  if (config.workerType !== "prefill") {
    pass.decodeMs = config.perf.decodeMs({
      sequences: pass.ready.length,
      activeKvTokens: activeBlocks * config.blockSize,
      capacityKvTokens: config.numGpuBlocks * config.blockSize,
      contextTokens,
    });
  }
  const ms = pass.prefillMs + pass.decodeMs / config.decodeSpeedupRatio;
  const idle = pass.prefillTokens === 0 && pass.ready.length === 0;
  pass.durationMs = (idle ? Math.max(idlePassMs, ms) : ms) / config.speedupRatio;
}

/** Reports the request's blocks [from, to) as newly visible; nothing when the range is empty. */
export function pushStored(
  events: EngineKvEvent[],
  request: MockRequest,
  from: number,
  to: number,
): void {
  if (to <= from) return;
  events.push({
    type: "stored",
    parent: from === 0 ? undefined : request.sequenceHashes.subarray(2 * from - 2, 2 * from),
    sequenceHashes: request.sequenceHashes.subarray(2 * from, 2 * to),
    localHashes: request.localHashes.subarray(2 * from, 2 * to),
  });
}
