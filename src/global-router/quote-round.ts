/**
 * The live choice inside the attempt loop: the request waits for its quotes without holding anybody
 * up, and is then planned like any other.
 *
 *   plan ──▶ start ──▶ wait(woken) ──quotes──▶ takeLive ──▶ plan
 */
import { CancelSwitch } from "../base/cancel.ts";
import type { RoutedBody } from "../protocol/requests.ts";
import type { Plan } from "../runtime/dispatch-policy.ts";
import { asksQuotes, type LiveChoice } from "./live-choice.ts";
import { type PoolDecision, takeLive } from "./pool-decision.ts";
import type { QuotePrompt } from "./pool-quotes.ts";
import { countLive, type RequestSeries } from "./request-series.ts";

export interface RoundContext {
  readonly live: LiveChoice;
  readonly series: RequestSeries;
}

/** How long a plan waits before it looks again whether the round is over. */
const lookAgainMs = 1000;

/** A request's round of quotes; it aborts when they are in. */
export interface QuoteRound {
  woken: CancelSwitch | undefined;
}

/** The wait for a request's quotes; undefined when there is nothing (more) to wait for. */
export function waitForQuotes(
  { live, series }: RoundContext,
  round: QuoteRound,
  decision: PoolDecision,
  prompt: QuotePrompt,
): Plan | undefined {
  if (decision.live || !asksQuotes(decision)) return undefined;
  if (!round.woken) {
    const woken = new CancelSwitch();
    round.woken = woken;
    // Never rejects; the plan that waits is woken by it.
    void live.choose(decision, prompt).then((record) => {
      takeLive(decision, record);
      countLive(series, decision, record);
      woken.abort();
    });
  }
  return { type: "wait", waitMs: lookAgainMs, woken: round.woken };
}

/** The body for the next hop: where quotes decided, its choice follows the same rule. */
export function quotedBody<Body extends RoutedBody>(body: Body, { live }: PoolDecision): Body {
  if (live?.outcome !== "kept" && live?.outcome !== "left") return body;
  const { ttftMs, itlMs } = live.targets;
  const router = {
    ...body.router,
    ...(ttftMs !== undefined && { ttft_target: ttftMs }),
    ...(itlMs !== undefined && { itl_target: itlMs }),
    best_fit: true,
  };
  return { ...body, router };
}
