/** Dynamo's own `lmetric`: uncached prefill blocks times decode blocks, where the paper has requests. */
import { blocksCost, type CostMode } from "../../core/worker-cost.ts";

export const dynamoLmetric: CostMode = {
  ...blocksCost,
  price(input, candidates, count, costs) {
    let nonFinite = 0;
    for (let place = 0; place < count; place++) {
      const terms = blocksCost.termsAt(input, candidates[place] ?? 0, candidates, count);
      if (terms.mode !== "blocks") continue;
      const prefill = Math.max(0, terms.rawPrefillBlocks - terms.overlapCreditBlocks);
      const cost = prefill * (terms.potentialDecodeBlocks + 1);
      costs[place] = cost;
      if (!Number.isFinite(cost)) nonFinite++;
    }
    return nonFinite;
  },
};
