import fc from "fast-check";
import { expect, it } from "vitest";
import { TiergridError } from "../../src/base/errors.ts";
import { mulberry32, randomHex128 } from "../../src/base/random.ts";
import { decodeReceipt, encodeReceipt } from "../../src/protocol/receipts.ts";
import {
  decodeDispatch,
  encodeDispatch,
  type PassedOn,
  passFrame,
  readDispatch,
} from "../../src/protocol/request-frame.ts";
import { encodeDispatchJson } from "../../src/protocol/request-json.ts";
import type { Dispatch, HopDecision, Receipt, TokenDispatch } from "../../src/protocol/requests.ts";

const rid = "0123456789abcdef0123456789abcdef";
const reply = "_INBOX.me.1";
const read = (payload: Uint8Array, from: string | undefined = reply): Dispatch =>
  decodeDispatch({ payload, reply: from }, mulberry32(1));
const json = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

const anyDispatch: fc.Arbitrary<TokenDispatch> = fc.record({
  envelope: fc.record({
    rid: fc.nat().map((seed) => randomHex128(mulberry32(seed))),
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
    promptFrom: fc.constantFrom(undefined, "_R.fe.k3x9.p"),
    notify: fc.constantFrom([], ["tg.nt.l1", "tg.nt.g1"]),
    progress: fc.boolean(),
    acceptNotice: fc.boolean(),
    avoid: fc.array(fc.string({ minLength: 1, maxLength: 20, unit: "grapheme" }), { maxLength: 4 }),
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

it("reads back every dispatch from a frame of either version, at any byte offset, and from JSON", () => {
  fc.assert(
    fc.property(anyDispatch, fc.nat({ max: 7 }), (dispatch, by) => {
      expect(read(shifted(encodeDispatch(dispatch), by))).toEqual(dispatch);
      expect(read(encodeDispatchJson(dispatch))).toEqual(dispatch);
      expect(read(shifted(olderFrame(dispatch), by))).toEqual(dispatch);
    }),
  );
});

it("gives only a dispatch or invalid_request for hostile bytes", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 1, numRuns: 1 });
  const sent = {
    ...dispatch!,
    envelope: { ...dispatch!.envelope, avoid: ["w1"], decisions: [own] },
  };
  const frames = [encodeDispatch(sent), encodeDispatch(hashed(sent, 4)), olderFrame(sent)];
  const mutated = frames.map((frame) =>
    fc
      .array(fc.tuple(fc.nat({ max: frame.length - 1 }), fc.nat({ max: 255 })), { maxLength: 8 })
      .map((changes) => {
        const bytes = Uint8Array.from(frame);
        for (const [at, value] of changes) bytes[at] = value;
        return bytes;
      }),
  );
  const cut = frames.map((frame) =>
    fc.nat({ max: frame.length }).map((length) => frame.slice(0, length)),
  );
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array(), ...mutated, ...cut), (payload) => {
      for (const take of [decodeDispatch, readAndPass]) {
        try {
          const { body, envelope } = take({ payload, reply }, mulberry32(1));
          expect(encodeDispatchJson({ envelope, body, prompt: sent.prompt })).toBeDefined();
        } catch (error) {
          expect(error).toBeInstanceOf(TiergridError);
          expect((error as TiergridError).code).toBe("invalid_request");
        }
      }
    }),
    { seed: 1, numRuns: 5000 },
  );
});

/** What the next hop's next hop reads. */
function readAndPass(...message: Parameters<typeof readDispatch>): Dispatch {
  const { frame } = readDispatch(...message);
  return read(passFrame(frame, passedOn));
}

const own: HopDecision = { tier: "local", decision_id: "l-1", role: "decode", pool: "é" };
const passedOn: PassedOn = {
  attempt: (1 << 20) + 1,
  phase: "decode",
  deadlineMs: 7,
  progress: true,
  decision: own,
  noticeSubject: "tg.nt.me",
  body: undefined,
};

/** The frame as owners of version 1 send it. */
function olderFrame({ envelope, body, prompt }: TokenDispatch): Uint8Array {
  const { tiergrid } = JSON.parse(
    Buffer.from(encodeDispatchJson({ envelope, body, prompt })).toString(),
  );
  return frameOf(JSON.stringify({ ...body, tiergrid }), prompt.tokens);
}

/** A frame of version 1 around any JSON text. */
function frameOf(text: string, tokens: Uint32Array = new Uint32Array(1)): Uint8Array {
  const json = Buffer.from(text);
  const wordsAt = 40 + 4 * Math.ceil(json.length / 4);
  const bytes = Buffer.alloc(wordsAt + 4 * tokens.length, 0x20);
  bytes.fill(0, 0, 40);
  bytes.write("TG\u0001\u0001", 0, "latin1");
  bytes.writeUInt32LE(tokens.length, 4);
  bytes.writeUInt32LE(json.length, 28);
  bytes.writeUInt32LE(tokens.length, 32);
  json.copy(bytes, 40);
  tokens.forEach((token, index) => {
    bytes.writeUInt32LE(token, wordsAt + 4 * index);
  });
  return bytes;
}

