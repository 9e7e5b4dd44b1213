/** The part of docs/grids.md that needs a running router: canary, versions, cells, calibration. */
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { startNats } from "./nats-fixture.ts";
import { patienceMs, root, until } from "./processes.ts";
import { type TiergridProcess, tiergrid } from "./tiergrid-process.ts";

const page = readFileSync(`${root}docs/grids.md`, "utf8");
const deploy = page.slice(page.indexOf("## Deploy"));
const lines = [...deploy.matchAll(/^```sh\n([\s\S]*?)^```$/gm)].flatMap(([, text = ""]) =>
  text.trim().split("\n"),
);
const folder = mkdtempSync(join(tmpdir(), "tiergrid-docs-"));
const live = join(folder, "live.json");
const built = join(folder, "built.json");
let nats: NatsServer | undefined;
let router: TiergridProcess | undefined;
const pools: TiergridProcess[] = [];

afterAll(async () => {
  await Promise.all(pools.map((pool) => pool.terminate()));
  await router?.terminate();
  await nats?.stop();
  rmSync(folder, { recursive: true });
});

interface Versions {
  readonly in_force: string;
  readonly canary: { readonly version: string; readonly percent: number } | null;
}

function lineWith(words: string): string {
  const found = lines.filter((line) => line.includes(words));
  if (found.length !== 1) throw new Error(`${found.length} lines with ${words}`);
  return found[0] ?? "";
}

/** A router without pools is not ready, and only a ready one says where it listens. */
async function freePort(): Promise<string> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return String(port);
}

it("tries a built grid on a share of the requests, promotes it, goes back, and measures", async () => {
  nats = await startNats();
  const words = lineWith("tiergrid global").replace(/ &$/, "").split(" ").slice(1);
  copyFileSync(`${root}pool-configs/demo.json`, live);
  const args = words.map((word) => (word === "live.json" ? live : word));
  const systemPort = await freePort();
  router = tiergrid(args, {
    NATS_SERVER: nats.url,
    DYN_SYSTEM_PORT: systemPort,
    DYN_HTTP_PORT: "0",
  });
  const curl = (line: string): unknown => {
    const own = line.replace("localhost:9090", `127.0.0.1:${systemPort}`);
    const { stdout } = spawnSync("sh", ["-c", own], { encoding: "utf8", timeout: patienceMs });
    return stdout === "" ? undefined : JSON.parse(stdout);
  };
  const versions = (): Versions | undefined => curl(lineWith("/grid/versions")) as Versions;
  await until("the router answers", () => versions() !== undefined);
  const first = versions()?.in_force;

  const build = /^tiergrid (grid build .*)$/m.exec(page)?.[1] ?? "";
  const command = build.replace("built.json", built).split(" ");
  expect(await tiergrid(command).ended()).toBe(0);
  expect(lineWith("cp built.json")).toBe("cp built.json live.json");
  copyFileSync(built, live);
  await until("the built grid is on trial", () => versions()?.canary?.percent === 10);
  const trial = versions()?.canary?.version;
  expect(trial).not.toBe(first);

  curl(lineWith("/grid/canary"));
  expect(versions()).toMatchObject({ in_force: first, canary: { version: trial, percent: 50 } });
  curl(lineWith("/grid/promote"));
  expect(versions()).toMatchObject({ in_force: trial, canary: null });
  curl(lineWith("/grid/rollback"));
  expect(versions()?.in_force).toBe(first);

  expect(curl(lineWith("/grid/cells"))).toMatchObject({ config_version: first, roles: [] });
  const line = lineWith("grid calibrate").replace(/nats:\/\/\S+/, nats.url);
  const calibrated = tiergrid(line.split(" ").slice(1));
  expect(await calibrated.ended()).toBe(0);
  expect(calibrated.stdout()).toContain("prefill: 0 of 21 cells change");
  const other = tiergrid(line.replace("pool-configs/demo.json", built).split(" ").slice(1));
  expect(await other.ended()).toBe(1);
  expect(other.stderr()).toContain(`version ${trial} gets no requests; --any-version takes`);

  startPools(nats.url);
  const [, apiPort = ""] = await router.says(/api=http:\/\/127\.0\.0\.1:(\d+)/);
  const shell = (own: string): string => {
    const here = own
      .replaceAll("request.json", join(folder, "request.json"))
      .replace("localhost:8000", `127.0.0.1:${apiPort}`)
      .replace("localhost:9090", `127.0.0.1:${systemPort}`);
    return spawnSync("sh", ["-c", here], { encoding: "utf8", timeout: patienceMs }).stdout;
  };
  shell(lineWith("> request.json"));
  let answer = "";
  await until("an answer comes", () => {
    answer = shell(lineWith("/v1/completions"));
    return answer.startsWith("HTTP/1.1 200");
  });
  const [, ids = ""] = /x-route-decision-id: (.*)/i.exec(answer) ?? [];
  const [prefill = "", decode = ""] = ids.split(",").map((id) => id.trim());
  const kept = lineWith("/explain/DECISION_ID");
  for (const [id, namespace] of [
    [prefill, "prefill-fast"],
    [decode, "decode-fast"],
  ] as const) {
    const decision = JSON.parse(shell(kept.replace("DECISION_ID", id)));
    expect(decision).toMatchObject({ decision_id: id, dry_run: false, result: { namespace } });
  }
  const asked = JSON.parse(shell(lineWith("localhost:9090/explain -H")));
  expect(asked.legs).toMatchObject([
    { role: "prefill", dry_run: true, local: { pool: "prefill-fast", candidates: [{}] } },
    { role: "decode", dry_run: true, local: { pool: "decode-fast", candidates: [{}] } },
  ]);
});

/** The pools that a short request without targets goes to: a local router and a worker each. */
function startPools(url: string): void {
  const environment = { NATS_SERVER: url, DYN_SYSTEM_PORT: "-1" };
  for (const role of ["prefill", "decode"]) {
    const served = ["--endpoint", `${role}-fast.backend.generate`, "--role", role];
    const local = ["local", ...served, "--router-block-size", "64"];
    for (const args of [local, ["worker", "mock", ...served]]) {
      pools.push(tiergrid(args, environment));
    }
  }
}
