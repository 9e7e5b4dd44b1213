import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import {
  decodePromptAnswer,
  encodePromptQuestion,
  promptAnswerBytes,
} from "../../src/protocol/prompt-answer.ts";
import { hashPrompt } from "../../src/protocol/prompt-hashes.ts";
import { encodeReceipt } from "../../src/protocol/receipts.ts";
import { decodeDispatch } from "../../src/protocol/request-frame.ts";
import { attemptNumber, type Dispatch } from "../../src/protocol/requests.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { PromptSource } from "../../src/runtime/prompt-source.ts";
import { createStreamOwner } from "../../src/runtime/stream-owner.ts";

const hasher = await loadBlockHasher();
const blockSize = 16;
const minTokens = 100;
const promptOf = (tokens: number): Uint32Array =>
  Uint32Array.from({ length: tokens }, (_, at) => at);

function startSource() {
  const clock = new ManualClock();
  const network = createMemoryNetwork({ clock, random: mulberry32(1) });
  const [bus, worker] = [network.connect({ role: "fe" }), network.connect({ role: "wk" })];
  const totals = { hashedDispatches: 0, promptsHandedOut: 0 };
  const source = new PromptSource(bus, totals, { hasher, minTokens });
  const ask = async (rid: string, call: number): Promise<Uint32Array | undefined> => {
    const attempt = attemptNumber({ call, global: 1, local: 2 });
    const question = encodePromptQuestion({ rid, attempt });
    const reply = worker.request(source.subject, question, { timeoutMs: 100 });
    await clock.runFor(10);
    return decodePromptAnswer((await reply).payload);
  };
  return { bus, source, totals, ask };
}

const rid = "0123456789abcdef0123456789abcdef";

it("hands a prompt out for the call under way, and for no other or ended one", async () => {
  const { source, totals, ask } = startSource();
  const [first, second] = [promptOf(120), promptOf(130)];
  source.promptFor({ rid, call: 1, body: {}, tokens: first }, blockSize);
  expect(await ask(rid, 1)).toEqual(first);
  expect(await ask(rid, 2)).toBeUndefined();
  expect(await ask("f".repeat(32), 1)).toBeUndefined();
  source.promptFor({ rid, call: 2, body: {}, tokens: second }, blockSize);
  expect(await ask(rid, 1)).toBeUndefined();
  expect(await ask(rid, 2)).toEqual(second);
  expect(totals).toEqual({ hashedDispatches: 2, promptsHandedOut: 2 });
  source.forget(rid);
  expect(await ask(rid, 2)).toBeUndefined();
  expect(source.size).toBe(0);
});

it("hashes as routers do, from the least length on, for hops that say their block size", () => {
  const { source, bus } = startSource();
  const body = { routing: { lora_name: "adapter", cache_salt: "tenant" } };
  const formOf = (tokens: Uint32Array, size: number | undefined, more: object = {}) =>
    source.promptFor({ rid, call: 1, body: { ...body, ...more }, tokens }, size);
  const tokens = promptOf(minTokens);
  const { local: localHashes } = hashPrompt(hasher, body, tokens, blockSize);
  const hashed = { type: "hashes", islTokens: minTokens, blockSize, localHashes };
  expect(formOf(tokens, blockSize)).toEqual(hashed);
  expect(source.size).toBe(1);
  // What goes as tokens is not held.
  expect(formOf(tokens, undefined)).toEqual({ type: "tokens", tokens });
  expect(source.size).toBe(0);
  expect(formOf(promptOf(minTokens - 1), blockSize).type).toBe("tokens");
  // Hashes of 2-token blocks are as large as the tokens.
  expect(formOf(tokens, 2).type).toBe("tokens");
  const media = { mm_routing_info: { routing_token_ids: [1, 2, 3] } };
  expect(formOf(tokens, blockSize, media).type).toBe("tokens");
  expect(formOf(tokens, blockSize, { mm_routing_info: 7 }).type).toBe("tokens");
  const most = (bus.maxPayloadBytes - promptAnswerBytes(0)) / 4;
  expect(formOf(promptOf(most), blockSize).type).toBe("hashes");
  expect(formOf(promptOf(most + 1), blockSize).type).toBe("tokens");
});

it("sends the tokens at once to a hop that wants them, and counts no failure", async () => {
  const clock = new ManualClock();
  const random = mulberry32(1);
  const network = createMemoryNetwork({ clock, random });
  const [bus, hop] = [network.connect({ role: "fe" }), network.connect({ role: "gl" })];
  const promptHashing = { hasher, minTokens };
  const owner = createStreamOwner({ bus, clock, random, promptHashing });
  const seen: Dispatch[] = [];
  const code = { needs: "prompt_needed", refuses: "context_length_exceeded" } as const;
  hop.subscribe("tg.global.g.gen", (message) => {
    const dispatch = decodeDispatch(message, random);
    seen.push(dispatch);
    const refusal = dispatch.prompt.type === "hashes" ? code.needs : code.refuses;
    hop.publish(message.reply!, encodeReceipt({ type: "refused", code: refusal, message: "" }));
  });
  const errors: string[] = [];
  owner.call({
    route: (avoid) =>
      avoid.length > 0
        ? undefined
        : { inst: "g", subject: "tg.global.g.gen", promptHashes: blockSize },
    phase: "aggregated",
    body: {},
    tokens: promptOf(200),
    deadlineMs: 10_000,
    firstTokenTimeoutMs: 5_000,
    migration: { limit: 0, allowed: false },
    sink: {
      onAccepted: () => {},
      onOutput: () => {},
      onEnd: () => {},
      onError: (error) => errors.push(error.code),
    },
  });
  await clock.runFor(10);
  expect(seen.map(({ prompt }) => prompt.type)).toEqual(["hashes", "tokens"]);
  expect(seen.map(({ envelope }) => envelope.promptFrom)).toEqual([
    `${bus.inboxPrefix}.p`,
    undefined,
  ]);
  expect(seen.map(({ envelope }) => envelope.avoid)).toEqual([[], []]);
  expect(errors).toEqual(["context_length_exceeded"]);
  expect(owner.promptsHeld).toBe(0);
  expect(owner.totals).toMatchObject({ dispatches: 2, hashedDispatches: 1, migrations: 0 });
  owner.close();
});
