/**
 * README.md is run, not trusted: its commands exist, the fleet of separate processes starts with the
 * lines as they stand and answers the curl, and the pictures are what the commands draw.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { afterAll, expect, it } from "vitest";
import { loadPoolConfigFile } from "../../src/config/load-pool-config.ts";
import { renderGrid } from "../../src/config/render-grid.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { startNats } from "./nats-fixture.ts";
import { acceptTimeoutMs, patienceMs, root, until } from "./processes.ts";

const readme = readFileSync(`${root}README.md`, "utf8");
const blocks = [...readme.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(
  ([, language, text = ""]) => ({
    language,
    text,
  }),
);
const shell = blocks.filter(({ language }) => language === "sh").map(({ text }) => text);

let nats: NatsServer | undefined;
let fleet: ChildProcess | undefined;
/** The shell leads a process group of its own: the whole fleet goes with it. */
let killOnExit: (() => void) | undefined;

afterAll(async () => {
  if (fleet && killOnExit) {
    const ended = once(fleet, "exit");
    killOnExit();
    process.off("exit", killOnExit);
    await ended;
  }
  await nats?.stop();
});

/** The one shell block that contains `words`. */
function blockWith(words: string): string {
  const found = shell.filter((text) => text.includes(words));
  if (found.length !== 1) throw new Error(`${found.length} blocks with ${words}`);
  return found[0] ?? "";
}

it("names only scripts of package.json", () => {
  const { scripts } = JSON.parse(readFileSync(`${root}package.json`, "utf8"));
  const used = [...readme.matchAll(/npm (?:run (?:-s )?)?(test|(?<=run (?:-s )?)[\w:]+)/g)];
  const names = new Set(used.map(([, name]) => name));
  expect([...names]).toEqual(expect.arrayContaining(["demo", "test", "start:global", "tiergrid"]));
  for (const name of names) expect(scripts).toHaveProperty([String(name)]);
});

interface Answer {
  readonly choices: readonly { readonly finish_reason: string }[];
  readonly nvext: {
    readonly worker_id: Readonly<Record<string, unknown>>;
    readonly route: readonly { readonly pool: string; readonly cell: string }[];
  };
}

it("starts the fleet of separate processes, and the curl names pools, cells and workers", async () => {
  nats = await startNats();
  const lines = blockWith("nats-server -p 4222 &")
    .replace(/^nats-server .*\n/, "")
    .replaceAll(/--system-port \d+/g, "--system-port 0");
  expect(lines.match(/^npm run start:.* &$/gm)).toHaveLength(5);
  const env = {
    ...process.env,
    NATS_SERVER: nats.url,
    DYN_SYSTEM_PORT: "0",
    DYN_HTTP_PORT: "0",
    TIERGRID_ACCEPT_TIMEOUT_MS: String(acceptTimeoutMs),
  };
  fleet = spawn("sh", ["-c", `${lines}wait`], {
    ...{ cwd: root, env, detached: true },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const { pid = 0 } = fleet;
  killOnExit = (): void => void process.kill(-pid, "SIGKILL");
  process.once("exit", killOnExit);
  let log = "";
  fleet.stderr?.setEncoding("utf8").on("data", (text: string) => {
    log += text;
  });
  const api = (): string | undefined => /http:\/\/(127\.0\.0\.1:\d+)\/v1/.exec(log)?.[1];
  await until(
    "the API is ready",
    () => api() !== undefined,
    () => log,
  );
  const curl = blockWith("curl -s localhost:8000").replace("localhost:8000", String(api()));
  const { stdout } = spawnSync("sh", ["-c", curl], { encoding: "utf8", timeout: patienceMs });
  const answer = JSON.parse(stdout) as Answer;
  expect(answer.choices[0]?.finish_reason).toBe("length");
  expect(answer.nvext.route).toMatchObject([
    { role: "prefill", pool: "prefill", cell: "0.0" },
    { role: "decode", pool: "decode", cell: "0.0" },
  ]);
  const id = expect.stringMatching(/^\d+$/);
  const workers = { prefill_worker_id: id, decode_worker_id: id };
  expect(answer.nvext.worker_id).toMatchObject(workers);
});

it("explains a request as the text around the command says", () => {
  const command = blockWith("tiergrid -- explain");
  const run = (line: string): string =>
    spawnSync("sh", ["-c", line], { cwd: root, encoding: "utf8", timeout: patienceMs }).stdout;
  expect(readme).toContain("row `8192 .. 16384`, column `< 400 ms`: pool `prefill-fast`");
  const targeted = run(command);
  expect(targeted).toContain("prefill: pool 0 prefill-fast");
  expect(targeted).toContain("in cell 3, 8192 to 16384");
  expect(targeted).toContain("in cell 0, 100 to 400");
  expect(run(command.replace("--ttft-target-ms 300", ""))).toContain(
    "prefill: pool 1 prefill-bulk",
  );
});

it("shows the grid that the command draws", async () => {
  const [, path = "", role] = /<!-- grid: (\S+) (\w+) -->/.exec(readme) ?? [];
  const loaded = await loadPoolConfigFile(`${root}${path}`, { ownNamespace: "dynamo" });
  if (!loaded.ok || role !== "prefill") throw new Error(`not a grid: ${path} ${role}`);
  const below = /^```\n([\s\S]*?)^```$/m.exec(readme.slice(readme.indexOf("<!-- grid:")));
  expect(below?.[1]).toBe(renderGrid(loaded.config, role));
});

it("shows JSON that is JSON, and links to files that are there", () => {
  const json = blocks.filter(({ language }) => language === "json");
  expect(json.length).toBeGreaterThan(0);
  for (const { text } of json) expect(() => JSON.parse(text)).not.toThrow();
  for (const [, path] of readme.matchAll(/\]\(([^):]+)\)/g)) {
    expect(() => readFileSync(`${root}${path}`)).not.toThrow();
  }
});
