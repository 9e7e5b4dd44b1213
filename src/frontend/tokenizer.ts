/**
 * The tokenizer of one model: text to ids, ids to bytes, messages to text. Reads the Hugging Face
 * files `tokenizer.json` and `tokenizer_config.json` of a byte-level BPE model, the kind whose
 * tokens are bytes, so that decoding needs no look at the neighbours.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { TiergridError } from "../base/errors.ts";

/** The two files, parsed. */
export interface TokenizerFiles {
  readonly tokenizer: {
    readonly model: { readonly type: string; readonly vocab: Readonly<Record<string, number>> };
    readonly added_tokens?: readonly {
      readonly id: number;
      readonly content: string;
      readonly special: boolean;
    }[];
    readonly decoder?: { readonly type: string; readonly decoders?: readonly { type: string }[] };
  };
  readonly config: {
    readonly chat_template?: string;
    readonly eos_token?: string | { readonly content: string };
    readonly bos_token?: string | { readonly content: string };
  };
}

export interface ModelTokenizer {
  readonly files: TokenizerFiles;
  /** Ids lie in [0, vocabularySize). */
  readonly vocabularySize: number;
  readonly eosTokenIds: readonly number[];
  /** Token ids of `text`, without added begin or end tokens; special tokens in it are recognised. */
  encode(text: string): Uint32Array;
  /** Bytes of one token; U+FFFD for an id outside the vocabulary. */
  bytesOf(tokenId: number): Uint8Array;
  isSpecial(tokenId: number): boolean;
  /** Applies the chat template. Throws `invalid_request` when the template refuses the messages. */
  renderChat(variables: Readonly<Record<string, unknown>>): string;
}

/** Folder of the mock model's files. */
export const mockModelFolder: string = fileURLToPath(
  new URL("../../models/mock-model/", import.meta.url),
);

const replacement = new TextEncoder().encode("\ufffd");

/** Loads the tokenizer of a model folder; throws `config_invalid` for other kinds of tokenizers. */
export function loadTokenizer(folder: string): ModelTokenizer {
  const files: TokenizerFiles = {
    tokenizer: readJson(join(folder, "tokenizer.json")) as TokenizerFiles["tokenizer"],
    config: readJson(join(folder, "tokenizer_config.json")) as TokenizerFiles["config"],
  };
  checkByteLevel(files, folder);
  const library = new Tokenizer(files.tokenizer, files.config);
  const { bytes, special } = tokenTable(files);
  const eos = textOf(files.config.eos_token);
  const eosId = eos === undefined ? undefined : library.token_to_id(eos);
  return {
    files,
    vocabularySize: bytes.length,
    eosTokenIds: eosId === undefined ? [] : [eosId],
    encode: (text) => Uint32Array.from(library.encode(text, { add_special_tokens: false }).ids),
    bytesOf: (tokenId) => bytes[tokenId] ?? replacement,
    isSpecial: (tokenId) => special.has(tokenId),
    renderChat: chatRenderer(files),
  };
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new TiergridError("config_invalid", `cannot read ${path}: ${reason}`);
  }
}

function checkByteLevel(files: TokenizerFiles, folder: string): void {
  const { decoder, model } = files.tokenizer;
  const kinds = [decoder, ...(decoder?.decoders ?? [])].map((part) => part?.type);
  if (model.type === "BPE" && kinds.includes("ByteLevel")) return;
  const found = `${model.type} with decoder ${decoder?.type ?? "none"}`;
  throw new TiergridError("config_invalid", `${folder}: expected byte-level BPE, got ${found}`);
}

function textOf(token: string | { readonly content: string } | undefined): string | undefined {
  return typeof token === "object" ? token.content : token;
}

/** Bytes of every id; added tokens stand for their own text. */
function tokenTable({ tokenizer }: TokenizerFiles): { bytes: Uint8Array[]; special: Set<number> } {
  const byteOf = byteLetters();
  const bytes: Uint8Array[] = [];
  const special = new Set<number>();
  for (const [piece, id] of Object.entries(tokenizer.model.vocab)) {
    bytes[id] = Uint8Array.from(piece, (letter) => byteOf.get(letter) ?? 0x3f);
  }
  for (const { id, content, special: isSpecial } of tokenizer.added_tokens ?? []) {
    bytes[id] = new TextEncoder().encode(content);
    if (isSpecial) special.add(id);
  }
  return { bytes, special };
}

/** Byte-level BPE writes bytes as letters: printable Latin-1 as itself, the others from U+0100. */
function byteLetters(): Map<string, number> {
  const letters = new Map<string, number>();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    letters.set(String.fromCodePoint(printable ? byte : next++), byte);
  }
  return letters;
}

function chatRenderer({ config }: TokenizerFiles): ModelTokenizer["renderChat"] {
  const { chat_template } = config;
  if (chat_template === undefined) {
    return () => {
      throw new TiergridError("invalid_request", "this model has no chat template");
    };
  }
  const template = new Template(chat_template);
  const tokens = {
    bos_token: textOf(config.bos_token) ?? "",
    eos_token: textOf(config.eos_token) ?? "",
  };
  return (variables) => {
    try {
      return template.render({ ...tokens, ...variables });
    } catch (error) {
      const reason = error instanceof Error ? error.message.slice(0, 200) : "unknown";
      throw new TiergridError("invalid_request", `the chat template refused: ${reason}`);
    }
  };
}
