/**
 * Worker selection as it is usually written: one object per worker, loads and overlaps in Maps,
 * costs in a fresh array that is sorted (lowest) or summed up (softmax).
 */
import type { Random } from "../../src/base/random.ts";

export interface ObjectWorker {
  readonly id: string;
  readonly taints: ReadonlySet<string>;
}

export interface ObjectPool {
  readonly workers: Map<string, ObjectWorker>;
  readonly loads: Map<string, { prefillTokens: number; activeBlocks: number }>;
}

export interface ObjectQuery {
  readonly islTokens: number;
  readonly blockSize: number;
  readonly overlaps: Map<string, number>;
  readonly temperature: number;
}

/** Id of the chosen worker. */
export function selectWithObjects(pool: ObjectPool, query: ObjectQuery, random: Random): string {
  const { islTokens, blockSize, temperature } = query;
  const scored = [...pool.workers.values()].map((worker) => {
    const load = pool.loads.get(worker.id) ?? { prefillTokens: 0, activeBlocks: 0 };
    const overlap = query.overlaps.get(worker.id) ?? 0;
    const cached = overlap * blockSize;
    const prefill = load.prefillTokens + Math.max(islTokens - cached, 0);
    const decode = load.activeBlocks + Math.ceil(islTokens / blockSize);
    return { id: worker.id, cost: prefill / blockSize + decode };
  });
  if (temperature === 0) {
    scored.sort((a, b) => a.cost - b.cost);
    const tied = scored.filter(({ cost }) => cost === scored[0]!.cost);
    return tied[Math.floor(random() * tied.length)]!.id;
  }
  const costs = scored.map(({ cost }) => cost);
  const min = Math.min(...costs);
  const spread = (Math.max(...costs) - min) * temperature || 1;
  const weights = costs.map((cost) => Math.exp(-(cost - min) / spread));
  let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
  for (const [at, weight] of weights.entries()) {
    left -= weight;
    if (left < 0) return scored[at]!.id;
  }
  return scored.at(-1)!.id;
}
