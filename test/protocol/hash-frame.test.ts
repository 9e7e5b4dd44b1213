import { expect, it } from "vitest";
import { decodeHashQuestion, encodeHashQuestion } from "../../src/protocol/hash-frame.ts";

const question = {
  body: { method: "new", request_id: "r" } as const,
  islTokens: 70,
  blockSize: 16,
  localHashes: Uint32Array.from([1, 0xffff_ffff, 3, 4, 0x8000_0000, 6, 7, 8]),
};
const frame = encodeHashQuestion(question);

it("reads a frame wherever it lies in its buffer", () => {
  for (let offset = 0; offset < 8; offset++) {
    const buffer = new Uint8Array(offset + frame.length + 3);
    buffer.set(frame, offset);
    const payload = buffer.subarray(offset, offset + frame.length);
    expect(decodeHashQuestion(payload)).toEqual(question);
    expect(decodeHashQuestion(Buffer.from(buffer.buffer, offset, frame.length))).toEqual(question);
    expect(Buffer.from(payload)).toEqual(frame);
  }
});

it("refuses a frame with a byte or a hash too few or too many", () => {
  for (const bytes of [frame.length - 8, frame.length - 1, frame.length + 1, frame.length + 8]) {
    const other = new Uint8Array(bytes);
    other.set(frame.subarray(0, bytes));
    expect(() => decodeHashQuestion(other)).toThrow("4 hashes of 8");
  }
});
