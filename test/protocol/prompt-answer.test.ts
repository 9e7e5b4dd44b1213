import fc from "fast-check";
import { expect, it } from "vitest";
import { TiergridError } from "../../src/base/errors.ts";
import {
  decodePromptAnswer,
  decodePromptQuestion,
  encodePromptAnswer,
  encodePromptQuestion,
  promptAnswerBytes,
} from "../../src/protocol/prompt-answer.ts";

const rid = "0123456789abcdef0123456789abcdef";
const tokens = Uint32Array.of(7, 0xffff_ffff, 0, 9);

function codeOf(read: () => unknown): string | undefined {
  try {
    read();
    return undefined;
  } catch (error) {
    expect(error).toBeInstanceOf(TiergridError);
    return (error as TiergridError).code;
  }
}

it("reads back every prompt, at any byte offset, and that there is none", () => {
  const anyTokens = fc.uint32Array({ maxLength: 50 });
  fc.assert(
    fc.property(anyTokens, fc.nat({ max: 7 }), (prompt, by) => {
      const answer = encodePromptAnswer(prompt);
      expect(answer).toHaveLength(promptAnswerBytes(prompt.length));
      const buffer = new Uint8Array(answer.length + by);
      buffer.set(answer, by);
      expect(decodePromptAnswer(buffer.subarray(by))).toEqual(prompt);
    }),
    { seed: 1 },
  );
  expect(decodePromptAnswer(encodePromptAnswer(undefined))).toBeUndefined();
});

it("takes an answer of any other length, version or kind for malformed", () => {
  const answer = encodePromptAnswer(tokens);
  for (let bytes = 0; bytes < answer.length + 9; bytes++) {
    if (bytes === answer.length) continue;
    const other = new Uint8Array(bytes);
    other.set(answer.subarray(0, bytes));
    expect(
      codeOf(() => decodePromptAnswer(other)),
      `${bytes} bytes`,
    ).toBe("malformed_reply");
  }
  for (const at of [0, 1, 2, 3, 4]) {
    const other = Uint8Array.from(answer);
    other[at] = 0xee;
    expect(
      codeOf(() => decodePromptAnswer(other)),
      `byte ${at}`,
    ).toBe("malformed_reply");
  }
});

it("gives only malformed_reply for hostile answers, only invalid_request for hostile questions", () => {
  const question = encodePromptQuestion({ rid, attempt: 1 });
  const mutated = (bytes: Uint8Array) =>
    fc.array(fc.tuple(fc.nat({ max: bytes.length - 1 }), fc.nat({ max: 255 }))).map((changes) => {
      const changed = Uint8Array.from(bytes);
      for (const [at, value] of changes) changed[at] = value;
      return changed;
    });
  const hostile = fc.oneof(fc.uint8Array(), mutated(encodePromptAnswer(tokens)), mutated(question));
  fc.assert(
    fc.property(hostile, (bytes) => {
      expect([undefined, "malformed_reply"]).toContain(codeOf(() => decodePromptAnswer(bytes)));
      expect([undefined, "invalid_request"]).toContain(codeOf(() => decodePromptQuestion(bytes)));
    }),
    { seed: 2, numRuns: 2_000 },
  );
});

it("asks by stream and attempt", () => {
  const question = { rid, attempt: 0xffff_ffff };
  expect(decodePromptQuestion(encodePromptQuestion(question))).toEqual(question);
  for (const wrong of [{ rid }, { rid: "x", attempt: 1 }, { rid, attempt: -1 }, []]) {
    const payload = Buffer.from(JSON.stringify(wrong));
    expect(codeOf(() => decodePromptQuestion(payload))).toBe("invalid_request");
  }
});
