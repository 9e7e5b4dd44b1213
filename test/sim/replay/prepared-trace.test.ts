import { expect, it } from "vitest";
import { mulberry32 } from "../../../src/base/random.ts";
import {
  formatMooncakeTrace,
  parseMooncakeTrace,
  type TraceRequest,
} from "../../../src/sim/mooncake-trace.ts";
import { prepareTrace } from "../../../src/sim/replay/prepared-trace.ts";
import { synthesisPresets, synthesizeTrace } from "../../../src/sim/trace-synth.ts";

const random = () => mulberry32(1);

function request(part: Partial<TraceRequest>): TraceRequest {
  return { arrivalMs: 0, inputTokens: 512, outputTokens: 5, hashIds: [0], ...part };
}

it.each([512, 128, 64])(
  "names equal content alike and different content apart: %i",
  (blockSize) => {
    const requests = synthesizeTrace({ ...synthesisPresets["toolagent-ci"], requests: 400 });
    const { sequences } = prepareTrace(requests, { blockSize, spreadMs: 0, random: random() });
    const parts = 512 / blockSize;
    const names = new Map<string, string>();
    for (const [place, { hashIds, inputTokens }] of requests.entries()) {
      const lanes = sequences[place] ?? new Uint32Array(0);
      expect(lanes.length / 2).toBe(Math.floor(inputTokens / blockSize));
      for (let block = 0; block < lanes.length / 2; block++) {
        const content = `${hashIds[Math.floor(block / parts)]}.${block % parts}`;
        const name = `${lanes[2 * block]}.${lanes[2 * block + 1]}`;
        expect(names.get(content) ?? name).toBe(name);
        names.set(content, name);
      }
    }
    expect(new Set(names.values()).size).toBe(names.size);
  },
);

it("tells ids apart that differ by 2^32 only", () => {
  const ids = [1, 1 + 2 ** 32, 2 ** 52];
  const requests = ids.map((id) => request({ hashIds: [id] }));
  const { sequences } = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: random() });
  expect(new Set(sequences.map((lanes) => lanes.join())).size).toBe(3);
});

it("refuses a block size that does not divide 512", () => {
  const prepare = (blockSize: number) =>
    prepareTrace([request({})], { blockSize, spreadMs: 0, random: random() });
  expect(() => prepare(96)).toThrow(/divisor of 512, got 96/);
  expect(() => prepare(1024)).toThrow(/divisor of 512/);
});

it("spreads arrivals by one draw each in file order, and sorts them", () => {
  const requests = [0, 0, 3000].map((arrivalMs, place) =>
    request({ arrivalMs, outputTokens: place + 1 }),
  );
  const draws = random();
  const expected = requests
    .map(({ arrivalMs, outputTokens }) => ({ atMs: arrivalMs + draws() * 3000, outputTokens }))
    .sort((a, b) => a.atMs - b.atMs);
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 3000, random: random() });
  expect([...trace.arrivalsMs]).toEqual(expected.map(({ atMs }) => atMs));
  expect([...trace.outputTokens]).toEqual(expected.map(({ outputTokens }) => outputTokens));
});

it("links the turns of a session that wait for the turn before", () => {
  const rows = [
    { timestamp: 10, input_length: 5, output_length: 1, hash_ids: [0], session_id: "a" },
    { timestamp: 20, input_length: 5, output_length: 1, hash_ids: [1], session_id: 7 },
    { input_length: 5, output_length: 1, hash_ids: [2], session_id: "a", delay: 100 },
    { created_time: 40, input_length: 5, output_length: 1, hash_ids: [3], session_id: 7 },
    { input_length: 5, output_length: 1, hash_ids: [4], session_id: "a", delay_ms: 50 },
  ];
  const requests = parseMooncakeTrace(rows.map((row) => JSON.stringify(row)).join("\n"));
  expect(parseMooncakeTrace(formatMooncakeTrace(requests))).toEqual(requests);
  const trace = prepareTrace(requests, { blockSize: 512, spreadMs: 0, random: random() });
  expect([...trace.nextTurn]).toEqual([2, -1, 4, -1, -1]);
  expect([...trace.follows]).toEqual([0, 0, 1, 0, 1]);
  expect([...trace.delaysMs]).toEqual([0, 0, 100, 0, 50]);
});

it("refuses rows that have neither a time nor a session to wait in", () => {
  const row = { input_length: 5, output_length: 1, hash_ids: [2] };
  const parse = (more: object) => () => parseMooncakeTrace(JSON.stringify({ ...row, ...more }));
  expect(parse({ delay: 5 })).toThrow(/timestamp/);
  expect(parse({ session_id: "a" })).toThrow(/timestamp/);
  expect(parse({ session_id: "a", delay: -1 })).toThrow(/delay: expected milliseconds/);
  expect(parse({ session_id: {}, delay: 1 })).toThrow(/session_id: expected text/);
});
