import fc from "fast-check";
import { expect, it } from "vitest";
import { TiergridError } from "../../src/base/errors.ts";
import {
  BundleWriter,
  bundleBytesMax,
  readBundle,
  recordTokensMax,
} from "../../src/protocol/stream-bundle.ts";
import {
  acksPerMessageMax,
  decodeControl,
  decodeControlReply,
  encodeControl,
  encodeControlReply,
} from "../../src/protocol/stream-control.ts";
import type { ControlMessage, StreamFrame } from "../../src/protocol/stream-frames.ts";
import { decodeJsonFrame, encodeJsonFrame } from "../../src/protocol/stream-json.ts";
import { encodeStreamFrame } from "../../src/protocol/stream-message.ts";

const rid = "0123456789abcdef0123456789abcdef";
const u32 = fc.integer({ min: 0, max: 0xffffffff });
const attempt = u32;
const params = fc.constantFrom(undefined, { room: 1, nested: ["é", null] }, "opaque");
const output = fc
  .record({
    tokenIds: fc.array(u32, { minLength: 1, maxLength: 6 }),
    text: fc.option(fc.string({ unit: "binary" }), { nil: undefined }),
    disaggregatedParams: params,
    extra: fc.constantFrom(undefined, { log_probs: [-0.5], cum_log_probs: -1 }),
  })
  .map(present);

const anyFrame: fc.Arbitrary<StreamFrame> = fc.oneof(
  fc.record({ type: fc.constant("tokens"), attempt, first: u32, output }),
  fc.record({
    type: fc.constant("heartbeat"),
    attempt,
    next: u32,
    phase: fc.constantFrom("queued", "prefill", "decode"),
  }),
  fc.record({
    type: fc.constant("accepted"),
    attempt,
    epoch: fc.string(),
    inst: fc.string(),
    control: fc.constant("tg.w.w1.ctl"),
    notify: fc.array(fc.string()),
    workerId: fc.string(),
    dpRank: fc.nat(),
    decisions: fc.constantFrom([], [{ tier: "local", decision_id: "d", role: "decode" }]),
  }),
  fc
    .record({
      type: fc.constant("end"),
      attempt,
      total: u32,
      finishReason: fc.constantFrom("eos", "stop", "length", "cancelled", "content_filter"),
      stopReason: fc.constantFrom(undefined, "###", 42),
      usage: fc.constantFrom(undefined, {
        prompt_tokens: 3,
        completion_tokens: 4,
        prompt_tokens_details: { cached_tokens: 2 },
      }),
      rest: fc.constantFrom(undefined, { tokenIds: [], text: "…" }),
    })
    .map(present),
  fc.record({
    type: fc.constant("error"),
    attempt,
    code: fc.constantFrom("engine_error", "resume_lost", "overloaded"),
    message: fc.string(),
    retryable: fc.boolean(),
    started: fc.boolean(),
  }),
) as fc.Arbitrary<StreamFrame>;

function present<Fields extends object>(fields: Fields): Fields {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  ) as Fields;
}

interface Keyed {
  readonly key: number;
  readonly frame: StreamFrame;
}

function readAll(payload: Uint8Array): Keyed[] {
  const found: Keyed[] = [];
  readBundle(payload, (key, frame) => found.push({ key, frame }));
  return found;
}

function bundlesOf(writer: BundleWriter, frames: readonly Keyed[]): Uint8Array[] {
  const messages: Uint8Array[] = [];
  for (const { key, frame } of frames) {
    if (writer.add(key, frame)) continue;
    messages.push(writer.take());
    expect(writer.add(key, frame)).toBe(true);
  }
  if (!writer.empty) messages.push(writer.take());
  return messages;
}

it("reads back every JSON frame", () => {
  fc.assert(
    fc.property(anyFrame, (frame) => {
      expect(decodeJsonFrame(encodeJsonFrame(rid, frame))).toEqual({ rid, frame });
    }),
  );
});

it("reads back every bundle in order, at any byte offset, from a writer that is used again", () => {
  const writer = new BundleWriter("epoch");
  const records = fc.array(fc.record({ key: u32, frame: anyFrame }), { minLength: 1 });
  let previous: { readonly message: Uint8Array; readonly copy: Uint8Array } | undefined;
  fc.assert(
    fc.property(records, fc.nat({ max: 5 }), (frames, by) => {
      const [message, ...more] = bundlesOf(writer, frames);
      expect(more).toEqual([]);
      const moved = new Uint8Array(message!.length + by);
      moved.set(message!, by);
      expect(readAll(moved.subarray(by))).toEqual(frames);
      expect(previous?.message).toEqual(previous?.copy);
      previous = { message: message!, copy: message!.slice() };
    }),
  );
});

it("splits a step between records at 64 KB, and sends a larger record alone", () => {
  const tokens = (first: number, count: number): Keyed => ({
    key: 7,
    frame: { type: "tokens", attempt: 1, first, output: { tokenIds: Array(count).fill(5) } },
  });
  const room = (bundleBytesMax - 12) / 4;
  const full = tokens(0, room - 4);
  expect(bundlesOf(new BundleWriter("e"), [full]).map((m) => m.length)).toEqual([bundleBytesMax]);
  const over = [tokens(0, 1), tokens(1, room - 4), tokens(9, recordTokensMax), tokens(10, 1)];
  const messages = bundlesOf(new BundleWriter("e"), over);
  expect(messages.map((m) => m.length)).toEqual([32, bundleBytesMax, 28 + 4 * 65_535, 32]);
  expect(messages.flatMap(readAll)).toEqual(over);
  expect(() => new BundleWriter("e").add(1, tokens(0, recordTokensMax + 1).frame)).toThrow("65535");
});

