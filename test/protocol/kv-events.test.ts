import fc from "fast-check";
import { expect, it } from "vitest";
import { TiergridError } from "../../src/base/errors.ts";
import { decodeKvEvents, encodeKvEvents } from "../../src/protocol/kv-event-frame.ts";
import {
  type KvEvent,
  type KvEventBatch,
  kvEventFromJson,
  kvEventToJson,
  storageTiers,
} from "../../src/protocol/kv-events.ts";
import {
  decodeKvAnswer,
  decodeKvQuery,
  encodeKvAnswer,
  encodeKvQuery,
  type KvAnswer,
  kvChunkHeadOf,
} from "../../src/protocol/kv-query.ts";

const eventId = fc.maxSafeNat();
const tier = fc.constantFrom(...storageTiers);
const u32 = fc.nat(0xffff_ffff);
const parent = fc.option(fc.record({ lo: u32, hi: u32 }), { nil: undefined });
const words = (width: number) =>
  fc
    .array(fc.array(u32, { minLength: width, maxLength: width }), { maxLength: 6 })
    .map((blocks) => Uint32Array.from(blocks.flat()));

const kvEvent: fc.Arbitrary<KvEvent> = fc.oneof(
  fc.record({ type: fc.constant("stored" as const), eventId, tier, parent, blocks: words(4) }),
  fc.record({ type: fc.constant("removed" as const), eventId, tier, hashes: words(2) }),
  fc.record({ type: fc.constant("cleared" as const), eventId }),
);
const source = fc.record({
  workerId: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(String),
  dpRank: u32,
  stateSource: fc.string({ maxLength: 20 }),
});
const batch: fc.Arbitrary<KvEventBatch> = fc
  .tuple(source, fc.array(kvEvent, { maxLength: 5 }))
  .map(([from, events]) => ({ ...from, events }));

/** Views and copies of the same words compare equal. */
const plain = (value: unknown): unknown =>
  JSON.parse(JSON.stringify(value, (_, v) => (v instanceof Uint32Array ? [...v] : v)));

function onlyTiergridErrors(act: () => unknown): void {
  try {
    act();
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(TiergridError);
  }
}

it("an event survives JSON text", () => {
  fc.assert(
    fc.property(source, kvEvent, (from, event) => {
      const text = JSON.stringify(kvEventToJson(from, event));
      const read = kvEventFromJson(JSON.parse(text));
      expect(plain(read)).toEqual(plain({ ...from, events: [event] }));
    }),
  );
});

it("a batch survives its frame at any byte offset", () => {
  fc.assert(
    fc.property(batch, fc.nat(7), (sent, offset) => {
      const bytes = encodeKvEvents(sent);
      const shifted = new Uint8Array(offset + bytes.length);
      shifted.set(bytes, offset);
      expect(plain(decodeKvEvents(shifted.subarray(offset)))).toEqual(plain(sent));
    }),
  );
});

it("hostile bytes raise nothing but TiergridError", () => {
  fc.assert(
    fc.property(
      batch,
      fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { minLength: 1, maxLength: 4 }),
      fc.nat(400),
      (sent, changes, cut) => {
        const bytes = encodeKvEvents(sent).slice(0, cut);
        for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
        onlyTiergridErrors(() => decodeKvEvents(bytes));
        onlyTiergridErrors(() => decodeKvQuery(bytes));
        onlyTiergridErrors(() => decodeKvAnswer([bytes]));
        const [chunk] = encodeKvAnswer(sent, { type: "events", events: sent.events }, 1e6);
        for (const [at, value] of changes) if (at < chunk!.length) chunk![at] = value;
        onlyTiergridErrors(() => decodeKvAnswer([chunk!]));
        onlyTiergridErrors(() => kvChunkHeadOf(chunk!));
      },
    ),
    { numRuns: 500 },
  );
});

it("hostile JSON raises nothing but TiergridError", () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => onlyTiergridErrors(() => kvEventFromJson(value))),
  );
  const event = { event_id: 1, data: "cleared" };
  expect(() => kvEventFromJson({ worker_id: 2 ** 53, event })).toThrow(TiergridError);
  expect(() => kvEventFromJson({ worker_id: "1", storage_tier: "tape", event })).toThrow("tier");
  expect(kvEventFromJson({ worker_id: 5, event }).workerId).toBe("5");
});

it("a query survives, with and without a range", () => {
  for (const query of [
    { workerId: "18446744073709551615", startEventId: 4, endEventId: 9 },
    { workerId: "0", startEventId: undefined, endEventId: undefined },
  ]) {
    expect(decodeKvQuery(encodeKvQuery(query))).toEqual(query);
  }
});

const answers: fc.Arbitrary<KvAnswer> = fc.oneof(
  fc.record({ type: fc.constant("events" as const), events: fc.array(kvEvent) }),
  fc.record({
    type: fc.constant("tree_dump" as const),
    events: fc.array(kvEvent),
    lastEventId: fc.option(eventId),
  }),
  fc.record({
    type: fc.constant("too_new" as const),
    requestedStart: eventId,
    requestedEnd: fc.option(eventId),
    newestAvailable: fc.option(eventId),
  }),
  fc.record({ type: fc.constant("invalid_range" as const), startId: eventId, endId: eventId }),
  fc.record({ type: fc.constant("error" as const), message: fc.string() }),
);

it("an answer survives chunks of any size, in any order", () => {
  fc.assert(
    fc.property(source, answers, fc.integer({ min: 17, max: 300 }), (from, answer, bytesMax) => {
      const chunks = encodeKvAnswer(from, answer, bytesMax, 7);
      for (const chunk of chunks) {
        expect(chunk.length).toBeLessThanOrEqual(bytesMax);
        expect(kvChunkHeadOf(chunk)).toMatchObject({ answer: 7, chunks: chunks.length });
      }
      const read = decodeKvAnswer(chunks.reverse());
      expect(plain(read)).toEqual(plain({ source: from, answer }));
      if (chunks.length > 1) expect(() => decodeKvAnswer(chunks.slice(1))).toThrow("chunks of");
    }),
  );
});
