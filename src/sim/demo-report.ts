/** What became of the demo's requests: counted as they end, shown while they run, summed up. */
import type { CompletionResult } from "./completion-client.ts";
import { LatencyHistogram } from "./latency-histogram.ts";

export interface ReportPool {
  readonly namespace: string;
  readonly role: string;
  readonly workers: readonly string[];
}

export interface ReportOptions {
  readonly requests: number;
  readonly pools: readonly ReportPool[];
}

/** The last line of `tiergrid demo --json`; names are part of the interface. */
export interface DemoSummary {
  readonly requests: number;
  readonly completed: number;
  readonly failed: number;
  readonly token_mismatch: number;
  readonly rejected: number;
  readonly migrated: number;
  readonly bus: "nats" | "embedded";
  readonly duration_s: number;
  readonly ttft_ms: Quantiles;
  readonly itl_ms: Quantiles;
  readonly kv_hit_ratio: number;
  readonly pools: readonly PoolSummary[];
}

export interface Quantiles {
  readonly p50: number | null;
  readonly p99: number | null;
}

export interface PoolSummary {
  readonly namespace: string;
  readonly role: string;
  readonly requests: number;
  readonly workers: readonly { readonly id: string; readonly requests: number }[];
}

/** Facts that the fleet and the clock know. */
export interface RunFacts {
  readonly bus: "nats" | "embedded";
  readonly durationMs: number;
  readonly migrated: number;
}

/** Different faults kept to be shown. */
const faultsMax = 5;

export class DemoReport {
  readonly requests: number;
  /** Different faults in the order of their first appearance. */
  readonly faults: string[] = [];
  readonly ttft = new LatencyHistogram();
  readonly itl = new LatencyHistogram();
  started = 0;
  completed = 0;
  failed = 0;
  rejected = 0;
  cancelled = 0;
  tokenMismatches = 0;
  outputTokens = 0;
  promptTokens = 0;
  cachedTokens = 0;
  readonly #pools: readonly ReportPool[];
  readonly #served = new Map<string, number>();

  constructor({ requests, pools }: ReportOptions) {
    this.requests = requests;
    this.#pools = pools;
  }

  get ended(): number {
    return this.completed + this.failed + this.rejected + this.cancelled;
  }

  /** Cached prompt tokens / prompt tokens of completed requests, as the engines counted. */
  get hitRatio(): number {
    return this.cachedTokens / Math.max(1, this.promptTokens);
  }

  take(result: CompletionResult): void {
    this[result.outcome] += 1;
    this.tokenMismatches += result.mismatches;
    this.outputTokens += result.outputTokens;
    if (result.ttftMs !== undefined) this.ttft.add(result.ttftMs);
    const { gaps } = result;
    for (let at = 0; at < gaps.length; at += 2) this.itl.add(gaps[at] ?? 0, gaps[at + 1]);
    const { fault } = result;
    if (fault !== undefined && this.faults.length < faultsMax && !this.faults.includes(fault)) {
      this.faults.push(fault);
    }
    if (result.outcome !== "completed") return;
    this.promptTokens += result.promptTokens;
    this.cachedTokens += result.cachedTokens;
    for (const worker of new Set([result.prefillWorker, result.decodeWorker])) {
      if (worker !== undefined) this.#served.set(worker, (this.#served.get(worker) ?? 0) + 1);
    }
  }

  /** Completed requests by pool and worker. */
  pools(): PoolSummary[] {
    return this.#pools.map(({ namespace, role, workers }) => {
      const served = workers.map((id) => ({ id, requests: this.#served.get(id) ?? 0 }));
      const requests = served.reduce((sum, worker) => sum + worker.requests, 0);
      return { namespace, role, requests, workers: served };
    });
  }

  summary({ bus, durationMs, migrated }: RunFacts): DemoSummary {
    return {
      requests: this.requests,
      completed: this.completed,
      failed: this.failed + this.cancelled,
      token_mismatch: this.tokenMismatches,
      rejected: this.rejected,
      migrated,
      bus,
      duration_s: rounded(durationMs / 1000),
      ttft_ms: quantiles(this.ttft),
      itl_ms: quantiles(this.itl),
      kv_hit_ratio: rounded(this.hitRatio, 4),
      pools: this.pools(),
    };
  }
}

function quantiles(histogram: LatencyHistogram): Quantiles {
  const at = (q: number): number | null => {
    const ms = histogram.quantile(q);
    return ms === undefined ? null : rounded(ms);
  };
  return { p50: at(0.5), p99: at(0.99) };
}

function rounded(value: number, digits = 2): number {
  return Number(value.toFixed(digits));
}
