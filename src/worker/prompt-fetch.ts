/**
 * The tokens of a prompt that came as hashes, asked of the request's owner:
 *
 *   worker ──{rid, attempt}──▶ `tiergrid.prompt_from`
 *          ◀──── tokens ──────
 *
 * Messages may be lost, so it asks again, `triesMax` times; while the worker does not hear its own
 * echo, silence and a missing owner prove nothing and no try is counted. The request's deadline
 * and its cancel end the asking through `signal`.
 */
import type { CancelSignal } from "../base/cancel.ts";
import { type Clock, sleep } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { decodePromptAnswer, encodePromptQuestion } from "../protocol/prompt-answer.ts";
import { type Dispatch, islTokensOf } from "../protocol/requests.ts";
import type { Bus } from "../runtime/bus.ts";
import type { EchoGate } from "../runtime/stream-defaults.ts";

export const promptFetch = {
  triesMax: 4,
  /** One try; what fails sooner is tried again when this is over, since an owner may be dialling. */
  tryMs: 1_000,
} as const;

export type FetchedPrompt =
  | { readonly type: "tokens"; readonly tokens: Uint32Array }
  /** The owner is gone, does not know the attempt, or the asking was cancelled. */
  | { readonly type: "unwanted" }
  | { readonly type: "lost"; readonly error: TiergridError };

interface Asker {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly gate: EchoGate;
}

/** Never rejects. */
export async function fetchPrompt(
  asker: Asker,
  { envelope, prompt }: Pick<Dispatch, "envelope" | "prompt">,
  signal: CancelSignal,
): Promise<FetchedPrompt> {
  const { bus, clock, gate } = asker;
  const { promptFrom = "", rid, attempt } = envelope;
  const question = encodePromptQuestion({ rid, attempt });
  let failure = new TiergridError("prompt_lost", "the prompt's owner was not asked");
  for (let tries = 0; tries < promptFetch.triesMax && !signal.aborted; ) {
    const startMs = clock.nowMs();
    try {
      const options = { timeoutMs: promptFetch.tryMs, signal };
      const { payload } = await bus.request(promptFrom, question, options);
      return readAnswer(payload, islTokensOf(prompt));
    } catch (thrown) {
      failure = toTiergridError(thrown);
    }
    if (gate.open) tries += 1;
    await sleep(clock, startMs + promptFetch.tryMs - clock.nowMs(), signal);
  }
  if (signal.aborted || failure.code === "no_responders") return { type: "unwanted" };
  const message = `the owner did not hand out the prompt: ${failure.message}`;
  return { type: "lost", error: new TiergridError("prompt_lost", message) };
}

function readAnswer(payload: Uint8Array, islTokens: number): FetchedPrompt {
  const tokens = decodePromptAnswer(payload);
  if (!tokens) return { type: "unwanted" };
  if (tokens.length === islTokens) return { type: "tokens", tokens };
  const message = `a prompt of ${islTokens} tokens was announced, ${tokens.length} came`;
  return { type: "lost", error: new TiergridError("invalid_request", message) };
}
