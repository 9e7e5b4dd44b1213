import fc from "fast-check";
import { expect, it } from "vitest";
import {
  decodeSequenceAsk,
  decodeSequenceMessage,
  encodeSequenceAsk,
  encodeSequenceFrame,
  encodeSequenceHeartbeat,
  eventsPerFrameMax,
  frameHeadBytes,
  listPartsMax,
  type SequenceBooking,
  type SequenceEvent,
  type SequenceFrame,
  type SequenceHeartbeat,
  sequenceBlocksMax,
} from "../../src/protocol/active-sequences.ts";

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const request = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const u64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }).map(String);
const finite = fc.double({ noNaN: true, noDefaultInfinity: true });

const booking: fc.Arbitrary<SequenceBooking> = fc.record({
  request,
  workerId: u64,
  dpRank: u32,
  sequence: fc.array(u32, { maxLength: 20 }).map((lanes) => {
    return Uint32Array.from(lanes.length % 2 === 0 ? lanes : lanes.slice(1));
  }),
  privateBlocks: u32,
  prefillTokens: u32,
  cachedTokens: u32,
  expectedPrefillMs: fc.float({ noNaN: true, noDefaultInfinity: true, min: 0 }),
});

const event: fc.Arbitrary<SequenceEvent> = fc.oneof(
  fc.record({ type: fc.constant("add" as const), booking }),
  fc.record({ type: fc.constantFrom("first_token" as const, "free" as const), request }),
);

const source = {
  routerId: u64,
  epoch: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }).map((n) => n.toString(16).padStart(16, "0")),
  blockSize: u32,
  sentMs: finite,
  seq: request,
};

const frame: fc.Arbitrary<SequenceFrame> = fc
  .record({
    ...source,
    type: fc.constantFrom("deltas" as const, "list" as const),
    oldestMs: finite,
    parts: fc.integer({ min: 1, max: listPartsMax }),
    events: fc.array(event, { maxLength: 12 }),
  })
  .chain((whole) =>
    fc.integer({ min: 0, max: whole.parts - 1 }).map((part) => ({ ...whole, part })),
  );

const plain: SequenceFrame = {
  ...{ type: "deltas", routerId: "7", epoch: "00000000000000aa", blockSize: 16, sentMs: 1 },
  ...{ seq: 1, oldestMs: 1, part: 0, parts: 1, events: [] },
};

it("reads back every frame, wherever its bytes lie", () => {
  fc.assert(
    fc.property(frame, fc.integer({ min: 0, max: 7 }), (sent, offset) => {
      const bytes = encodeSequenceFrame(sent);
      const moved = new Uint8Array(bytes.length + offset).subarray(offset);
      moved.set(bytes);
      expect(decodeSequenceMessage(moved)).toEqual(sent);
    }),
    { seed: 11, numRuns: 300 },
  );
});

it("reads back every heartbeat and ask", () => {
  const heartbeat: fc.Arbitrary<SequenceHeartbeat> = fc.record({
    ...source,
    type: fc.constant("heartbeat" as const),
    liveCount: request,
    liveDigest: fc.string(),
    goodbye: fc.boolean(),
  });
  fc.assert(
    fc.property(heartbeat, (sent) => {
      expect(decodeSequenceMessage(encodeSequenceHeartbeat(sent))).toEqual({
        ...sent,
        // JSON has no negative zero.
        sentMs: sent.sentMs + 0,
      });
    }),
    { seed: 12 },
  );
  for (const of of ["9", undefined]) {
    expect(decodeSequenceAsk(encodeSequenceAsk({ routerId: "7", of }))).toEqual({
      routerId: "7",
      of,
    });
  }
});

it("refuses bytes that are not exactly one message, and nothing else", () => {
  fc.assert(
    fc.property(frame, fc.nat(), fc.integer({ min: 0, max: 255 }), (sent, place, value) => {
      const bytes = encodeSequenceFrame(sent);
      for (const cut of [bytes.subarray(0, place % bytes.length), Buffer.concat([bytes, bytes])]) {
        expect(() => decodeSequenceMessage(cut)).toThrow(/active sequences/);
      }
      bytes[place % bytes.length] = value;
      try {
        decodeSequenceMessage(bytes);
      } catch (thrown) {
        expect(thrown).toMatchObject({ code: "malformed_reply" });
      }
    }),
    { seed: 13, numRuns: 500 },
  );
});

it.each([
  ["not JSON", "{"],
  ["an unknown type", '{"type":"hello"}'],
  ["a router that is no u64", '{"type":"heartbeat","router_id":"-1"}'],
  ["no epoch", '{"type":"heartbeat","router_id":"1"}'],
  [
    "a negative number",
    '{"type":"heartbeat","router_id":"1","epoch":"a","live_digest":"b","sent_ms":0,"block_size":16,"seq":-1,"live_count":0}',
  ],
])("refuses a heartbeat with %s", (_what, text) => {
  expect(() => decodeSequenceMessage(Buffer.from(text))).toThrow(/active sequences/);
});

it.each([["[]"], ["{}"], ['{"type":"ask"}'], ['{"type":"ask","router_id":"1","of":2}']])(
  "refuses the ask %s",
  (text) => {
    expect(() => decodeSequenceAsk(Buffer.from(text))).toThrow(/active sequences/);
  },
);

it("takes as many events and parts as allowed, and not one more", () => {
  const events = (count: number): SequenceEvent[] =>
    Array.from({ length: count }, (_, at) => ({ type: "free", request: at }));
  const read = (change: Partial<SequenceFrame>) =>
    decodeSequenceMessage(encodeSequenceFrame({ ...plain, ...change }));
  expect(read({ events: events(eventsPerFrameMax) })).toBeDefined();
  expect(() => read({ events: events(eventsPerFrameMax + 1) })).toThrow(/at most 256 events/);
  expect(read({ part: listPartsMax - 1, parts: listPartsMax })).toBeDefined();
  expect(() => read({ part: 0, parts: listPartsMax + 1 })).toThrow(/part 0 of/);
  expect(() => read({ part: 1, parts: 1 })).toThrow(/part 1 of 1/);
});

it("knows how many blocks fit into a message", () => {
  for (const bytesMax of [1024, 1028, 65_536]) {
    const bytesWith = (blocks: number): number => {
      const sequence = new Uint32Array(2 * blocks);
      const add = { ...{ request: 1, workerId: "1", dpRank: 0, privateBlocks: 0 }, sequence };
      const booked = { ...add, prefillTokens: 0, cachedTokens: 0, expectedPrefillMs: 0 };
      return encodeSequenceFrame({ ...plain, events: [{ type: "add", booking: booked }] }).length;
    };
    const fit = sequenceBlocksMax(bytesMax);
    expect(bytesWith(fit)).toBeLessThanOrEqual(bytesMax);
    expect(bytesWith(fit + 1)).toBeGreaterThan(bytesMax);
  }
  expect(encodeSequenceFrame(plain)).toHaveLength(frameHeadBytes);
});
