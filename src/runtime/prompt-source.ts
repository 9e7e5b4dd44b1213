/**
 * The prompts of one owner that went out as hashes, for the workers that ask for their tokens:
 *
 *   owner ──hashes──▶ routers ──hashes──▶ worker
 *     ▲ ◀──────────{rid, attempt}───────────┘
 *     └──────────────tokens────────────────▶
 *
 * Invariants
 *   - A prompt is held from its dispatch to the end of its call, and then no more; there is one per
 *     open call at most.
 *   - It is handed out for attempts of the call that is under way: after a migration that is the
 *     prompt and the tokens so far.
 */
import type { BlockHasher } from "../protocol/block-hashes.ts";
import {
  decodePromptQuestion,
  encodePromptAnswer,
  promptAnswerBytes,
} from "../protocol/prompt-answer.ts";
import { hashPrompt } from "../protocol/prompt-hashes.ts";
import { attemptParts, type Prompt, type RequestBody } from "../protocol/requests.ts";
import type { Bus, BusMessage, Subscription } from "./bus.ts";

/** Shorter prompts cost the routers less than the question for them costs owner and worker. */
export const hashFirstMinTokens = 4_096;

export interface PromptHashing {
  readonly hasher: Pick<BlockHasher, "hashBlocks">;
  /** Prompts below that travel as tokens. */
  readonly minTokens: number;
}

export interface PromptTotals {
  /** Dispatches whose prompt went as hashes. */
  hashedDispatches: number;
  promptsHandedOut: number;
}

/** One dispatch of a call, with its whole prompt. */
export interface PromptCall {
  readonly rid: string;
  readonly call: number;
  readonly body: RequestBody;
  readonly tokens: Uint32Array;
}

interface HeldPrompt {
  readonly call: number;
  readonly tokens: Uint32Array;
}

export class PromptSource {
  /** Where workers ask. */
  readonly subject: string;
  readonly #bus: Bus;
  readonly #totals: PromptTotals;
  readonly #hashing: PromptHashing | undefined;
  readonly #held = new Map<string, HeldPrompt>();
  readonly #subscription: Subscription | undefined;

  constructor(bus: Bus, totals: PromptTotals, hashing: PromptHashing | undefined) {
    this.#bus = bus;
    this.#totals = totals;
    this.#hashing = hashing;
    this.subject = `${bus.inboxPrefix}.p`;
    this.#subscription = hashing && bus.subscribe(this.subject, (message) => this.#answer(message));
  }

  /** Prompts held. */
  get size(): number {
    return this.#held.size;
  }

  /**
   * The prompt as it travels to a hop that takes hashes of `blockSize`-token blocks; tokens where
   * those are asked for (`undefined`), shorter, or would not fit into one message when asked for.
   */
  promptFor(call: PromptCall, blockSize: number | undefined): Prompt {
    const { rid, tokens } = call;
    const hashed = blockSize === undefined ? undefined : this.#hash(call, blockSize);
    if (!hashed) {
      this.#held.delete(rid);
      return { type: "tokens", tokens };
    }
    this.#held.set(rid, { call: call.call, tokens });
    this.#totals.hashedDispatches += 1;
    return hashed;
  }

  /** The call is over. */
  forget(rid: string): void {
    this.#held.delete(rid);
  }

  close(): void {
    this.#subscription?.unsubscribe();
    this.#held.clear();
  }

  #hash({ body, tokens }: PromptCall, blockSize: number): Prompt | undefined {
    if (!this.#hashing || tokens.length < this.#hashing.minTokens) return undefined;
    if (promptAnswerBytes(tokens.length) > this.#bus.maxPayloadBytes) return undefined;
    try {
      const { islTokens, local } = hashPrompt(this.#hashing.hasher, body, tokens, blockSize);
      // Routing sees other tokens than the engine where media are expanded.
      if (islTokens !== tokens.length || local.length >= tokens.length) return undefined;
      return { type: "hashes", islTokens, blockSize, localHashes: local };
    } catch {
      // The router says what is wrong with the fields that enter the hashes.
      return undefined;
    }
  }

  #answer({ payload, reply }: BusMessage): void {
    if (reply === undefined) return;
    try {
      const { rid, attempt } = decodePromptQuestion(payload);
      const held = this.#held.get(rid);
      const tokens = held?.call === attemptParts(attempt).call ? held.tokens : undefined;
      this.#bus.publish(reply, encodePromptAnswer(tokens));
      if (tokens) this.#totals.promptsHandedOut += 1;
    } catch {
      // Not a question, or a full bus: a worker without an answer asks again.
    }
  }
}
