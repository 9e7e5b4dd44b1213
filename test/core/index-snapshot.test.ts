import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import {
  encodeSnapshotHead,
  openSnapshot,
  rowsChecksum,
  type SnapshotHead,
} from "../../src/core/index-snapshot.ts";
import { codeOf } from "../runtime/bus-conformance.ts";

const rows = Uint32Array.from({ length: 15 }, (_, i) => (i % 5 === 0 ? (3 << 4) | 1 : i * 977));

const head: SnapshotHead = {
  mode: "opaque",
  blockSize: 64,
  sequence: 5 * 4294967296 + 7,
  rowsChecksum: rowsChecksum(rows),
  rowCount: 3,
  holders: [
    {
      slot: 3,
      workerId: "18446744073709551615",
      dpRank: 1,
      last: 2 ** 40,
      stateSource: "é-epoch",
      blocks: 3,
    },
    { slot: 0, workerId: "7", dpRank: 0, last: -1, stateSource: "", blocks: 0 },
  ],
};

function bytesOf(written: SnapshotHead = head): Uint8Array {
  return new Uint8Array(Buffer.concat([encodeSnapshotHead(written), new Uint8Array(rows.buffer)]));
}

it("reads back what was written, at any offset in memory", () => {
  const bytes = bytesOf();
  const shifted = new Uint8Array(bytes.length + 1);
  shifted.set(bytes, 1);
  for (const given of [bytes, shifted.subarray(1)]) {
    const opened = openSnapshot(given);
    expect(opened.head).toEqual(head);
    expect(opened.rows).toEqual(rows);
    expect(rowsChecksum(opened.rows)).toBe(head.rowsChecksum);
  }
});

it("takes an empty index", () => {
  const empty = { ...head, holders: [], rowCount: 0, rowsChecksum: 0 };
  expect(openSnapshot(encodeSnapshotHead(empty)).head).toEqual(empty);
});

it("checks rows in slices as it does at once", () => {
  const sliced = rowsChecksum(rows.subarray(10), rowsChecksum(rows.subarray(0, 10)));
  expect(sliced).toBe(rowsChecksum(rows));
});

it("sees every flipped bit of the head, and every one of the rows by their checksum", () => {
  const good = bytesOf();
  const headBytes = encodeSnapshotHead(head).length;
  for (let bit = 0; bit < 8 * good.length; bit++) {
    const bytes = good.slice();
    bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    if (bit >> 3 < headBytes) expect(codeOf(() => openSnapshot(bytes))).toBe("malformed_reply");
    else expect(rowsChecksum(openSnapshot(bytes).rows)).not.toBe(head.rowsChecksum);
  }
});

it("refuses cut, grown and random bytes with one kind of fault", () => {
  const good = bytesOf();
  const random = mulberry32(11);
  for (let length = 0; length < good.length; length++) {
    expect(codeOf(() => openSnapshot(good.slice(0, length)))).toBe("malformed_reply");
  }
  const grown = Buffer.concat([good, new Uint8Array(4)]);
  expect(codeOf(() => openSnapshot(grown))).toBe("malformed_reply");
  for (let round = 0; round < 500; round++) {
    const noise = Uint8Array.from({ length: 4 * randomInt(random, 0, 39) }, () =>
      randomInt(random, 0, 255),
    );
    noise.set(good.subarray(0, Math.min(8, noise.length)));
    expect(codeOf(() => openSnapshot(noise))).toBe("malformed_reply");
  }
});
