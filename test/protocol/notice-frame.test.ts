import fc from "fast-check";
import { expect, it } from "vitest";
import {
  type CourseNotice,
  decodeNotices,
  encodeNotices,
} from "../../src/protocol/notice-frame.ts";
import { encodeNotice, type Notice, noticesPerMessageMax } from "../../src/protocol/notices.ts";

const rid = "0123456789abcdef0123456789abcdef";
const itl = { count: 3, sum_ms: 41.25, buckets: [0, 1, 2] };
const course: readonly CourseNotice[] = [
  { type: "first_output", rid, attempt: 1, ttft_ms: 12.125, cached_tokens: 64 },
  { type: "progress", rid, attempt: 2 ** 32 - 1, output_tokens: 17 },
  {
    ...{ type: "finished", rid, attempt: 1_048_576, outcome: "ok", output_tokens: 18 },
    ...{ finish_reason: "length", itl },
  },
  {
    ...{ type: "closed", rid, attempt: 1_048_576, outcome: "migrated", output_tokens: 18 },
    ...{ ttft_ms: 0.1, itl, decision_ids: ["a", "", "ü\u{1f600}"] },
  },
];

it("writes records as documented, byte by byte", () => {
  const [first, , finished] = course as [CourseNotice, CourseNotice, CourseNotice];
  const hex = (notice: CourseNotice) => Buffer.from(encodeNotices([notice])).toString("hex");
  const header = "544e0100";
  const ridHex = Buffer.from(rid).toString("hex");
  expect(hex(first)).toBe(
    `${header}01000000010000004000000000000000${"0000000000402840"}${ridHex}`,
  );
  expect(hex(finished)).toBe(
    `${header}03000303000010001200000000000000${"000000000000f87f"}${ridHex}` +
      `03000000${"0000000000a04440"}000000000100000002000000`,
  );
});

it("reads what it wrote, one notice or several", () => {
  for (const notice of course) expect(decodeNotices(encodeNotices([notice]))).toEqual([notice]);
  expect(decodeNotices(encodeNotices(course))).toEqual(course);
  const bare: CourseNotice[] = [
    { type: "first_output", rid, attempt: 1, ttft_ms: 0 },
    { type: "finished", rid, attempt: 1, outcome: "cancelled", output_tokens: 0 },
    { type: "closed", rid, attempt: 1, outcome: "error", output_tokens: 0, decision_ids: [] },
  ];
  expect(decodeNotices(encodeNotices(bare))).toEqual(bare);
});

it("reads any notices as their JSON says them", () => {
  fc.assert(
    fc.property(fc.array(anyNotice(), { minLength: 1, maxLength: 20 }), (notices) => {
      const asJson = Buffer.from(JSON.stringify(notices));
      expect(decodeNotices(encodeNotices(notices))).toEqual(decodeNotices(asJson));
    }),
    { seed: 20261123, numRuns: 300 },
  );
});

it("says nothing of cached tokens that an engine cannot have", () => {
  for (const cached_tokens of [-1, 0.5, NaN, 2 ** 32]) {
    const odd: CourseNotice = { type: "first_output", rid, attempt: 1, ttft_ms: 1, cached_tokens };
    expect(decodeNotices(encodeNotices([odd]))).toEqual([{ ...odd, cached_tokens: undefined }]);
  }
});

it("refuses a message that ends too soon, wherever it was cut", () => {
  const whole = encodeNotices(course);
  const ends = course.map((_, index) => encodeNotices(course.slice(0, index + 1)).length);
  for (let bytes = 0; bytes < whole.length; bytes++) {
    const cut = () => decodeNotices(whole.subarray(0, bytes));
    if (ends.includes(bytes)) expect(cut(), `${bytes}`).toHaveLength(ends.indexOf(bytes) + 1);
    else expect(cut, `${bytes}`).toThrow(expect.objectContaining({ code: "malformed_reply" }));
  }
});

it("refuses or reads damaged messages, and fails in no other way", () => {
  const whole = encodeNotices(course);
  const damage = fc.tuple(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }));
  fc.assert(
    fc.property(fc.array(damage, { minLength: 1, maxLength: 4 }), (flips) => {
      const damaged = Buffer.from(whole);
      for (const [at, flip] of flips) damaged[at] = damaged[at]! ^ flip;
      try {
        decodeNotices(damaged);
      } catch (thrown) {
        expect(thrown).toMatchObject({ code: "malformed_reply" });
      }
    }),
    { seed: 20261123, numRuns: 2_000 },
  );
});

