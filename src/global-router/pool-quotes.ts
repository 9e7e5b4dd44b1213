/**
 * Asking pools for quotes: one question per pool, to one local router of it, with the prompt as
 * hashes.
 *
 *   prompt ──hash per block size──▶ question ──tg.local.<inst>.best_worker_id──▶ QuoteRecord
 *
 * A record says what came of the question, whatever that was: asking never fails.
 */
import type { Clock } from "../base/clock.ts";
import { isErrorCode, TiergridError, toTiergridError } from "../base/errors.ts";
import type { Quote, QuoteTargets } from "../core/quote-choice.ts";
import type { BlockHasher } from "../protocol/block-hashes.ts";
import { encodeHashQuestion } from "../protocol/hash-frame.ts";
import { hashPrompt } from "../protocol/prompt-hashes.ts";
import { isObject } from "../protocol/request-body.ts";
import type { HashedPrompt, Prompt, RequestBody, RoutedBody } from "../protocol/requests.ts";
import { askSubject } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import type { LivePool, PoolHealth } from "./pool-health.ts";

/** `disabled`: the pool's router does not predict. `stale`: it came, but no longer counted. */
export type QuoteOutcome = "answered" | "late" | "failed" | "disabled" | "stale";

/** What came of asking one pool. */
export interface QuoteRecord {
  readonly pool: number;
  /** Instance of the local router that was asked. */
  readonly router: string;
  readonly outcome: QuoteOutcome;
  /** Code of the error, where there was one. */
  readonly why: string | null;
  readonly tookMs: number;
  readonly atMs: number;
  readonly quote: Quote | undefined;
}

export interface QuoteAsker {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly health: PoolHealth;
  readonly hasher: BlockHasher;
}

export interface QuotePrompt {
  readonly body: RoutedBody;
  readonly prompt: Prompt;
}

/** Makes the questions of one request; those of pools with one block size share their bytes. */
export function quoteQuestions(
  hasher: BlockHasher,
  { body, prompt }: QuotePrompt,
  targets: QuoteTargets,
): (blockSize: number) => Uint8Array {
  const made = new Map<number, Uint8Array>();
  const asked = questionBody(body, targets);
  return (blockSize) => {
    const known = made.get(blockSize);
    if (known) return known;
    if (blockSize <= 0) throw new TiergridError("not_ready", "the pool names no block size");
    const { islTokens, localHashes } = hashesOf(hasher, { body, prompt }, blockSize);
    const question = encodeHashQuestion({ body: asked, islTokens, blockSize, localHashes });
    made.set(blockSize, question);
    return question;
  };
}

/** Throws `prompt_needed` when the prompt came as hashes of other blocks. */
function hashesOf(
  hasher: BlockHasher,
  { body, prompt }: QuotePrompt,
  blockSize: number,
): Pick<HashedPrompt, "islTokens" | "localHashes"> {
  if (prompt.type === "tokens") {
    const { islTokens, local: localHashes } = hashPrompt(hasher, body, prompt.tokens, blockSize);
    return { islTokens, localHashes };
  }
  if (prompt.blockSize === blockSize) return prompt;
  const message = `hashes of ${prompt.blockSize}-token blocks, the pool has ${blockSize}`;
  throw new TiergridError("prompt_needed", message);
}

/** Asks one pool; resolves within `deadlineMs`, undefined when no router of it can be asked. */
export async function askQuote(
  { bus, clock, health }: QuoteAsker,
  { pool, live }: { readonly pool: number; readonly live: LivePool },
  question: (blockSize: number) => Uint8Array,
  deadlineMs: number,
): Promise<QuoteRecord | undefined> {
  const router = health.pickRouter(live, []);
  const card = live.routers.find(({ card: { inst } }) => inst === router)?.card;
  if (!card) return undefined;
  const { inst, blockSize } = card;
  const startMs = clock.nowMs();
  const record = (outcome: QuoteOutcome, why: string | null, quote?: Quote): QuoteRecord => {
    const atMs = clock.nowMs();
    return { pool, router: inst, outcome, why, tookMs: atMs - startMs, atMs, quote };
  };
  try {
    const subject = askSubject("local", inst, "best_worker_id");
    const reply = await bus.request(subject, question(blockSize), { timeoutMs: deadlineMs });
    return record("answered", null, quoteOf(parsed(reply.payload)));
  } catch (thrown) {
    const { code } = toTiergridError(thrown);
    if (code === "not_implemented") return record("disabled", code);
    return record(code === "request_timeout" ? "late" : "failed", code);
  }
}

/** What the choice of a worker depends on, and what is asked; the prompt is in the hashes. */
function questionBody(body: RoutedBody, { ttftMs, itlMs }: QuoteTargets): RequestBody {
  const { routing, router_config_override, dp_rank } = body;
  return {
    ...(routing && { routing }),
    ...(router_config_override && { router_config_override }),
    ...(dp_rank !== undefined && { dp_rank }),
    quote: {
      ...(ttftMs !== undefined && { ttft_target_ms: Math.max(0, ttftMs) }),
      ...(itlMs !== undefined && { itl_target_ms: Math.max(0, itlMs) }),
    },
  };
}

/** Reads an answer; throws the error it carries, or `malformed_reply` saying what is missing. */
export function quoteOf(answer: Readonly<Record<string, unknown>>): Quote {
  const error = answer["error"];
  if (isObject(error)) throw errorOf(error);
  const quote = isObject(answer["quote"]) ? answer["quote"] : {};
  const number = (name: string, min: number): number => {
    const value = quote[name];
    if (typeof value === "number" && Number.isFinite(value) && value >= min) return value;
    throw new TiergridError("malformed_reply", `a quote's ${name} must be a number >= ${min}`);
  };
  return {
    predictedTtftMs: number("predicted_ttft_ms", 0),
    predictedItlMs: number("predicted_itl_ms", 0),
    queueMs: number("queue_ms", 0),
    cachedTokens: number("cached_tokens", 0),
    prefillGpuMs: number("prefill_gpu_ms", 0),
    decodeGpuMs: number("decode_gpu_ms", 0),
    gpus: number("gpus", Number.MIN_VALUE),
    // Routers that plan no queue do not say.
    breaksPromise: quote["breaks_promise"] === true,
    validForMs: number("valid_for_ms", 0),
  };
}

function parsed(payload: Uint8Array): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(payload));
    if (isObject(value)) return value;
  } catch {
    // The error below says what was expected.
  }
  throw new TiergridError("malformed_reply", "a quote must be a JSON object");
}

function errorOf({ code, message }: Readonly<Record<string, unknown>>): TiergridError {
  return new TiergridError(isErrorCode(code) ? code : "malformed_reply", String(message));
}
