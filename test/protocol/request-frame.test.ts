import fc from "fast-check";
import { expect, it } from "vitest";
import { TiergridError } from "../../src/base/errors.ts";
import { mulberry32, randomHex128 } from "../../src/base/random.ts";
import { decodeReceipt, encodeReceipt } from "../../src/protocol/receipts.ts";
import {
  decodeDispatch,
  encodeDispatch,
  encodeDispatchJson,
  readDispatch,
} from "../../src/protocol/request-frame.ts";
import type { Dispatch, Receipt, TokenDispatch } from "../../src/protocol/requests.ts";

const rid = "0123456789abcdef0123456789abcdef";
const reply = "_INBOX.me.1";
const read = (payload: Uint8Array, from: string | undefined = reply): Dispatch =>
  decodeDispatch({ payload, reply: from }, mulberry32(1));
const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

const anyDispatch: fc.Arbitrary<TokenDispatch> = fc.record({
  envelope: fc.record({
    rid: fc.constant(rid),
    attempt: fc.integer({ min: 1 << 20, max: 0xffffffff }),
    first: fc.nat(),
    phase: fc.constantFrom("prefill", "decode", "aggregated"),
    deadlineMs: fc.integer({ min: 1, max: 600_000 }),
    stream: fc.record({
      subject: fc.constantFrom("_R.fe.k3x9.s", "_INBOX.abc.1", '_INBOX."quoted\\".1'),
      format: fc.constantFrom("bundle", "json"),
      key: fc.integer({ min: 0, max: 0xffffffff }),
      acks: fc.boolean(),
    }),
    notify: fc.constantFrom([], ["tg.nt.l1", "tg.nt.g1"]),
    avoid: fc.array(fc.string({ minLength: 1, maxLength: 20 }), { maxLength: 4 }),
    decisions: fc.constantFrom(
      [],
      [{ tier: "global" as const, decision_id: "d1", role: "decode" as const, pool: "p é" }],
    ),
  }),
  body: fc.record(
    {
      model: fc.string(),
      unknown_field: fc.jsonValue().map((value) => JSON.parse(JSON.stringify(value))),
      stop_conditions: fc.record({ max_tokens: fc.nat(), stop: fc.array(fc.string()) }),
      routing: fc.record({
        expected_output_tokens: fc.option(fc.integer({ min: 0, max: 0xffffffff })),
        priority_jump: fc.option(fc.integer()),
        strict_priority: fc.option(fc.nat()),
      }),
      router: fc.option(
        fc.record({ ttft_target: fc.option(fc.integer()), itl_target: fc.constant(12.3) }),
      ),
    },
    { requiredKeys: [] },
  ),
  prompt: fc
    .array(fc.integer({ min: 0, max: 0xffffffff }), { minLength: 1, maxLength: 50 })
    .map((tokens) => ({ type: "tokens", tokens: Uint32Array.from(tokens) })),
}) as fc.Arbitrary<TokenDispatch>;

/** The same bytes at an odd offset of a larger buffer, as a NATS client delivers them. */
function shifted(bytes: Uint8Array, by: number): Uint8Array {
  const buffer = new Uint8Array(bytes.length + by);
  buffer.set(bytes, by);
  return buffer.subarray(by);
}

it("reads back every dispatch from a frame, at any byte offset, and from JSON", () => {
  fc.assert(
    fc.property(anyDispatch, fc.nat({ max: 7 }), (dispatch, by) => {
      expect(read(shifted(encodeDispatch(dispatch), by))).toEqual(dispatch);
      expect(read(encodeDispatchJson(dispatch))).toEqual(dispatch);
    }),
  );
});

