/**
 * docs/grids.md is run, not trusted: every `tiergrid grid` line runs as it stands, prints what the page
 * shows, and the committed pictures are what the lines draw.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { commands, runCommand } from "../src/cli/commands.ts";

const page = readFileSync("docs/grids.md", "utf8");
const folder = mkdtempSync(join(tmpdir(), "tiergrid-docs-"));
afterAll(() => rmSync(folder, { recursive: true }));

interface Shown {
  readonly line: string;
  /** Lines of the block that follows; `…` stands for lines that are left out. */
  readonly output: readonly string[];
}

const lines = shownLines();
/** Files that the page itself writes, in the folder of this test. */
const written = new Map(
  lines.flatMap(({ line }) =>
    [...line.matchAll(/--(?:out|svg|html) (\S+)/g)].map(([, name = ""]) => [
      name,
      join(folder, name),
    ]),
  ),
);

function shownLines(): Shown[] {
  const blocks = [...page.matchAll(/^```sh\n([\s\S]*?)^```$(?:\s*^```\n([\s\S]*?)^```$)?/gm)];
  return blocks.flatMap(([, text = "", output = ""]) => {
    const joined = text
      .replaceAll(/\\\n\s*/g, "")
      .trim()
      .split("\n");
    const own = joined.filter((line) => line.startsWith("tiergrid grid "));
    return own.map((line) => ({ line, output: output.split("\n").filter(Boolean) }));
  });
}

/** A measured latency may differ by a tenth: it moves a little with every change of the cost. */
function isShown(printed: string, expected: string): boolean {
  if (!expected.includes(" p90 ")) return printed === expected;
  const number = /\d[\d.]*(?=[ )])/g;
  if (printed.replaceAll(number, "#") !== expected.replaceAll(number, "#")) return false;
  const [own = [], shown = []] = [printed, expected].map((text) => text.match(number) ?? []);
  return shown.every((text, at) => Math.abs(Number(own[at]) / Number(text) - 1) <= 0.1);
}

async function run(line: string) {
  const words = line.split(/\s+/).slice(1);
  const printed: string[] = [];
  const complaints: string[] = [];
  const code = await runCommand(
    words.map((word) => written.get(word) ?? word),
    {
      environment: {},
      print: (text) => void printed.push(text),
      complain: (text) => void complaints.push(text),
    },
  );
  return { code, printed: printed.join("").split("\n"), complaints };
}

it("prints what the page shows, in the order of the page", async () => {
  expect(lines.length).toBeGreaterThan(4);
  for (const { line, output } of lines) {
    if (line.includes("--nats")) continue;
    const { code, printed, complaints } = await run(line);
    expect([line, complaints]).toEqual([line, []]);
    expect([line, code]).toEqual([line, line.includes("grid lint") ? 1 : 0]);
    let from = 0;
    for (const expected of output) {
      if (expected === "…") continue;
      const at = printed.findIndex((own, place) => place >= from && isShown(own, expected));
      expect(at, `${line}\n${expected}`).toBeGreaterThanOrEqual(from);
      from = at + 1;
    }
  }
});

it("shows the pictures that the commands draw", async () => {
  const [show = ""] = lines.map(({ line }) => line).filter((line) => line.includes("grid show"));
  const [build = ""] = lines.map(({ line }) => line).filter((line) => line.includes("grid build"));
  await run(build);
  await run(show);
  written.set("built.svg", join(folder, "built.svg"));
  await run(show.replace("pool-configs/demo.json", "built.json").replace("demo.svg", "built.svg"));
  for (const [, path = ""] of page.matchAll(/!\[[^\]]*\]\((grids\/\S+)\)/g)) {
    const drawn = written.get(path.replace("grids/", "")) ?? path;
    expect(readFileSync(`docs/${path}`, "utf8"), path).toBe(readFileSync(drawn, "utf8"));
  }
});

it("names every grid command, and links to files that are there", () => {
  for (const { name } of commands) {
    if (name.startsWith("tiergrid grid ")) expect(page).toContain(`\`${name}\``);
  }
  for (const [, path] of page.matchAll(/\]\(([^):]+)\)/g)) {
    expect(() => readFileSync(`docs/${path}`)).not.toThrow();
  }
});
