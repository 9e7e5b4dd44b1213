import fc from "fast-check";
import { expect, it } from "vitest";
import { AnswerText } from "../../src/frontend/answer-text.ts";
import { loadTokenizer, mockModelFolder } from "../../src/frontend/tokenizer.ts";

const tokenizer = loadTokenizer(mockModelFolder);
const defaults = {
  tokenizer,
  skipSpecialTokens: true,
  stopStrings: [] as readonly string[],
  keepStop: false,
  minTokens: 0,
};

/** Pushes `ids` in pieces and gathers what a client would see. */
function answer(ids: readonly number[], pieceTokens: number, options: Partial<typeof defaults>) {
  const answerText = new AnswerText({ ...defaults, ...options });
  let text = "";
  for (let at = 0; at < ids.length; at += pieceTokens) {
    const piece = answerText.push({ tokenIds: ids.slice(at, at + pieceTokens) });
    text += piece.text;
    if (piece.stoppedBy !== undefined) {
      return { text, stoppedBy: piece.stoppedBy, tokens: answerText.tokens };
    }
  }
  const rest = answerText.end();
  return { text: text + rest.text, stoppedBy: rest.stoppedBy, tokens: answerText.tokens };
}

const bytes = (text: string) => [...Buffer.from(text)];

it("ends before a stop string that lies across tokens, and counts no token after it", () => {
  const stopStrings = ["END"];
  expect(answer(bytes("one END two"), 1, { stopStrings })).toEqual({
    text: "one ",
    stoppedBy: "END",
    tokens: 7,
  });
  expect(answer(bytes("one END two"), 100, { stopStrings })).toEqual({
    text: "one ",
    stoppedBy: "END",
    tokens: 7,
  });
});

it("keeps the stop string when asked to", () => {
  expect(answer(bytes("one END"), 1, { stopStrings: ["END"], keepStop: true }).text).toBe(
    "one END",
  );
});

it("gives back what looked like a stop string when the answer ends", () => {
  expect(answer(bytes("one EN"), 2, { stopStrings: ["END"] })).toEqual({
    text: "one EN",
    stoppedBy: undefined,
    tokens: 6,
  });
});

it("looks for stop strings only after the least number of tokens", () => {
  const stopStrings = ["b"];
  expect(answer(bytes("abab"), 1, { stopStrings, minTokens: 3 }).text).toBe("aba");
});

it("never lets a beginning of a stop string out early", () => {
  const answerText = new AnswerText({ ...defaults, stopStrings: ["\n\nUser:"] });
  const pieces = bytes("hi\n\nUse it").map((byte) => answerText.push({ tokenIds: [byte] }).text);
  expect(pieces).toEqual(["h", "i", "", "", "", "", "", "\n\nUse ", "i", "t"]);
});

it("takes the text of engines that detokenize themselves", () => {
  const answerText = new AnswerText({ ...defaults, stopStrings: ["STOP"] });
  expect(answerText.push({ tokenIds: [1, 2], text: "a ST" }).text).toBe("a ");
  expect(answerText.push({ tokenIds: [3], text: "OP b" })).toMatchObject({ stoppedBy: "STOP" });
});

it("cuts any text at its first stop string, however it arrives", () => {
  const letters = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 30 });
  const stops = fc.array(
    fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 2, maxLength: 4 }),
    { minLength: 1, maxLength: 3 },
  );
  fc.assert(
    fc.property(
      letters,
      stops,
      fc.integer({ min: 1, max: 5 }),
      (text, stopStrings, pieceTokens) => {
        const got = answer(bytes(text), pieceTokens, { stopStrings });
        // Oracle: the shortest beginning of the text that holds a whole stop string.
        let shown: string | undefined;
        for (let end = 1; end <= text.length && shown === undefined; end++) {
          const seen = text.slice(0, end);
          const places = stopStrings.map((stop) => seen.indexOf(stop)).filter((at) => at >= 0);
          if (places.length > 0) shown = text.slice(0, Math.min(...places));
        }
        expect(got.text).toBe(shown ?? text);
        expect(got.stoppedBy !== undefined).toBe(shown !== undefined);
      },
    ),
    { numRuns: 2000 },
  );
});