it("gives only invalid_request for hostile bytes", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 1, numRuns: 1 });
  const frame = encodeDispatch(dispatch!);
  const hashes = encodeDispatch(hashed(dispatch!, 4));
  const mutated = fc
    .array(fc.tuple(fc.nat({ max: frame.length - 1 }), fc.nat({ max: 255 })), { maxLength: 8 })
    .map((changes) => {
      const bytes = Uint8Array.from(frame);
      for (const [at, value] of changes) bytes[at] = value;
      return bytes;
    });
  const mutatedHashes = fc
    .array(fc.tuple(fc.nat({ max: hashes.length - 1 }), fc.nat({ max: 255 })), { maxLength: 8 })
    .map((changes) => {
      const bytes = Uint8Array.from(hashes);
      for (const [at, value] of changes) bytes[at] = value;
      return bytes;
    });
  const cut = fc.nat({ max: frame.length }).map((length) => frame.slice(0, length));
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array(), mutated, mutatedHashes, cut), (bytes) => {
      try {
        read(bytes);
      } catch (error) {
        expect(error).toBeInstanceOf(TiergridError);
        expect((error as TiergridError).code).toBe("invalid_request");
      }
    }),
    { numRuns: 2000 },
  );
});

/** The dispatch with its tokens replaced by hashes of blocks of `blockSize`. */
function hashed(dispatch: TokenDispatch, blockSize: number): Dispatch {
  const islTokens = dispatch.prompt.tokens.length;
  const localHashes = new Uint32Array(2 * Math.floor(islTokens / blockSize)).fill(islTokens);
  const envelope = { ...dispatch.envelope, promptFrom: "_R.fe.k3x9.p" };
  return { ...dispatch, envelope, prompt: { type: "hashes", islTokens, blockSize, localHashes } };
}

it("reads back a prompt as hashes, at any byte offset, and passes its body on as it came", () => {
  const blockSizes = fc.integer({ min: 1, max: 65_535 });
  fc.assert(
    fc.property(anyDispatch, blockSizes, fc.nat({ max: 7 }), (dispatch, blockSize, by) => {
      const sent = hashed(dispatch, blockSize);
      const frame = encodeDispatch(sent);
      expect(read(shifted(frame, by))).toEqual(sent);
      const { dispatch: came, bodyText } = readDispatch({ payload: frame, reply }, mulberry32(1));
      expect(encodeDispatch(came, bodyText)).toEqual(frame);
    }),
    { seed: 5 },
  );
});

it("refuses hashes without their source, their block size, or one hash a full block", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 6, numRuns: 1 });
  const tokens = new Uint32Array(70);
  const sent = hashed({ ...dispatch!, body: {}, prompt: { type: "tokens", tokens } }, 16);
  const frame = encodeDispatch(sent);
  expect(read(frame)).toEqual(sent);
  const { envelope, ...rest } = sent;
  const { promptFrom: _, ...without } = envelope;
  expect(() => read(encodeDispatch({ ...rest, envelope: without }))).toThrow(
    "tiergrid.prompt_from must be given with a prompt as hashes",
  );
  const planted = { ...envelope, promptFrom: "tg.w.a.ctl" };
  expect(() => read(encodeDispatch({ ...rest, envelope: planted }))).toThrow(
    "tiergrid.prompt_from must be an inbox subject",
  );
  const changed = (at: number, value: number, bytes = 4): Uint8Array => {
    const other = Buffer.from(frame);
    other.writeUIntLE(value, at, bytes);
    return other;
  };
  expect(() => read(changed(36, 0, 2))).toThrow("hashes with their block size, got 0");
  expect(() => read(changed(36, 32, 2))).toThrow("2 hashes for 70 tokens in blocks of 32, got 4");
  expect(() => read(changed(4, 80))).toThrow("5 hashes for 80 tokens in blocks of 16, got 4");
  expect(() => read(changed(4, 0))).toThrow("at least one token, got none");
  expect(() => read(changed(3, 3, 1))).toThrow("frame kind 1 (tokens) or 2 (hashes), got 3");
  for (let bytes = 2; bytes < frame.length + 9; bytes++) {
    if (bytes === frame.length) continue;
    const other = new Uint8Array(bytes);
    other.set(frame.subarray(0, bytes));
    expect(() => read(other), `${bytes} bytes`).toThrow("a request must be");
  }
});