it("says what is wrong with a message", () => {
  const changed = (at: number, value: number) => {
    const bytes = Buffer.from(encodeNotices(course.slice(2, 3)));
    bytes[at] = value;
    return () => decodeNotices(bytes);
  };
  expect(changed(1, 0)).toThrow(/a header of 4 bytes/);
  expect(changed(2, 2)).toThrow(/version 1 kind 0, got 2/);
  expect(changed(4, 9)).toThrow(/a type of 1 to 5, got 9/);
  expect(changed(5, 4)).toThrow(/an outcome of 0 to 3, got 4/);
  expect(changed(7, 4)).toThrow(/28 bytes from 60, got 24/);
});

it("reads as many notices as a message may hold, and refuses one more", () => {
  const queued = { type: "queued", rid: "a", attempt: 1, position: 0 } as const;
  const asJson = (count: number) => Buffer.from(JSON.stringify(Array(count).fill(queued)));
  const asRecords = (count: number) => encodeNotices(Array(count).fill(course[0]));
  for (const encoded of [asJson, asRecords]) {
    expect(decodeNotices(encoded(noticesPerMessageMax))).toHaveLength(noticesPerMessageMax);
    expect(() => decodeNotices(encoded(noticesPerMessageMax + 1))).toThrow(/at most 256/);
  }
});

it("reads JSON of every type, one notice or an array", () => {
  const rare: Notice[] = [
    { type: "queued", rid: "a", attempt: 1, position: 3 },
    { type: "failed", rid, attempt: 1, code: "worker_lost", message: "m", worker_lost: true },
    { type: "active", inst: "w", requests: [{ rid, attempt: 1 }] },
  ];
  for (const notice of [...course, ...rare]) {
    expect(decodeNotices(encodeNotice(notice))).toEqual([notice]);
  }
  expect(decodeNotices(Buffer.from(JSON.stringify(course)))).toEqual(course);
  const read = (text: string) => () => decodeNotices(Buffer.from(text));
  expect(read('[{"type":"queued"}]')).toThrow(/rid and attempt/);
  expect(read("[7]")).toThrow(/JSON object/);
  expect(read("")).toThrow(/not JSON/);
  expect(read('{"type":"active"}')).toThrow(/inst and requests/);
  expect(read('{"type":"other"}')).toThrow(/not a notice type/);
});

function anyNotice(): fc.Arbitrary<CourseNotice> {
  const u32 = fc.integer({ min: 0, max: 2 ** 32 - 2 });
  const ms = fc.double({ noNaN: true, noDefaultInfinity: true, min: 0 });
  const option = <Value>(value: fc.Arbitrary<Value>) => fc.option(value, { nil: undefined });
  const name = {
    rid: fc
      .uint8Array({ minLength: 16, maxLength: 16 })
      .map((bytes) => Buffer.from(bytes).toString("hex")),
    attempt: u32,
  };
  const gaps = option(
    fc.record({
      count: u32,
      sum_ms: ms,
      buckets: fc.array(u32, { minLength: 1, maxLength: 255 }),
    }),
  );
  const ended = {
    outcome: fc.constantFrom("ok", "error", "cancelled", "migrated" as const),
    output_tokens: u32,
    itl: gaps,
  };
  const reasons = ["eos", "stop", "length", "cancelled", "content_filter"] as const;
  return fc.oneof(
    fc.record({
      type: fc.constant("first_output" as const),
      ...name,
      ...{ ttft_ms: ms, cached_tokens: option(u32) },
    }),
    fc.record({ type: fc.constant("progress" as const), ...name, output_tokens: u32 }),
    fc.record({
      type: fc.constant("finished" as const),
      ...name,
      ...ended,
      finish_reason: option(fc.constantFrom(...reasons)),
    }),
    fc.record({
      type: fc.constant("closed" as const),
      ...name,
      ...ended,
      ttft_ms: option(ms),
      decision_ids: fc.array(fc.string({ unit: "grapheme" }), { maxLength: 5 }),
    }),
  ) as fc.Arbitrary<CourseNotice>;
}
