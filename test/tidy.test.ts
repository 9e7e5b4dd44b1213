/**
 * The rules about files that the linter cannot see: floors, the one place for `nats`, names, sizes,
 * time and randomness as parameters, no circles of imports, and that nothing in `src/` is dead.
 * Every violation is listed as `file:line  rule`.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { expect, it } from "vitest";

const root = resolve(import.meta.dirname, "..");
const fileLinesMax = 400;
const entryFiles = ["src/cli/main.ts"];

/** Floor of each folder; a file imports its own floor or a lower one. */
const floors: Readonly<Record<string, number>> = {
  base: 0,
  protocol: 1,
  core: 2,
  config: 3,
  runtime: 4,
  "local-router": 5,
  "global-router": 5,
  worker: 5,
  frontend: 5,
  sim: 6,
  cli: 7,
};
/** Folders of this floor meet on the bus and never import each other. */
const separateFloor = 5;

const forbiddenName = /^index$|(?:^|-)(?:utils?|helpers?|common|types?|misc|shared|manager)(?:-|$)/;
const timeOrChance = new RegExp(
  [
    String.raw`\bDate\.now\b`,
    String.raw`\bMath\.random\b`,
    String.raw`\bperformance\.now\b`,
    String.raw`\bprocess\.hrtime\b`,
    String.raw`\bAbortSignal\.timeout\b`,
    String.raw`\bset(?:Timeout|Interval)\s*\(`,
    "[\"']node:timers(?:/promises)?[\"']",
  ].join("|"),
  "g",
);
/** Files that may read the machine's clock: the clock, and the launcher of real processes. */
const timeOwners = new Set([
  "src/base/clock.ts",
  "src/runtime/find-nats-server.ts",
  "src/runtime/nats-server.ts",
]);
/** The client package of the broker stays behind the bus interface. */
const busPackage = /^(?:nats|@nats-io\/.*)$/;
const busOwner = /^src\/runtime\/nats-(?:bus|client|socket|durable)(?:-[a-z-]+)?\.ts$/;

interface SourceFile {
  /** Path from the repository, with slashes. */
  readonly path: string;
  readonly text: string;
}

interface Imported {
  readonly specifier: string;
  readonly line: number;
}

it("keeps every file of src/ inside the rules", () => {
  const files = readFolder("src");
  expect(files.length).toBeGreaterThan(0);
  expect(files.flatMap(violationsOf)).toEqual([]);
});

it("leads from an entry point to every file of src/", () => {
  expect(unreachable(readFolder("src"))).toEqual([]);
});

it("has no circles of imports in src/", () => {
  expect(inCircles(readFolder("src"))).toEqual([]);
});

it("keeps barrels and catch-all names out of test/ and bench/ too", () => {
  const files = ["test", "bench"].flatMap(readFolder);
  expect(files.flatMap(nameViolations)).toEqual([]);
});

it.each<[string, string, string, string]>([
  ["a higher floor", "src/core/a.ts", 'import { x } from "../runtime/bus.ts";', "a.ts:1  floor"],
  ["a neighbour", "src/worker/a.ts", '\nimport "../frontend/b.ts";', "a.ts:2  worker and frontend"],
  ["a lazy import", "src/base/a.ts", 'await import(\n"../cli/main.ts")', "a.ts:2  floor"],
  ["the raw client", "src/runtime/a.ts", 'import { connect } from "nats";', "a.ts:1  only the bus"],
  ["a barrel", "src/core/a.ts", 'export * from "./b.ts";', "a.ts:1  re-export"],
  ["an index file", "src/core/index.ts", "", "index.ts:1  name"],
  ["a catch-all name", "src/core/string-utils.ts", "", "string-utils.ts:1  name"],
  ["a wall clock", "src/core/a.ts", "\n\nDate.now();", "a.ts:3  `Date.now`"],
  ["chance", "src/sim/a.ts", "const x = Math.random;", "a.ts:1  `Math.random`"],
  ["a long file", "src/core/a.ts", "\n".repeat(401), "a.ts:401  longer"],
])("sees %s", (_name, path, text, expected) => {
  expect(violationsOf({ path, text }).join("\n")).toContain(expected);
});

it("finds the files that nothing imports", () => {
  const main = { path: "src/cli/main.ts", text: 'await import("./a.ts");' };
  const used = { path: "src/cli/a.ts", text: 'new URL("../core/b.ts", import.meta.url)' };
  const thread = { path: "src/core/b.ts", text: 'import type { C } from "./b.ts";' };
  const dead = { path: "src/core/c.ts", text: 'import "./b.ts";' };
  expect(unreachable([main, used, thread, dead])).toEqual([
    "src/core/c.ts:1  no entry point leads here",
  ]);
});

it("finds circles of imports, not the files around them", () => {
  const above = { path: "src/core/a.ts", text: 'import { b } from "./b.ts";' };
  const one = { path: "src/core/b.ts", text: 'import type { C } from "./c.ts";' };
  const other = { path: "src/core/c.ts", text: 'import { b } from "./b.ts"; import "./d.ts";' };
  const below = { path: "src/core/d.ts", text: "" };
  expect(inCircles([above, one, other, below])).toEqual(["src/core/b.ts", "src/core/c.ts"]);
});

it("does not take comments for code", () => {
  const text = "// Date.now()\n/* Math.random()\n setTimeout( */\nconst url = 'http://x/';\n";
  expect(violationsOf({ path: "src/core/a.ts", text })).toEqual([]);
});

