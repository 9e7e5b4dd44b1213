import fc from "fast-check";
import { expect, it } from "vitest";
import { ReplicaBook, replicaBookingsMax } from "../../src/core/replica-book.ts";
import type { SequenceBooking } from "../../src/protocol/active-sequences.ts";

const bookingOf = (request: number, prefillTokens = 10): SequenceBooking => ({
  ...{ request, prefillTokens, cachedTokens: 0, expectedPrefillMs: 0 },
  ...{ workerId: "1", dpRank: 0, privateBlocks: 0 },
  sequence: new Uint32Array(0),
});

const change = fc.record({
  does: fc.constantFrom("add", "first", "free"),
  // Neighbours, and numbers that differ only above 2^32.
  request: fc.integer({ min: 0, max: 5 }).map((at) => (at < 3 ? at : at * 2 ** 32)),
  prefillTokens: fc.constantFrom(0, 10),
});

it("has the digest of a recount after any changes, and only equal books have equal digests", () => {
  const contents = new Map<string, string>();
  fc.assert(
    fc.property(fc.array(change, { maxLength: 30 }), (changes) => {
      const book = new ReplicaBook();
      const naive = new Map<number, number>();
      for (const { does, request, prefillTokens } of changes) {
        const tokens = naive.get(request);
        if (does === "add") {
          expect(book.add(bookingOf(request, prefillTokens))).toBe(tokens === undefined);
          if (tokens === undefined) naive.set(request, prefillTokens);
        } else if (does === "first") {
          expect(book.completePrefill(request)).toBe((tokens ?? 0) > 0);
          if (tokens !== undefined) naive.set(request, 0);
        } else {
          expect(book.free(request)).toBe(tokens !== undefined);
          naive.delete(request);
        }
      }
      const held = [...book.values()].map(({ request, prefillTokens }) => [request, prefillTokens]);
      expect(new Map(held as [number, number][])).toEqual(naive);
      expect(book.count).toBe(naive.size);
      const recount = new ReplicaBook();
      for (const [request, tokens] of [...naive].reverse()) recount.add(bookingOf(request, tokens));
      expect(book.digest).toBe(recount.digest);
      const content = JSON.stringify([...naive].sort());
      expect(contents.get(book.digest) ?? content).toBe(content);
      contents.set(book.digest, content);
    }),
    { seed: 21, numRuns: 1000 },
  );
  expect(contents.size).toBeGreaterThan(100);
});

it("takes as many bookings as allowed, and not one more", () => {
  const book = new ReplicaBook();
  for (let request = 0; request < replicaBookingsMax; request++) book.add(bookingOf(request));
  const { digest } = book;
  expect(book.add(bookingOf(replicaBookingsMax))).toBe(false);
  expect(book.count).toBe(replicaBookingsMax);
  expect(book.digest).toBe(digest);
});
