/** A worker choice as people and the global router read it: snake_case, ids as decimal strings. */

import type { Choice } from "../core/choice.ts";
import type { CostTerms } from "../core/cost-terms.ts";
import type { Decision, DecisionCandidate } from "../core/decision-record.ts";
import { softmaxWeights } from "../core/worker-pick.ts";

/** The second tier's part of an explanation. */
export function decisionJson(decision: Decision): Record<string, unknown> {
  const chances = probabilities(decision);
  return {
    policy: decision.policy,
    cost_mode: decision.costMode,
    ...(decision.fitTargetMs === undefined ? {} : { fit_target_ms: decision.fitTargetMs }),
    temperature: decision.temperature,
    isl_tokens: decision.islTokens,
    required_blocks: decision.requiredBlocks,
    candidates: decision.candidates.map((candidate, at) => ({
      ...candidateJson(candidate),
      ...(chances ? { probability: chances[at] } : {}),
    })),
    ...(decision.leftOut > 0 ? { left_out: decision.leftOut } : {}),
    lowest_cost: decision.lowestCost,
    tie_break: { tied: decision.tiedAtLowest, seed: "random" },
    ...choiceJson(decision.choice),
  };
}

function candidateJson(candidate: DecisionCandidate): Record<string, unknown> {
  const { terms, whyNot } = candidate;
  return {
    worker_id: candidate.workerId,
    dp_rank: candidate.dpRank,
    eligible: whyNot === null,
    why_not: whyNot,
    overlap_blocks: candidate.overlapBlocks,
    cached_tokens: candidate.cachedTokens,
    potential_prefill_tokens: candidate.potentialPrefillTokens,
    potential_decode_blocks: candidate.potentialDecodeBlocks,
    active_requests: candidate.activeRequests,
    cost: terms ? terms.cost : null,
    terms: terms && termsJson(terms),
  };
}

function termsJson(terms: CostTerms): Record<string, number> {
  switch (terms.mode) {
    case "blocks":
      return {
        raw_prefill_blocks: terms.rawPrefillBlocks,
        credit_decay: terms.creditDecay,
        overlap_credit_blocks: terms.overlapCreditBlocks,
        potential_decode_blocks: terms.potentialDecodeBlocks,
        active_request_term: terms.activeRequestTerm,
        taint_factor: terms.taintFactor,
      };
    case "latency":
      return {
        uncached_tokens: terms.uncachedTokens,
        head_progress_tokens: terms.progressTokens,
        queued_tokens: terms.queuedTokens,
        passes: terms.passes,
        prefill_ms: terms.prefillMs,
        own_prefill_ms: terms.ownPrefillMs,
        tier_ms: terms.tierMs,
        decode_step_ms: terms.decodeStepMs,
        decode_step_with_request_ms: terms.itlMs,
        predicted_ttft_ms: terms.ttftMs,
        prefill_delay_ms: terms.delayMs,
        decode_harm_ms: terms.harmMs,
        kv_penalty_ms: terms.fullMs,
        taint_factor: terms.taintFactor,
        front_gpu_ms: terms.frontGpuMs,
        breaks_promise: terms.breaksPromise ? 1 : 0,
        held_ms: terms.heldMs,
        cost_ms: terms.costMs,
      };
  }
}

function choiceJson(choice: Choice): Record<string, unknown> {
  if (choice.outcome === "refused") return { chosen: null, refused: choice.code };
  return {
    chosen: {
      worker_id: choice.workerId,
      dp_rank: choice.dpRank,
      overlap_blocks: choice.overlapBlocks,
      cached_tokens: choice.cachedTokens,
      cost: choice.cost,
    },
    refused: null,
  };
}

/** Chance of each candidate under softmax; undefined where none is sampled. */
function probabilities(decision: Decision): number[] | undefined {
  const { candidates, policy, temperature, fitTargetMs } = decision;
  if (policy !== "blocks" || temperature === 0 || fitTargetMs !== undefined) return undefined;
  const costs = Float64Array.from(candidates, ({ terms }) => terms?.cost ?? Number.NaN);
  const weights = new Float64Array(costs.length);
  const total = softmaxWeights(costs, costs.length, temperature, weights);
  return Array.from(weights, (weight) => (total > 0 ? weight / total : 0));
}
