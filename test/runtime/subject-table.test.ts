import fc from "fast-check";
import { expect, it } from "vitest";
import { SubjectTable } from "../../src/runtime/subject-table.ts";

/** The rule of NATS, written as a regular expression. */
function matches(pattern: string, subject: string): boolean {
  const body = pattern
    .split(".")
    .map((token) => (token === "*" ? "[^.]+" : token === ">" ? ".+" : token))
    .join("\\.");
  return new RegExp(`^${body}$`).test(subject);
}

const token = fc.constantFrom("a", "b", "c");
const subject = fc.array(token, { minLength: 1, maxLength: 4 }).map((tokens) => tokens.join("."));
const pattern = fc
  .tuple(fc.array(fc.oneof(token, fc.constant("*")), { maxLength: 3 }), fc.boolean(), token)
  .map(([tokens, rest, last]) => [...tokens, rest ? ">" : last].join("."));

it("answers as the rule says under any adds and removes", () => {
  const step = fc.oneof(
    fc.record({ type: fc.constant("add" as const), pattern }),
    fc.record({ type: fc.constant("remove" as const), pick: fc.nat(20) }),
    fc.record({ type: fc.constant("match" as const), subject }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 100 }), (steps) => {
      const table = new SubjectTable<number>();
      const held: { pattern: string; value: number }[] = [];
      steps.forEach((current, value) => {
        if (current.type === "add") {
          table.add(current.pattern, value);
          held.push({ pattern: current.pattern, value });
        } else if (current.type === "remove") {
          const [gone] = held.splice(current.pick, 1);
          if (gone) table.remove(gone.pattern, gone.value);
        } else {
          const expected = held.filter((entry) => matches(entry.pattern, current.subject));
          expect(table.match(current.subject).toSorted((a, b) => a - b)).toEqual(
            expected.map((entry) => entry.value).toSorted((a, b) => a - b),
          );
        }
      });
    }),
    { numRuns: 300 },
  );
});
