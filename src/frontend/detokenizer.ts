/**
 * Token ids to text, a few at a time, for one choice. A character whose bytes are not all there is
 * held back, so the pieces joined are exactly the text of all ids decoded at once.
 */
import type { ModelTokenizer } from "./tokenizer.ts";

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

export class Detokenizer {
  readonly #tokenizer: ModelTokenizer;
  readonly #skipSpecial: boolean;
  /** At most 3 bytes: the start of a character. */
  #held: Uint8Array = new Uint8Array(0);

  constructor(tokenizer: ModelTokenizer, skipSpecial: boolean) {
    this.#tokenizer = tokenizer;
    this.#skipSpecial = skipSpecial;
  }

  /** Text that `tokenIds` complete; may be empty. */
  push(tokenIds: readonly number[]): string {
    const parts: Uint8Array[] = [this.#held];
    for (const tokenId of tokenIds) {
      if (this.#skipSpecial && this.#tokenizer.isSpecial(tokenId)) continue;
      parts.push(this.#tokenizer.bytesOf(tokenId));
    }
    const bytes = Buffer.concat(parts);
    const complete = completeBytes(bytes);
    this.#held = bytes.subarray(complete);
    return decoder.decode(bytes.subarray(0, complete));
  }

  /** Text of the bytes still held: U+FFFD for a character that never came whole. */
  end(): string {
    const text = decoder.decode(this.#held);
    this.#held = new Uint8Array(0);
    return text;
  }
}

/** Bytes before a last character that lacks some of its bytes. */
function completeBytes(bytes: Uint8Array): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] ?? 0;
    if ((byte & 0xc0) === 0x80) continue;
    return characterBytes(byte) > back ? bytes.length - back : bytes.length;
  }
  return bytes.length;
}

/** Length of the UTF-8 character that starts with `byte`. */
function characterBytes(byte: number): number {
  if (byte < 0xc0) return 1;
  if (byte < 0xe0) return 2;
  return byte < 0xf0 ? 3 : 4;
}