/** The dispatch with its tokens replaced by hashes of blocks of `blockSize`. */
function hashed(dispatch: TokenDispatch, blockSize: number): Dispatch {
  const islTokens = dispatch.prompt.tokens.length;
  const localHashes = new Uint32Array(2 * Math.floor(islTokens / blockSize)).fill(islTokens);
  const envelope = { ...dispatch.envelope, promptFrom: "_R.fe.k3x9.p" };
  return { ...dispatch, envelope, prompt: { type: "hashes", islTokens, blockSize, localHashes } };
}

it("reads back a prompt as hashes, at any byte offset", () => {
  const blockSizes = fc.integer({ min: 1, max: 65_535 });
  fc.assert(
    fc.property(anyDispatch, blockSizes, fc.nat({ max: 7 }), (dispatch, blockSize, by) => {
      const sent = hashed(dispatch, blockSize);
      const frame = encodeDispatch(sent);
      expect(read(shifted(frame, by))).toEqual(sent);
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
    progress: false,
    acceptNotice: false,
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

it("refuses frames of unknown versions, and tokens that are not whole", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 2, numRuns: 1 });
  for (const frame of [encodeDispatch(dispatch!), olderFrame(dispatch!)]) {
    expect(() => read(frame.slice(0, -1))).toThrow("tokens of 4, got");
    const later = Uint8Array.from(frame);
    later[2] = 9;
    expect(() => read(later)).toThrow("frame version 1 or 2, got 9");
  }
});

it("names the field of a frame that has a wrong value", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 3, numRuns: 1 });
  const { envelope, prompt } = dispatch!;
  const frame = (change: Partial<Dispatch["envelope"]>, body = {}): Uint8Array =>
    encodeDispatch({ envelope: { ...envelope, ...change }, body, prompt });
  const phaseless = frame({});
  phaseless[46] = 3;
  const faults: [Uint8Array, string][] = [
    [phaseless, "tiergrid.phase must be prefill, decode or aggregated, got 3"],
    [frame({ attempt: 5 }), "tiergrid.attempt must be >= 1048576, got 5"],
    [frame({ deadlineMs: Number.NaN }), "tiergrid.deadline_ms must be a positive number"],
    [frame({ deadlineMs: 0 }), "tiergrid.deadline_ms must be a positive number, got 0"],
    [frame({ stream: { ...envelope.stream, subject: "tg.w.a.ctl" } }), "tiergrid.stream.subject"],
    [frame({ promptFrom: "tg.w.a.ctl" }), "tiergrid.prompt_from must be an inbox subject"],
    [frame({ notify: ["x"] }), "tiergrid.notify must be an array of at most 8"],
    [frame({ notify: Array(9).fill("tg.nt.a") }), "tiergrid.notify must be an array of at most 8"],
    [frame({ avoid: Array(65).fill("w") }), "tiergrid.avoid must be an array of at most 64"],
    [frame({ decisions: Array(17).fill(own) }), "tiergrid.decisions must be an array of at most"],
    [frame({ decisions: [{} as HopDecision] }), "tiergrid.decisions must be an array of at most"],
    [frame({}, { routing: { dp_rank: "0" } }), "routing.dp_rank must be an integer"],
    [frame({}, { stop_conditions: 3 }), "stop_conditions must be an object, got 3"],
    [frame({}, { token_ids: [1] }), "packed tokens or token_ids, got both"],
    [frame({}, { tiergrid: {} }), "a frame with one envelope, got another as tiergrid"],
  ];
  for (const [payload, expected] of faults) expect(() => read(payload)).toThrow(expected);
  expect(read(frame({ notify: Array(8).fill("tg.nt.a") })).envelope.notify).toHaveLength(8);
  expect(read(frame({ avoid: Array(64).fill("w") })).envelope.avoid).toHaveLength(64);
  expect(read(frame({ decisions: Array(16).fill(own) })).envelope.decisions).toHaveLength(16);
});

it("ignores flags that it does not know, and passes them on", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 4, numRuns: 1 });
  const frame = Buffer.from(encodeDispatch(dispatch!));
  const flags = frame.readUInt16LE(38) | 0x8010;
  frame.writeUInt16LE(flags, 38);
  expect(read(frame)).toEqual(dispatch);
  const progress = dispatch!.envelope.progress === true;
  const passed = passFrame(readDispatch({ payload: frame, reply }, mulberry32(1)).frame, {
    ...passedOn,
    progress,
  });
  expect(Buffer.from(passed).readUInt16LE(38)).toBe(flags);
});

