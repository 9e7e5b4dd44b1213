/**
 * A consistent-hash ring: 256 points per worker at XXH64(worker id followed by the point's number).
 *
 *   points   0x0a…  0x3f…  0x91…  0xe2…     ascending
 *   owners     w1     w0     w1     w2
 *
 * A key belongs to the first point that is not below it; beyond the last one to the first.
 */
import type { U64 } from "../../protocol/u64.ts";
import { xxh64 } from "./xxh64.ts";

export const pointsPerWorker = 256;

export interface HashRing {
  readonly size: number;
  /** Place of the first point at or after `key`. */
  find(key: U64): number;
  /** Worker of a point; places beyond the end wrap. */
  workerAt(place: number): number;
}

export function hashRing(workerIds: readonly string[]): HashRing {
  const points = workerIds.flatMap((workerId, worker) =>
    Array.from({ length: pointsPerWorker }, (_, point) => ({
      worker,
      at: xxh64(`${workerId}${point}`),
    })),
  );
  points.sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
  const starts = BigUint64Array.from(points, ({ at }) => at);
  const owners = Int32Array.from(points, ({ worker }) => worker);
  return {
    size: points.length,
    find({ lo, hi }) {
      const key = (BigInt(hi) << 32n) | BigInt(lo);
      let from = 0;
      let to = starts.length;
      while (from < to) {
        const middle = (from + to) >> 1;
        if ((starts[middle] ?? 0n) < key) from = middle + 1;
        else to = middle;
      }
      return from % starts.length;
    },
    workerAt: (place) => owners[place % owners.length] ?? 0,
  };
}
