/**
 * Where one choice went and when: the decisions and workers named by `accepted` frames, and the
 * times a client could have measured. Feeds the `x-route-*` headers and the response's `nvext`.
 */
import type { HopDecision, Phase } from "../protocol/requests.ts";
import type { AcceptedFrame } from "../protocol/stream-frames.ts";

export interface TraceStart {
  /** Time of the HTTP request, on the clock that never steps and since the epoch. */
  readonly receivedMs: number;
  readonly receivedWallMs: number;
}

export interface TraceEnd {
  readonly nowMs: number;
  readonly stopReason: string | number | undefined;
  readonly engineFields: Readonly<Record<string, unknown>>;
}

interface Place {
  readonly workerId: string;
  readonly dpRank: number;
  readonly decisions: readonly HopDecision[];
  readonly acceptedMs: number;
}

export class AnswerTrace {
  readonly #start: TraceStart;
  /** The last place of each phase; a migration moves it. */
  readonly #places = new Map<Phase, Place>();
  #prefillAcceptedMs: number | undefined;
  #firstOutputMs: number | undefined;
  #lastOutputMs = 0;
  #tokens = 0;

  constructor(start: TraceStart) {
    this.#start = start;
  }

  /** Output tokens so far. */
  get tokens(): number {
    return this.#tokens;
  }

  accepted(frame: AcceptedFrame, phase: Phase, nowMs: number): void {
    const { workerId, dpRank, decisions } = frame;
    this.#places.set(phase, { workerId, dpRank, decisions, acceptedMs: nowMs });
    // The prompt is read where the request was taken first.
    this.#prefillAcceptedMs ??= nowMs;
  }

  /** Counts an output; answers the gap since the last one in ms, undefined for the first. */
  output(tokens: number, nowMs: number): number | undefined {
    const gapMs = this.#firstOutputMs === undefined ? undefined : nowMs - this.#lastOutputMs;
    this.#firstOutputMs ??= nowMs;
    this.#lastOutputMs = nowMs;
    this.#tokens += tokens;
    return gapMs;
  }

  /** `x-route-*` headers; phases in order, separated by commas. */
  routeHeaders(): Record<string, string> {
    const decisions = this.#globalDecisions();
    const joined = (read: (decision: HopDecision) => string | undefined): string =>
      decisions.map((decision) => headerText(read(decision) ?? "-")).join(",");
    if (decisions.length === 0) return {};
    return {
      "x-route-pool": joined(({ pool }) => pool),
      "x-route-cell": joined(({ cell }) => cell),
      "x-route-reason": joined(({ reason }) => reason),
      "x-route-decision-id": joined(({ decision_id }) => decision_id),
    };
  }

  /** The parts of `nvext` that `fields` asks for; undefined when it asks for none. */
  extras(fields: readonly string[], end: TraceEnd): Record<string, unknown> | undefined {
    if (fields.length === 0) return undefined;
    const extras: Record<string, unknown> = {};
    for (const field of fields) {
      if (field === "worker_id") extras["worker_id"] = this.#workerIds();
      else if (field === "timing") extras["timing"] = this.#timing(end.nowMs);
      else if (field === "route") extras["route"] = this.#globalDecisions().map(publicDecision);
      else if (field === "stop_reason") extras["stop_reason"] = end.stopReason ?? null;
      else if (end.engineFields[field] !== undefined) extras[field] = end.engineFields[field];
    }
    return extras;
  }

  #workerIds(): Record<string, unknown> {
    const both = this.#places.get("aggregated");
    const prefill = this.#places.get("prefill") ?? both;
    const decode = this.#places.get("decode") ?? both;
    return {
      prefill_worker_id: prefill?.workerId ?? null,
      prefill_dp_rank: prefill?.dpRank ?? null,
      decode_worker_id: decode?.workerId ?? null,
      decode_dp_rank: decode?.dpRank ?? null,
    };
  }

  #timing(nowMs: number): Record<string, number | null> {
    const { receivedMs, receivedWallMs } = this.#start;
    const first = this.#firstOutputMs;
    const accepted = this.#prefillAcceptedMs;
    const gaps = this.#tokens - 1;
    return {
      request_received_ms: receivedWallMs,
      prefill_wait_time_ms: accepted === undefined ? null : accepted - receivedMs,
      prefill_time_ms: accepted === undefined || first === undefined ? null : first - accepted,
      ttft_ms: first === undefined ? null : first - receivedMs,
      itl_ms: first === undefined || gaps < 1 ? null : (this.#lastOutputMs - first) / gaps,
      total_time_ms: nowMs - receivedMs,
      kv_hit_rate: this.#hitRate(),
    };
  }

  /** Share of the prompt's blocks that the decision found on the worker that reads the prompt. */
  #hitRate(): number | null {
    const place = this.#places.get("prefill") ?? this.#places.get("aggregated");
    const local = place?.decisions.find(({ tier }) => tier === "local");
    if (local?.overlap_blocks === undefined || !local.isl_blocks) return null;
    return local.overlap_blocks / local.isl_blocks;
  }

  #globalDecisions(): HopDecision[] {
    const places = (["prefill", "aggregated", "decode"] as const).map((p) => this.#places.get(p));
    return places.flatMap(
      (place) => place?.decisions.filter(({ tier }) => tier === "global") ?? [],
    );
  }
}

function publicDecision(decision: HopDecision): Record<string, unknown> {
  const { decision_id, role, pool, cell, reason, config_version } = decision;
  return { decision_id, role, pool, cell, reason, config_version };
}

/** Pool names come from config and may hold what a header may not. */
function headerText(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, "?");
}