it("takes the reply subject of a plain client as its JSON stream", () => {
  const dispatch = read(json({ token_ids: [1, 2], model: "m" }));
  expect(dispatch.body).toEqual({ model: "m" });
  expect(dispatch.envelope).toEqual({
    rid: randomHex128(mulberry32(1)),
    attempt: 1 << 20,
    first: 0,
    phase: "aggregated",
    deadlineMs: 600_000,
    stream: { subject: "_INBOX.me.1", format: "json", key: 0, acks: false },
    notify: [],
    avoid: [],
    decisions: [],
  });
});

it.each<[string, unknown, string]>([
  [
    "no tokens field",
    { model: "m" },
    "token_ids must be a non-empty array of integers, got nothing",
  ],
  ["no tokens", { token_ids: [] }, "got []"],
  ["tokens as text", { token_ids: "1,2" }, 'got "1,2"'],
  ["a negative token", { token_ids: [1, -1] }, "token_ids[1] must be an integer in"],
  ["a fraction", { token_ids: [1.5] }, "got 1.5"],
  ["a token of 2^32", { token_ids: [4294967296] }, "got 4294967296"],
  [
    "a wrong body type",
    { token_ids: [1], stop_conditions: 3 },
    "stop_conditions must be an object",
  ],
  ["a wrong leaf", { token_ids: [1], routing: { dp_rank: "0" } }, "routing.dp_rank must be"],
  ["a bad rid", { token_ids: [1], tiergrid: { rid: "x" } }, "tiergrid.rid must be 32 hex digits"],
  ["attempt 0", { token_ids: [1], tiergrid: { attempt: 0 } }, "tiergrid.attempt must be >="],
  ["a bad phase", { token_ids: [1], tiergrid: { phase: "x" } }, "tiergrid.phase must be"],
  ["no time left", { token_ids: [1], tiergrid: { deadline_ms: 0 } }, "deadline_ms must be"],
  [
    "a stream into the control plane",
    { token_ids: [1], tiergrid: { stream: { subject: "tg.w.a.ctl" } } },
    "tiergrid.stream.subject must be an inbox subject",
  ],
  ["a notice to a stranger", { token_ids: [1], tiergrid: { notify: ["x"] } }, "tiergrid.notify"],
  [
    "too many notices",
    { token_ids: [1], tiergrid: { notify: Array(9).fill("tg.nt.a") } },
    "notify",
  ],
  ["an array", [1], "a request must be a JSON object"],
])("refuses %s, saying what was expected and what came", (_name, value, expected) => {
  expect(() => read(json(value))).toThrow(expected);
});

it("takes the longest lists and a request without a reply subject when it names its stream", () => {
  const stream = { subject: "_R.fe.a.s" };
  const tiergrid = { stream, notify: Array(8).fill("tg.nt.a"), avoid: Array(64).fill("w") };
  const message = { payload: json({ token_ids: [1], tiergrid }), reply: undefined };
  const { envelope } = decodeDispatch(message, mulberry32(1));
  expect(envelope.notify).toHaveLength(8);
  expect(envelope.stream).toEqual({ ...stream, format: "json", key: 0, acks: false });
  const tooMany = { token_ids: [1], tiergrid: { ...tiergrid, avoid: Array(65).fill("w") } };
  expect(() => read(json(tooMany))).toThrow("tiergrid.avoid");
  const lost = { payload: json({ token_ids: [1] }), reply: undefined };
  expect(() => decodeDispatch(lost, mulberry32(1))).toThrow(
    "tiergrid.stream must be given when the message has no reply subject",
  );
});

it("refuses a frame whose header and JSON differ, and token bytes that are not whole", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 2, numRuns: 1 });
  const frame = encodeDispatch({ ...dispatch!, body: { router: { ttft_target: 100 } } });
  const changed = Uint8Array.from(frame);
  new DataView(changed.buffer).setFloat32(12, 200, true);
  expect(() => read(changed)).toThrow("ttftTargetMs in header and JSON, got 200");
  expect(() => read(frame.slice(0, -1))).toThrow("tokens of 4, got");
  const later = Uint8Array.from(frame);
  later[2] = 9;
  expect(() => read(later)).toThrow("frame version 1, got 9");
});

