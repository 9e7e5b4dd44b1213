/**
 * The parts of a pool config that the reference does not have: what pools cost, who stands in for
 * whom per cell, and whether quotes decide. Each is left out of the normal form while unused, so a
 * file without them keeps its version.
 */
import type { PoolPlan } from "../core/pool-choice.ts";
import { defaultLive, type LateRule, type LiveRules } from "../core/quote-choice.ts";
import type { Role, SlaGrid } from "../core/sla-grid.ts";
import { type FileObject, fallbacksKey, type JsonObject, metadataKey } from "./pool-config-keys.ts";

/** `grid`: the cell decides. `checked`: its pool's quote may overrule it. `live`: quotes decide. */
export type SelectionMode = "grid" | "checked" | "live";

export interface QuoteRules {
  readonly selection: SelectionMode;
  readonly quoteDeadlineMs: number;
  /** Refuse what no pool can serve within its targets. */
  readonly refuse: boolean;
  readonly rules: LiveRules;
}

/** What a file says about a pool besides where it is; absent = it says nothing. */
export interface PoolMetadata {
  /** Price of a GPU second, in any unit. */
  readonly costPerSecond?: number;
  /** GPUs of one worker. */
  readonly gpus?: number;
  readonly label?: string;
}

export function buildQuoting(strategy: FileObject): QuoteRules {
  const live = (strategy["live"] ?? {}) as FileObject;
  return {
    selection: (strategy["selection"] ?? "grid") as SelectionMode,
    quoteDeadlineMs: (live["quote_deadline_ms"] ?? 20) as number,
    refuse: (live["refuse"] ?? false) as boolean,
    rules: {
      lateRule: (live["late_rule"] ?? defaultLive.lateRule) as LateRule,
      latencyShare: (live["latency_share"] ?? defaultLive.latencyShare) as number,
    },
  };
}

/** Metadata by pool index; undefined when the file has none for this role. */
export function buildMetadata(file: FileObject, role: Role): PoolMetadata[] | undefined {
  const list = file[metadataKey(role)] as readonly FileObject[] | undefined;
  return list?.map((entry) => ({
    ...("cost_per_second" in entry && { costPerSecond: entry["cost_per_second"] as number }),
    ...("gpus" in entry && { gpus: entry["gpus"] as number }),
    ...("label" in entry && { label: entry["label"] as string }),
  }));
}

/**
 * Per cell, row-major, where requests of its own pool may go; undefined without fallbacks. `plans`
 * are those of the pools.
 */
export function buildCellPlans(
  strategy: FileObject,
  { role, axes, poolOfCell }: SlaGrid,
  plans: readonly PoolPlan[],
): PoolPlan[] | undefined {
  const fallbacks = strategy[fallbacksKey(role)] as readonly unknown[] | undefined;
  const lists = fallbacks?.flat(axes.length - 1) as readonly (readonly number[])[] | undefined;
  return lists?.map((spillPools, cell) => {
    const selected = poolOfCell[cell] ?? 0;
    const retryPools = plans[selected]?.retryPools ?? [];
    return { selected, retryPools, spillPools, hopsMax: spillPools.length };
  });
}

/** Keys of a strategy's normal form; none while the grid alone decides. */
export function normalQuoting(quoting: QuoteRules): JsonObject {
  const { selection, quoteDeadlineMs, refuse } = quoting;
  if (selection === "grid") return {};
  const { lateRule, latencyShare } = quoting.rules;
  const rules = { late_rule: lateRule, latency_share: latencyShare };
  return { selection, live: { quote_deadline_ms: quoteDeadlineMs, refuse, ...rules } };
}

/** Normal form of metadata, one object per pool. */
export function normalMetadata(metadata: readonly PoolMetadata[]): JsonObject[] {
  return metadata.map(({ costPerSecond, gpus, label }) => ({
    ...(costPerSecond !== undefined && { cost_per_second: costPerSecond }),
    ...(gpus !== undefined && { gpus }),
    ...(label !== undefined && { label }),
  }));
}