function violationsOf(file: SourceFile): string[] {
  return [
    ...nameViolations(file),
    ...sizeViolations(file),
    ...importViolations(file),
    ...timeViolations(file),
  ];
}

function nameViolations({ path, text }: SourceFile): string[] {
  const found: string[] = [];
  const name = path.slice(path.lastIndexOf("/") + 1).replace(/(?:\.test)?\.ts$/, "");
  if (forbiddenName.test(name)) found.push(`${path}:1  name says nothing: ${name}`);
  const code = withoutComments(text);
  for (const match of code.matchAll(/^\s*export\s+(?:type\s+)?(?:\*|\{[^}]*\}\s*from)/gm)) {
    found.push(`${path}:${lineAt(code, match.index)}  re-export`);
  }
  return found;
}

function sizeViolations({ path, text }: SourceFile): string[] {
  const lines = text.trimEnd() === "" ? text.split("\n").length : text.trimEnd().split("\n").length;
  if (lines <= fileLinesMax) return [];
  return [`${path}:${fileLinesMax + 1}  longer than ${fileLinesMax} lines: ${lines}`];
}

function importViolations(file: SourceFile): string[] {
  const found: string[] = [];
  const folder = folderOf(file.path);
  const floor = folder === undefined ? undefined : floors[folder];
  if (folder === undefined || floor === undefined) return [`${file.path}:1  folder has no floor`];
  for (const { specifier, line } of importsOf(file)) {
    const at = `${file.path}:${line}`;
    if (busPackage.test(specifier) && !busOwner.test(file.path)) {
      found.push(`${at}  only the bus imports ${specifier}`);
    }
    if (!specifier.startsWith(".")) continue;
    const target = folderOf(targetOf(file.path, specifier));
    const targetFloor = target === undefined ? undefined : floors[target];
    if (target === undefined || targetFloor === undefined) continue;
    if (targetFloor > floor) found.push(`${at}  floor ${floor} imports ${target} (${targetFloor})`);
    else if (target !== folder && targetFloor === separateFloor && floor === separateFloor) {
      found.push(`${at}  ${folder} and ${target} must not import each other`);
    }
  }
  return found;
}

function timeViolations({ path, text }: SourceFile): string[] {
  if (timeOwners.has(path)) return [];
  const code = withoutComments(text);
  return [...code.matchAll(timeOrChance)].map(
    (match) => `${path}:${lineAt(code, match.index)}  \`${match[0]}\`: take a Clock or a Random`,
  );
}

/** Files no entry point leads to. */
function unreachable(files: readonly SourceFile[]): string[] {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const reached = new Set<string>();
  const waiting = [...entryFiles];
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    const file = byPath.get(path);
    if (file === undefined || reached.has(path)) continue;
    reached.add(path);
    for (const { specifier } of importsOf(file)) {
      if (specifier.startsWith(".")) waiting.push(targetOf(path, specifier));
    }
  }
  const dead = files.filter((file) => !reached.has(file.path));
  return dead.map((file) => `${file.path}:1  no entry point leads here`);
}

/** Files on a circle of static imports, types included: what is left without the ends of all ways. */
function inCircles(files: readonly SourceFile[]): string[] {
  const form = /\bfrom\s*"(\.[^"\n]+)"/g;
  const left = new Map(
    files.map(({ path, text }) => {
      const found = [...withoutComments(text).matchAll(form)];
      return [path, new Set(found.map((match) => targetOf(path, match[1] ?? "")))];
    }),
  );
  for (let before = -1; before !== left.size; ) {
    before = left.size;
    const imported = new Set([...left.values()].flatMap((targets) => [...targets]));
    for (const [path, targets] of left) {
      const leadsOn = [...targets].some((target) => left.has(target));
      if (!leadsOn || !imported.has(path)) left.delete(path);
    }
  }
  return [...left.keys()];
}

/** Static, lazy and worker-thread (`new URL("./x.ts", import.meta.url)`) imports. */
function importsOf({ text }: SourceFile): Imported[] {
  const code = withoutComments(text);
  const form = /(?:\bfrom\s*|\bimport\s*\(?\s*|\bnew URL\(\s*)(["'])([^"'\n]+)\1/g;
  return [...code.matchAll(form)].map((match) => {
    const specifier = match[2] ?? "";
    return { specifier, line: lineAt(code, match.index + match[0].length - 1) };
  });
}

function targetOf(path: string, specifier: string): string {
  return slashed(relative(root, resolve(root, dirname(path), specifier)));
}

function folderOf(path: string): string | undefined {
  return /^src\/([^/]+)\//.exec(path)?.[1];
}

/** `text` with comments blanked, so that offsets and lines stay; strings are kept. */
function withoutComments(text: string): string {
  const piece =
    /"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|\/\/[^\n]*|\/\*[\s\S]*?\*\//g;
  return text.replace(piece, (found) =>
    found.startsWith("/") ? found.replace(/[^\n]/g, " ") : found,
  );
}

function lineAt(text: string, offset: number): number {
  return text.slice(0, offset).split("\n").length;
}

function readFolder(folder: string): SourceFile[] {
  if (!existsSync(join(root, folder))) return [];
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .sort()
    .map((name) => ({
      path: `${folder}/${slashed(name)}`,
      text: readFileSync(join(root, folder, name), "utf8"),
    }));
}

function slashed(path: string): string {
  return path.replaceAll("\\", "/");
}