/** A frame around any JSON text. */
function frameOf(text: string): Uint8Array {
  const json = Buffer.from(text);
  const frame = encodeDispatch({
    ...fc.sample(anyDispatch, { seed: 3, numRuns: 1 })[0]!,
    body: {},
  });
  const at = 40 + 4 * Math.ceil(json.length / 4);
  const bytes = Buffer.concat([
    frame.subarray(0, 40),
    Buffer.alloc(at - 40, 0x20),
    Buffer.alloc(4),
  ]);
  json.copy(bytes, 40);
  bytes.writeUInt32LE(json.length, 28);
  bytes.writeUInt32LE(1, 32);
  bytes.writeUInt32LE(1, 4);
  return bytes;
}

it("passes a body on as it came, byte for byte", () => {
  fc.assert(
    fc.property(anyDispatch, anyDispatch, (dispatch, next) => {
      const message = { payload: encodeDispatch(dispatch), reply };
      const { dispatch: came, bodyText } = readDispatch(message, mulberry32(1));
      const forwarded = { ...came, envelope: next.envelope };
      expect(encodeDispatch(forwarded, bodyText)).toEqual(encodeDispatch(forwarded));
    }),
    { seed: 4 },
  );
});

it("reads the fields of a frame as JSON has them, wherever an envelope seems to stand", () => {
  const envelope = JSON.stringify({ rid, stream: { subject: reply } });
  const texts = [
    `{"a":1,"tiergrid":${envelope}}`,
    `{"tiergrid":${envelope}}`,
    `{"tiergrid":${envelope},"a":1}`,
    `{"tiergrid":5,"a":1,"tiergrid":${envelope}}`,
    `{"a":1,"tiergrid":5,"tiergrid":${envelope}}`,
    `{"a":{"b":1,"tiergrid":{"rid":"x"}},"tiergrid":${envelope}}`,
    `{"a":",\\"tiergrid\\":","tiergrid":${envelope}}`,
    ` {"a":"é" ,"tiergrid": ${envelope} , "b":2}`,
  ];
  for (const text of texts) {
    const { tiergrid, ...body } = JSON.parse(text);
    const { dispatch, bodyText } = readDispatch({ payload: frameOf(text), reply }, mulberry32(1));
    expect(dispatch.body, text).toEqual(body);
    expect(dispatch.envelope.rid, text).toBe(tiergrid.rid);
    if (bodyText !== undefined) expect(JSON.parse(`${bodyText}}`), text).toEqual(body);
  }
  for (const text of [`{"a":{"b":1,"tiergrid":${envelope}}`, `[1,"tiergrid":${envelope}}`, '{"a"'])
    expect(() => readDispatch({ payload: frameOf(text), reply }, mulberry32(1))).toThrow(
      "bytes that are not JSON",
    );
});

const receipts: readonly Receipt[] = [
  {
    type: "accepted",
    attempt: 1 << 20,
    inst: "w1",
    epoch: "e",
    control: "tg.w.w1.ctl",
    workerId: "1",
    dpRank: 0,
    decisions: [{ tier: "local", decision_id: "d", role: "decode" }],
  },
  {
    type: "refused",
    code: "queue_rejected",
    message: "full",
    retryAfterMs: 100,
    details: { a: 1 },
  },
  { type: "refused", code: "no_endpoints", message: "" },
];

it("reads back every receipt", () => {
  for (const receipt of receipts) expect(decodeReceipt(encodeReceipt(receipt))).toEqual(receipt);
});

it.each([
  "ok",
  "{}",
  "null",
  '{"type":"accepted"}',
  '{"type":"refused","code":"a newer code"}',
  '{"type":"queued"}',
])("takes the reply %s for malformed, never for success", (text) => {
  try {
    decodeReceipt(new TextEncoder().encode(text));
    expect.unreachable();
  } catch (error) {
    expect((error as TiergridError).code).toBe("malformed_reply");
  }
});
