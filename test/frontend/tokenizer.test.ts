import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { Detokenizer } from "../../src/frontend/detokenizer.ts";
import { loadTokenizer, mockModelFolder } from "../../src/frontend/tokenizer.ts";
import {
  createTextEncoding,
  inlineCharsMax,
  jobsMax,
} from "../../src/frontend/tokenizer-thread.ts";

const tokenizer = loadTokenizer(mockModelFolder);
const root = join(import.meta.dirname, "../..");

it("is made of the texts in the repository, byte for byte", () => {
  const folder = mkdtempSync(join(tmpdir(), "tokenizer-"));
  try {
    const script = join(root, "scripts/make-tokenizer.mjs");
    expect(spawnSync(process.execPath, [script, folder], { encoding: "utf8" }).stderr).toBe("");
    for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
      const made = readFileSync(join(folder, name), "utf8");
      expect(made === readFileSync(join(mockModelFolder, name), "utf8")).toBe(true);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

it("has 2,048 ids of which the first 256 are the bytes", () => {
  expect(tokenizer.vocabularySize).toBe(2048);
  for (let byte = 0; byte < 256; byte++) expect([...tokenizer.bytesOf(byte)]).toEqual([byte]);
  expect([2044, 2045, 2046, 2047].map((id) => tokenizer.isSpecial(id))).toEqual([
    false,
    true,
    true,
    true,
  ]);
  expect(tokenizer.eosTokenIds).toEqual([2047]);
});

it("gives any well-formed text back", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      const detokenizer = new Detokenizer(tokenizer, false);
      const ids = [...tokenizer.encode(text)];
      expect(detokenizer.push(ids) + detokenizer.end()).toBe(text);
    }),
  );
});

it("decodes any ids, cut anywhere, to the text of all their bytes", () => {
  const anyIds = fc.array(fc.oneof(fc.nat(255), fc.nat(2100)), { maxLength: 60 });
  fc.assert(
    fc.property(anyIds, fc.infiniteStream(fc.integer({ min: 1, max: 4 })), (ids, cuts) => {
      const bytes = Buffer.concat(ids.map((id) => tokenizer.bytesOf(id)));
      const whole = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
      const detokenizer = new Detokenizer(tokenizer, false);
      let text = "";
      for (let at = 0; at < ids.length; ) {
        const count = cuts.next().value ?? 1;
        const piece = detokenizer.push(ids.slice(at, at + count));
        expect(whole.startsWith(text + piece)).toBe(true);
        text += piece;
        at += count;
      }
      expect(text + detokenizer.end()).toBe(whole);
    }),
    { numRuns: 2000 },
  );
});

it("holds a character back until its last byte came", () => {
  const detokenizer = new Detokenizer(tokenizer, true);
  const pieces = [...Buffer.from("a😀b")].map((byte) => detokenizer.push([byte]));
  expect(pieces).toEqual(["a", "", "", "", "😀", "b"]);
});

it("leaves special tokens out of the text when asked to", () => {
  const ids = [...tokenizer.encode("<|im_start|>hi<|im_end|>")];
  expect(ids).toContain(2046);
  expect(new Detokenizer(tokenizer, true).push(ids)).toBe("hi");
  expect(new Detokenizer(tokenizer, false).push(ids)).toBe("<|im_start|>hi<|im_end|>");
});

it("renders the chat template and reports what it refuses", () => {
  const messages = [{ role: "user", content: "hi" }];
  expect(tokenizer.renderChat({ messages, add_generation_prompt: true })).toBe(
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
  );
  expect(tokenizer.renderChat({ messages, continue_final_message: true })).toBe(
    "<|im_start|>user\nhi",
  );
});

const noSignal = new AbortController().signal;
const longText = readFileSync(join(mockModelFolder, "corpus.txt"), "utf8").repeat(8);

it("tokenizes a long text on a thread, to the same ids, while the event loop turns", async () => {
  const encoding = createTextEncoding(tokenizer, realClock);
  try {
    expect(longText.length).toBeGreaterThan(inlineCharsMax);
    let turns = 0;
    let waiting = true;
    const turn = (): void => {
      turns++;
      if (waiting) setImmediate(turn);
    };
    turn();
    const ids = await encoding.encode(longText, noSignal);
    waiting = false;
    expect(turns).toBeGreaterThan(3);
    expect(ids).toEqual(tokenizer.encode(longText));
  } finally {
    await encoding.close();
  }
});

it("hands short texts over too when their request has many of them", async () => {
  const encoding = createTextEncoding(tokenizer, realClock);
  const inline = encoding.encode("a b", noSignal);
  const handedOver = encoding.encode("a b", noSignal, inlineCharsMax + 1);
  const first = await Promise.race([handedOver.then(() => "thread"), inline.then(() => "inline")]);
  expect(first).toBe("inline");
  expect(await handedOver).toEqual(await inline);
  await encoding.close();
});

it("takes as many waiting texts as its queue holds, and one leaves when its caller does", async () => {
  const encoding = createTextEncoding(tokenizer, realClock);
  const text = "x ".repeat(inlineCharsMax);
  const left = new AbortController();
  const jobs = Array.from({ length: jobsMax - 1 }, () => encoding.encode(text, noSignal));
  const leaving = encoding.encode(text, left.signal);
  const settled = Promise.allSettled(jobs);
  await expect(encoding.encode(text, noSignal)).rejects.toMatchObject({ code: "overloaded" });
  left.abort();
  await expect(leaving).rejects.toMatchObject({ code: "cancelled" });
  const next = encoding.encode(text, noSignal);
  const nextSettled = Promise.allSettled([next]);
  await encoding.close();
  expect((await settled).length).toBe(jobsMax - 1);
  expect((await nextSettled)[0]?.status).toBe("rejected");
  await expect(encoding.encode(text, noSignal)).rejects.toMatchObject({
    code: "subscriber_shutdown",
  });
});