it("gives only malformed_reply for hostile bytes", () => {
  const writer = new BundleWriter("e");
  const frames = fc.sample(fc.record({ key: u32, frame: anyFrame }), { seed: 3, numRuns: 12 });
  const [bundle] = bundlesOf(writer, frames);
  const change = fc.tuple(fc.nat({ max: bundle!.length - 1 }), fc.nat({ max: 255 }));
  const mutated = fc.array(change, { maxLength: 6 }).map((changes) => {
    const bytes = bundle!.slice();
    for (const [at, value] of changes) bytes[at] = value;
    return bytes;
  });
  const cut = fc.nat({ max: bundle!.length }).map((length) => bundle!.slice(0, length));
  const readers = [readAll, decodeJsonFrame, decodeControl, decodeControlReply];
  const text = fc.json().map((json) => new TextEncoder().encode(json));
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array(), mutated, cut, text), (bytes) => {
      for (const read of readers) {
        try {
          read(bytes);
        } catch (error) {
          expect((error as TiergridError).code).toBe("malformed_reply");
          expect(error).toBeInstanceOf(TiergridError);
        }
      }
    }),
    { numRuns: 3000 },
  );
});

it("skips and counts records of unknown type, and answers undefined for unknown JSON frames", () => {
  const writer = new BundleWriter("e");
  const tokens = { type: "tokens", attempt: 1, first: 0, output: { tokenIds: [1, 2] } } as const;
  const text = { ...tokens, first: 2, output: { tokenIds: [3], text: "abc" } };
  writer.add(1, tokens);
  writer.add(2, text);
  writer.add(3, tokens);
  const bytes = writer.take();
  bytes[12 + 12] = 0x1f;
  bytes[12 + 24 + 12] = 0x9f;
  const keys: number[] = [];
  expect(readBundle(bytes, (key) => keys.push(key))).toBe(2);
  expect(keys).toEqual([3]);
  const json = JSON.stringify({ type: "later", rid, attempt: 1 });
  expect(decodeJsonFrame(new TextEncoder().encode(json))).toBeUndefined();
});

it("ignores unknown fields of JSON frames and keeps an engine's own", () => {
  const bytes = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));
  const end = { type: "end", rid, attempt: 1, total: 2, finish_reason: "stop", later: 1 };
  expect(decodeJsonFrame(bytes(end))?.frame).toEqual({
    type: "end",
    attempt: 1,
    total: 2,
    finishReason: "stop",
  });
  const error = { type: "error", rid, attempt: 1, code: "a newer one", retryable: true };
  expect(decodeJsonFrame(bytes(error))?.frame).toMatchObject({
    code: "internal_error",
    retryable: true,
  });
  const tokens = { type: "tokens", rid, attempt: 1, first: 0, token_ids: [1], log_probs: [0] };
  expect(decodeJsonFrame(bytes(tokens))?.frame).toMatchObject({
    output: { tokenIds: [1], extra: { log_probs: [0] } },
  });
});

it("encodes single frames in the owner's format", () => {
  const frame = { type: "heartbeat", attempt: 9, next: 3, phase: "queued" } as const;
  const stream = { subject: "_R.fe.a.s", key: 5, acks: true } as const;
  const bundle = encodeStreamFrame({ ...stream, format: "bundle" }, rid, frame);
  expect(readAll(bundle)).toEqual([{ key: 5, frame }]);
  expect(decodeJsonFrame(encodeStreamFrame({ ...stream, format: "json" }, rid, frame))).toEqual({
    rid,
    frame,
  });
});

const acks = (count: number) => Array.from({ length: count }, () => ({ rid, attempt: 1, next: 2 }));
const controls: readonly ControlMessage[] = [
  { type: "resume", rid, attempt: 1, from: 4 },
  { type: "cancel", rid, attempt: 0xffffffff },
  { type: "ping", rid, attempt: 1 },
  { type: "ack", acks: acks(acksPerMessageMax) },
];

it("reads back control messages and replies, and refuses what it does not know", () => {
  for (const message of controls) expect(decodeControl(encodeControl(message))).toEqual(message);
  for (const ok of [true, false])
    expect(decodeControlReply(encodeControlReply({ ok }))).toEqual({ ok });
  const bad: unknown[] = [
    { type: "later", rid, attempt: 1 },
    { type: "cancel", rid: "x", attempt: 1 },
    { type: "resume", rid, attempt: 1 },
    { type: "ack", acks: acks(acksPerMessageMax + 1) },
    { type: "ack", acks: [{ rid }] },
  ];
  for (const value of bad) {
    expect(() => decodeControl(new TextEncoder().encode(JSON.stringify(value)))).toThrow();
  }
  for (const text of ["ok", '{"ok":1}', "true", "{}"]) {
    expect(() => decodeControlReply(new TextEncoder().encode(text))).toThrow("reply");
  }
});
