/**
 * The text of one choice, from engine outputs: detokenized, watched for stop strings. Text that may
 * be the beginning of a stop string is held back until it is known not to be one.
 */
import type { EngineOutput } from "../protocol/stream-frames.ts";
import { Detokenizer } from "./detokenizer.ts";
import type { ModelTokenizer } from "./tokenizer.ts";

export interface AnswerTextOptions {
  readonly tokenizer: ModelTokenizer;
  readonly skipSpecialTokens: boolean;
  readonly stopStrings: readonly string[];
  /** The matched stop string stays in the text. */
  readonly keepStop: boolean;
  /** Stop strings are not looked for before this many tokens. */
  readonly minTokens: number;
}

export interface AnswerPiece {
  readonly text: string;
  readonly tokenIds: readonly number[];
  /** The stop string that ended the answer; what came after it is dropped. */
  readonly stoppedBy: string | undefined;
}

export class AnswerText {
  readonly #options: AnswerTextOptions;
  readonly #detokenizer: Detokenizer;
  /** Shorter than the longest stop string. */
  #held = "";
  #tokens = 0;

  constructor(options: AnswerTextOptions) {
    this.#options = options;
    this.#detokenizer = new Detokenizer(options.tokenizer, options.skipSpecialTokens);
  }

  /** Tokens taken so far, up to and with the one that completed a stop string. */
  get tokens(): number {
    return this.#tokens;
  }

  push(output: EngineOutput): AnswerPiece {
    const { tokenIds } = output;
    if (this.#options.stopStrings.length === 0 || output.text !== undefined) {
      this.#tokens += tokenIds.length;
      const text = output.text ?? this.#detokenizer.push(tokenIds);
      return { ...this.#filter(text), tokenIds };
    }
    // One token at a time, so that tokens after a stop string are not counted.
    let text = "";
    for (const [place, tokenId] of tokenIds.entries()) {
      this.#tokens++;
      const piece = this.#filter(this.#detokenizer.push([tokenId]));
      text += piece.text;
      if (piece.stoppedBy !== undefined) {
        return { text, tokenIds: tokenIds.slice(0, place + 1), stoppedBy: piece.stoppedBy };
      }
    }
    return { text, tokenIds, stoppedBy: undefined };
  }

  /** Text still held when the engine has ended. */
  end(): Omit<AnswerPiece, "tokenIds"> {
    const { text, stoppedBy } = this.#filter(this.#detokenizer.end());
    const held = this.#held;
    this.#held = "";
    return { text: text + held, stoppedBy };
  }

  #filter(added: string): { text: string; stoppedBy: string | undefined } {
    const { stopStrings, keepStop, minTokens } = this.#options;
    const text = this.#held + added;
    if (stopStrings.length === 0 || this.#tokens < minTokens) {
      this.#held = "";
      return { text, stoppedBy: undefined };
    }
    const match = firstMatch(text, stopStrings);
    if (match) {
      this.#held = "";
      const end = keepStop ? match.at + match.stop.length : match.at;
      return { text: text.slice(0, end), stoppedBy: match.stop };
    }
    const heldChars = Math.max(...stopStrings.map((stop) => beginningAtEnd(text, stop)));
    this.#held = text.slice(text.length - heldChars);
    return { text: text.slice(0, text.length - heldChars), stoppedBy: undefined };
  }
}

/** The stop string that is complete first; of several that start together, the longest. */
function firstMatch(
  text: string,
  stopStrings: readonly string[],
): { at: number; stop: string } | undefined {
  let first: { at: number; stop: string } | undefined;
  for (const stop of stopStrings) {
    const at = text.indexOf(stop);
    if (at < 0) continue;
    const earlier = first === undefined || at < first.at;
    if (earlier || (at === first?.at && stop.length > first.stop.length)) first = { at, stop };
  }
  return first;
}

/** Length of the longest end of `text` that is a beginning of `stop`, but not all of it. */
function beginningAtEnd(text: string, stop: string): number {
  for (let chars = Math.min(stop.length - 1, text.length); chars > 0; chars--) {
    if (text.endsWith(stop.slice(0, chars))) return chars;
  }
  return 0;
}