/** A hop by the description alone: everything read, changed and printed anew. */
function forwarded(dispatch: Dispatch, hop: PassedOn): Dispatch {
  const { attempt, phase, deadlineMs, progress, decision, noticeSubject, body } = hop;
  const { notify, decisions } = dispatch.envelope;
  const changed = { attempt, phase, deadlineMs, progress };
  const lists = { notify: [noticeSubject, ...notify], decisions: [...decisions, decision] };
  const envelope = { ...dispatch.envelope, ...changed, ...lists };
  return { ...dispatch, envelope, body: { ...dispatch.body, ...body } };
}

it("passes a request on in any form as if it were read and printed anew, its words aligned", () => {
  const forms = [encodeDispatch, encodeDispatchJson, olderFrame];
  const hops = fc.array(
    fc.record({
      attempt: fc.integer({ min: 1 << 20, max: 0xffffffff }),
      phase: fc.constantFrom("prefill" as const, "decode" as const, "aggregated" as const),
      deadlineMs: fc.integer({ min: 1, max: 600_000 }),
      progress: fc.boolean(),
      noticeSubject: fc.constantFrom("tg.nt.a", "tg.nt.ab", "tg.nt.abc", "tg.nt.abcd"),
      decision: fc.string({ unit: "grapheme" }).map((pool) => ({ ...own, pool })),
      lora: fc.option(fc.string({ unit: "grapheme" })),
    }),
    { minLength: 1, maxLength: 3 },
  );
  fc.assert(
    fc.property(anyDispatch, fc.constantFrom(...forms), hops, (dispatch, encode, list) => {
      let payload = encode(dispatch);
      let expected: Dispatch = dispatch;
      for (const { lora, ...change } of list) {
        const { dispatch: came, frame } = readDispatch({ payload, reply }, mulberry32(1));
        const body = lora === null ? undefined : { ...came.body, routing: { lora_name: lora } };
        const hop = { ...change, body };
        const { decisions: _, ...routed } = expected.envelope;
        expect(came.envelope).toEqual(routed);
        payload = passFrame(frame, hop);
        expected = forwarded(expected, hop);
        expect(read(payload)).toEqual(expected);
        const wordsAt = payload.length - 4 * dispatch.prompt.tokens.length;
        expect(wordsAt % 4).toBe(0);
      }
    }),
    { seed: 4 },
  );
});

it("leaves what routers do not act on unread, and decisions to who ends the way", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 5, numRuns: 1 });
  const body = { request_id: "r", model: "m", stop_conditions: { max_tokens: 3 } };
  const bad = { ...dispatch!.envelope, decisions: [{} as HopDecision] };
  const payload = encodeDispatch({ ...dispatch!, envelope: bad, body });
  const routed = readDispatch({ payload, reply }, mulberry32(1));
  expect(routed.dispatch.body).toEqual({ request_id: "r" });
  expect(() => read(passFrame(routed.frame, passedOn))).toThrow("tiergrid.decisions");
});

it("adds decisions up to their bytes, and refuses one more", () => {
  const [dispatch] = fc.sample(anyDispatch, { seed: 6, numRuns: 1 });
  const { frame } = readDispatch({ payload: encodeDispatch(dispatch!), reply }, mulberry32(1));
  const free = 0xffff - (frame.linesAt - 64);
  // Around the pool stand a comma and 60 characters; the notice's line is 9, the padding up to 3.
  const pool = (bytes: number): PassedOn => ({
    ...passedOn,
    decision: { ...own, pool: "p".repeat(bytes) },
  });
  expect(() => passFrame(frame, pool(free))).toThrow("tiergrid.decisions must be at most 65535");
  expect(read(passFrame(frame, pool(free - 100))).envelope.decisions.at(-1)?.pool).toBe(
    "p".repeat(free - 100),
  );
});

it("reads the fields of an older frame as JSON has them, wherever its envelope stands", () => {
  const envelope = JSON.stringify({ rid, stream: { subject: reply } });
  const texts = [
    `{"a":1,"tiergrid":${envelope}}`,
    `{"tiergrid":${envelope},"a":1}`,
    `{"a":{"b":1,"tiergrid":{"rid":"x"}},"tiergrid":${envelope}}`,
    ` {"a":"é" ,"tiergrid": ${envelope} , "b":2}`,
  ];
  for (const text of texts) {
    const { tiergrid, ...body } = JSON.parse(text);
    const dispatch = read(frameOf(text));
    expect(dispatch.body, text).toEqual(body);
    expect(dispatch.envelope.rid, text).toBe(tiergrid.rid);
  }
  for (const text of [`{"a":{"b":1,"tiergrid":${envelope}}`, '{"a"'])
    expect(() => read(frameOf(text))).toThrow("bytes that are not JSON");
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
