/** Dynamo's own `lmetric`: uncached prefill blocks times decode blocks, where the paper has requests. */
import { blocksCost, type CostMode } from "../../core/worker-cost.ts";

export const dynamoLmetric: CostMode = {
  ...blocksCost,
  price(input, candidates, count, costs) {
    let nonFinite = 0;
    for (const [place, terms] of blocksCost.terms(input, candidates, count).entries()) {
      if (terms.mode !== "blocks") continue;
      const prefill = Math.max(0, terms.rawPrefillBlocks - terms.overlapCreditBlocks);
      const cost = prefill * (terms.potentialDecodeBlocks + 1);
      costs[place] = cost;
      if (!Number.isFinite(cost)) nonFinite++;
    }
    return nonFinite;
  },
};
