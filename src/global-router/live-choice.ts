/**
 * The live choice: quotes of pools may overrule the grid.
 *
 *   checked   grid's pool ──meets──▶ kept
 *                         └─else──▶ all other ready pools ──▶ best fit of all answers
 *   live      all ready pools ──▶ best fit of all answers
 *
 *   best fit  meets ──▶ that pool
 *             late  ──▶ grid's pool if it is ready and gave no quote, else refuse or the cheapest
 *   no quote  grid's pool
 *
 * The grid is the prior: a pool that said nothing is passed over for one that meets the targets,
 * but not for one that is known to miss them. A choice is made once per request; what follows is
 * the usual loop from the chosen pool.
 */
import { TiergridError, toTiergridError } from "../base/errors.ts";
import {
  bestQuote,
  poolPrices,
  type Quote,
  type QuoteScore,
  type QuoteTargets,
  queueWaitMs,
  scoreQuote,
} from "../core/quote-choice.ts";
import type { LiveRecord, PoolDecision } from "./pool-decision.ts";
import {
  askQuote,
  type QuoteAsker,
  type QuotePrompt,
  type QuoteRecord,
  quoteQuestions,
} from "./pool-quotes.ts";

/** Requests whose quotes are out at one time; one more follows the grid. */
export const quoteRoundsMax = 1024;

export interface LiveChoice {
  /** Decides by quotes; never rejects, and takes two deadlines at most. */
  choose(decision: PoolDecision, prompt: QuotePrompt): Promise<LiveRecord>;
}

/** True when quotes have a say; a priority rule has fixed the pool otherwise. */
export function asksQuotes({ role, selection }: PoolDecision): boolean {
  return role.quoting.selection !== "grid" && selection.override === null;
}

export function createLiveChoice(asker: QuoteAsker): LiveChoice {
  let rounds = 0;
  return {
    async choose(decision, prompt) {
      const startMs = asker.clock.nowMs();
      const targets = targetsOf(decision);
      if (rounds >= quoteRoundsMax) return unasked(targets, "too_many_rounds");
      rounds += 1;
      try {
        const quotes = await askPools(asker, decision, prompt, targets);
        const nowMs = asker.clock.nowMs();
        return settle(asker, decision, targets, quotes.map(freshAt(nowMs)), nowMs - startMs);
      } catch (thrown) {
        return unasked(targets, toTiergridError(thrown).code);
      } finally {
        rounds -= 1;
      }
    },
  };
}

/** Targets of the request's own class, as its grid read them. */
function targetsOf({ selection: { role, axes } }: PoolDecision): QuoteTargets {
  const targetOf = (name: "ttft" | "itl"): number | undefined =>
    axes.find(({ axis }) => axis.name === name)?.value;
  return { role, ttftMs: targetOf("ttft"), itlMs: targetOf("itl") };
}

function unasked(targets: QuoteTargets, why: string): LiveRecord {
  const nothing = { plan: undefined, refusal: undefined };
  return { targets, quotes: [], outcome: "prior", why, tookMs: 0, ...nothing };
}

async function askPools(
  asker: QuoteAsker,
  decision: PoolDecision,
  prompt: QuotePrompt,
  targets: QuoteTargets,
): Promise<readonly QuoteRecord[]> {
  const { role, selection } = decision;
  const { selection: mode, quoteDeadlineMs } = role.quoting;
  const question = quoteQuestions(asker.hasher, prompt, targets);
  const ask = async (pools: readonly number[]): Promise<QuoteRecord[]> => {
    const asked = pools.flatMap((pool) => {
      const live = role.live[pool];
      const ready = live && asker.health.stateOf(live) === "ready";
      return ready ? [askQuote(asker, { pool, live }, question, quoteDeadlineMs)] : [];
    });
    return (await Promise.all(asked)).filter((record) => record !== undefined);
  };
  const all = role.pools.map(({ index }) => index);
  if (mode === "live") return ask(all);
  const own = await ask([selection.gridPool]);
  const [first] = own;
  if (first?.quote && scoreOf(decision, targets, first.pool, first.quote).meets) return own;
  return [...own, ...(await ask(all.filter((pool) => pool !== selection.gridPool)))];
}

/** A quote that waited for others longer than it is valid is none. */
function freshAt(nowMs: number): (record: QuoteRecord) => QuoteRecord {
  return (record) => {
    const { quote, atMs } = record;
    if (!quote || nowMs - atMs <= quote.validForMs) return record;
    return { ...record, outcome: "stale", quote: undefined };
  };
}

function scoreOf(
  { role }: PoolDecision,
  targets: QuoteTargets,
  pool: number,
  quote: Quote,
): QuoteScore {
  const price = poolPrices(role.pools)[pool] ?? { costShare: 1, gpus: undefined };
  return scoreQuote({ quote, price }, targets, role.quoting.rules);
}

function settle(
  { health }: QuoteAsker,
  decision: PoolDecision,
  targets: QuoteTargets,
  records: readonly QuoteRecord[],
  tookMs: number,
): LiveRecord {
  const { role, selection } = decision;
  const { gridPool } = selection;
  const quotes = records.map((record) => {
    const { pool, quote } = record;
    return { ...record, scored: quote && scoreOf(decision, targets, pool, quote) };
  });
  const found = { targets, quotes, why: null, tookMs, plan: undefined, refusal: undefined };
  const usable = quotes.flatMap(({ pool, quote, scored }) =>
    quote && scored ? [{ pool, quote, ...scored }] : [],
  );
  const best = bestQuote(usable, gridPool);
  if (!best) return { ...found, outcome: "prior" };
  const prior = role.live[gridPool];
  const priorQuoted = usable.some(({ pool }) => pool === gridPool);
  const priorMayMeet = !priorQuoted && prior !== undefined && health.stateOf(prior) === "ready";
  if (!best.meets && priorMayMeet) return { ...found, outcome: "prior" };
  if (!best.meets && role.quoting.refuse) {
    const waits = usable.flatMap(({ quote, missed }) =>
      missed.includes("itl") ? [] : (queueWaitMs(quote, targets) ?? []),
    );
    const retryAfterMs = waits.length > 0 ? Math.min(...waits) : undefined;
    const error = unattainable(
      usable.map(({ quote }) => quote),
      targets,
    );
    return { ...found, outcome: "refused", refusal: { error, retryAfterMs, missed: best.missed } };
  }
  if (best.pool === gridPool) return { ...found, outcome: "kept" };
  return { ...found, outcome: "left", plan: role.plans[best.pool] };
}

function unattainable(quotes: readonly Quote[], { ttftMs, itlMs }: QuoteTargets): TiergridError {
  const least = (of: (quote: Quote) => number): number => Math.min(...quotes.map(of));
  const ttft = least(({ predictedTtftMs }) => predictedTtftMs);
  const itl = least(({ predictedItlMs }) => predictedItlMs);
  const words: string[] = [];
  if (ttftMs !== undefined) words.push(`TTFT ${Math.ceil(ttft)} ms for a target of ${ttftMs} ms`);
  if (itlMs !== undefined) words.push(`ITL ${itl.toFixed(1)} ms for a target of ${itlMs} ms`);
  const message = `no pool can meet the latency targets; at best ${words.join(", ")}`;
  return new TiergridError("sla_unattainable", message, {
    ...(ttftMs !== undefined && { best_ttft_ms: ttft }),
    ...(itlMs !== undefined && { best_itl_ms: itl }),
  });
}
