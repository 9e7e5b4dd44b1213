import { expect, it } from "vitest";
import { mulberry32, randomInt, randomU32 } from "../../src/base/random.ts";
import { LiveBlocks } from "../../src/core/live-blocks.ts";

it("finds every live record again through growth, removal and colliding low lanes", () => {
  const random = mulberry32(11);
  const blocks = new LiveBlocks(1 << 20, random);
  const live = new Map<string, { record: number; refs: number; lanes: number[] }>();
  for (let round = 0; round < 12_000; round++) {
    const lo = random() < 0.5 ? 7 : randomInt(random, 0, 4000);
    const hi = random() < 0.9 ? randomInt(random, 0, 30) : randomU32(random);
    const holder = randomInt(random, 0, 3);
    const name = `${lo}/${hi}/${holder}`;
    const known = live.get(name);
    if (known && random() < 0.6) {
      const gone = blocks.release(known.record);
      expect(gone).toBe(known.refs === 1);
      if (gone) live.delete(name);
      else known.refs--;
      continue;
    }
    const record = blocks.acquire(lo, hi, holder);
    if (known) expect(record).toBe(known.record);
    live.set(name, { record, refs: (known?.refs ?? 0) + 1, lanes: [lo, hi, holder] });
    expect(blocks.refsOf(record)).toBe((known?.refs ?? 0) + 1);
  }
  expect(blocks.size).toBe(live.size);
  const shared = new Int32Array(4);
  for (const { lanes, refs, record } of live.values()) {
    blocks.sharedPrefix(Uint32Array.of(lanes[0]!, lanes[1]!), shared);
    expect(shared[lanes[2]!]).toBe(1);
    for (let left = refs; left > 0; left--) blocks.release(record);
    blocks.sharedPrefix(Uint32Array.of(lanes[0]!, lanes[1]!), shared);
    expect(shared[lanes[2]!]).toBe(0);
  }
  expect(blocks.size).toBe(0);
});

it("has room up to its maximum", () => {
  const blocks = new LiveBlocks(2, mulberry32(1));
  blocks.acquire(1, 0, 0);
  expect([blocks.hasRoom(1), blocks.hasRoom(2)]).toEqual([true, false]);
});
