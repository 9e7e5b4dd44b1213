import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { generateDocs } from "../scripts/generate-docs.ts";

it.each([...generateDocs()])(
  "%s says what the sources say; else run scripts/generate-docs.ts",
  (path, text) => {
    expect(readFileSync(new URL(`../${path}`, import.meta.url), "utf8")).toBe(text);
  },
);
