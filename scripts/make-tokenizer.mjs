#!/usr/bin/env node
/**
 * Trains the mock model's byte-level BPE tokenizer and writes it in the Hugging Face file format:
 * `node scripts/make-tokenizer.mjs [folder]` (default `models/mock-model`). Same texts, same files.
 *
 *   ids      0..255 bytes | 256..2044 merges, most frequent first | 2045..2047 special tokens
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const vocabularySize = 2048;
const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const root = resolve(import.meta.dirname, "..");
const texts = ["models/mock-model/corpus.txt", "LICENSE"];
/** How byte-level BPE splits a text before merging. */
const wordForm = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

const chatTemplate = [
  "{% for message in messages %}",
  "{% if continue_final_message and loop.last %}",
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}",
  "{% else %}",
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}",
  "{% endif %}",
  "{% endfor %}",
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
].join("");

const folder = resolve(process.argv[2] ?? join(root, "models/mock-model"));
const letters = byteLetters();
const merges = train(texts.map((path) => readFileSync(join(root, path), "utf8")));
mkdirSync(folder, { recursive: true });
write("tokenizer.json", tokenizerFile());
write("tokenizer_config.json", {
  tokenizer_class: "PreTrainedTokenizerFast",
  model_max_length: 131072,
  eos_token: "<|im_end|>",
  pad_token: "<|endoftext|>",
  clean_up_tokenization_spaces: false,
  chat_template: chatTemplate,
});

function write(name, value) {
  writeFileSync(join(folder, name), `${JSON.stringify(value, null, 2)}\n`);
}

function tokenizerFile() {
  const pieces = [...letters, ...merges.map(([left, right]) => left + right)];
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, place) => ({
      id: pieces.length + place,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { ...byteLevel, use_regex: true },
    post_processor: null,
    decoder: { ...byteLevel, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: "",
      end_of_word_suffix: "",
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: merges.map((pair) => pair.join(" ")),
    },
  };
}

/** Printable stand-in of each byte, as byte-level BPE defines it. */
function byteLetters() {
  const printable = (byte) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(printable(byte) ? byte : next++),
  );
}

/** Merges the most frequent neighbours until the vocabulary is full; ties by code unit order. */
function train(corpus) {
  const counts = new Map();
  for (const text of corpus) {
    for (const [word] of text.matchAll(wordForm)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const words = [...counts].map(([word, count]) => ({
    pieces: [...Buffer.from(word, "utf8")].map((byte) => letters[byte]),
    count,
  }));
  const found = [];
  while (found.length < vocabularySize - letters.length - specialTokens.length) {
    const pair = mostFrequentPair(words, new Set(found.map((merge) => merge.join(""))));
    if (pair === undefined) throw new Error(`the texts give only ${found.length} merges`);
    found.push(pair);
    for (const word of words) word.pieces = merged(word.pieces, pair);
  }
  return found;
}

function mostFrequentPair(words, made) {
  const counts = new Map();
  for (const { pieces, count } of words) {
    for (let at = 1; at < pieces.length; at++) {
      const key = `${pieces[at - 1]} ${pieces[at]}`;
      counts.set(key, (counts.get(key) ?? 0) + count);
    }
  }
  let best;
  for (const [key, count] of counts) {
    // Two ways to one piece would need two ids for the same text.
    if (made.has(key.replace(" ", ""))) continue;
    const wins =
      best === undefined || count > best.count || (count === best.count && key < best.key);
    if (wins) best = { key, count };
  }
  return best?.key.split(" ");
}

function merged(pieces, [left, right]) {
  const result = [];
  for (let at = 0; at < pieces.length; at++) {
    const joins = pieces[at] === left && pieces[at + 1] === right;
    result.push(joins ? left + right : pieces[at]);
    if (joins) at++;
  }
  return result;
}
