/**
 * Choices of a pool in a replay. `checked` and `live` are the global router's: its scores over quotes
 * of the pools' routers, the grid as prior. The others are what they are compared with.
 *
 *   single          pool 0
 *   random          any pool
 *   least-utilised  fewest requests per GPU
 *   least-latency   lowest predicted latency, whatever it costs
 *   grid            the grid's pool
 *   checked, live   `global-router/live-choice.ts`
 */
import type { Random } from "../../base/random.ts";
import {
  bestQuote,
  defaultLive,
  plainLive,
  poolPrices,
  type QuoteScore,
  type QuoteTargets,
  scoreQuote,
} from "../../core/quote-choice.ts";
import type { LayoutPool, Selector } from "./pools-file.ts";
import type { PoolPick } from "./replay.ts";
import type { ReplayArrival, ReplayRouter } from "./replay-router.ts";

export interface PoolChoiceInput {
  readonly pools: readonly LayoutPool[];
  readonly selector: Selector;
  /** Pool of each request by the grid. */
  readonly prior: Int32Array;
  readonly targetsOf: (place: number) => QuoteTargets;
  readonly random: Random;
}

export type PickPool = (
  place: number,
  arrival: ReplayArrival,
  routers: readonly ReplayRouter[],
) => PoolPick;

export function poolChoice(input: PoolChoiceInput): PickPool {
  const { pools, selector, prior, random } = input;
  switch (selector.type) {
    case "single":
      return () => ({ pool: 0 });
    case "random":
      return () => ({ pool: Math.floor(random() * pools.length) });
    case "least-utilised":
      return (_place, _arrival, routers) => ({
        pool: lowest(
          pools,
          (pool, at) => (routers[at]?.inFlight ?? 0) / (pool.workers * pool.gpus),
        ),
      });
    case "least-latency":
      return (_place, arrival, routers) => ({
        pool: lowest(pools, (_pool, at) => latencyOf(input, arrival, routers[at])),
      });
    case "grid":
      return (place) => ({ pool: prior[place] ?? 0 });
    case "checked":
    case "live":
      return liveChoice(input);
  }
}

function lowest(
  pools: readonly LayoutPool[],
  score: (pool: LayoutPool, at: number) => number,
): number {
  const scores = pools.map(score);
  return scores.indexOf(Math.min(...scores));
}

function latencyOf(
  { targetsOf }: PoolChoiceInput,
  arrival: ReplayArrival,
  router: ReplayRouter | undefined,
): number {
  if (!router) return Number.POSITIVE_INFINITY;
  const { predictedItlMs, predictedTtftMs } = router.quote(arrival);
  return targetsOf(0).role === "decode" ? predictedItlMs : predictedTtftMs;
}

interface Asked extends QuoteScore {
  readonly pool: number;
}

/** Quotes under the request's targets; the worker then has to fit the same target. */
function liveChoice(input: PoolChoiceInput): PickPool {
  const { pools, selector, prior, targetsOf, random } = input;
  const prices = poolPrices(pools.map(({ costPerSecond }) => ({ costPerSecond })));
  const all = [...pools.keys()];
  const rules = selector.plainFit ? plainLive : defaultLive;
  return (place, arrival, routers) => {
    const targets = targetsOf(place);
    const fitTargetMs = targets.role === "decode" ? targets.itlMs : targets.ttftMs;
    const question = { ...arrival, fitTargetMs };
    const ask = (asked: readonly number[]): Asked[] =>
      asked.flatMap((pool) => {
        const price = prices[pool];
        const router = routers[pool];
        if (!price || !router || random() < selector.quoteLoss) return [];
        return [{ pool, ...scoreQuote({ quote: router.quote(question), price }, targets, rules) }];
      });
    const gridPool = prior[place] ?? 0;
    if (selector.type === "live") return { pool: settled(ask(all), gridPool), fitTargetMs };
    const own = ask([gridPool]);
    if (own[0]?.meets) return { pool: gridPool, fitTargetMs };
    const others = ask(all.filter((pool) => pool !== gridPool));
    return { pool: settled([...own, ...others], gridPool), fitTargetMs };
  };
}

/** A prior that said nothing goes before a pool that is known to be late. */
function settled(asked: readonly Asked[], gridPool: number): number {
  const best = bestQuote(asked, gridPool);
  if (!best) return gridPool;
  const priorMayMeet = !asked.some(({ pool }) => pool === gridPool);
  return !best.meets && priorMayMeet ? gridPool : best.pool;
}
