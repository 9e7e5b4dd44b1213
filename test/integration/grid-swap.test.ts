/** The grid of running processes is swapped under load; the file is mounted as Kubernetes does it. */
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { GridAnswer } from "../../src/global-router/grid-control.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { startNats } from "./nats-fixture.ts";
import { createFleet, type Fleet, type Part, until } from "./processes.ts";
import { openStream, outcomesOf, promptOf, type Stream, streamsInFlight } from "./stream-client.ts";

const pools = ["left", "right"];

function configOf(number: number): object {
  return {
    mode: "agg",
    num_agg_pools: 2,
    agg_pool_dynamo_namespaces: number % 2 === 0 ? pools : [...pools].reverse(),
    agg_pool_selection_strategy: {
      ttft_min_ms: 100,
      ttft_max_ms: 1100 + number,
      ttft_resolution: 2,
      itl_min_ms: 10,
      itl_max_ms: 110,
      itl_resolution: 1,
      agg_pool_mapping: [[number % 3 === 0 ? 0 : 1], [0]],
    },
  };
}

let nats: NatsServer;
let fleet: Fleet;
let folder: string;
let config: string;

/** As a config map changes: a new folder, and one rename of the link that all files go through. */
async function mount(number: number, text = JSON.stringify(configOf(number))): Promise<void> {
  const data = `..data_${number}`;
  await mkdir(join(folder, data));
  await writeFile(join(folder, data, "pools.json"), text);
  await symlink(data, join(folder, "..data_tmp"));
  await rename(join(folder, "..data_tmp"), join(folder, "..data"));
}

async function grid(path: string, body?: object): Promise<GridAnswer> {
  const port = fleet.part("global").facts?.["system_port"];
  const init = body && { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(`http://127.0.0.1:${port}/grid/${path}`, init);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return (await response.json()) as GridAnswer;
}

async function selections(): Promise<number> {
  return (await fleet.metricsOf("global")).sum("tiergrid_pool_selections_total");
}

beforeAll(async () => {
  nats = await startNats();
  folder = await mkdtemp(join(tmpdir(), "tiergrid-swap-"));
  config = join(folder, "pools.json");
  await mount(0);
  await symlink("..data/pools.json", config);
  const parts: Part[] = [
    {
      name: "global",
      args: ["global", "--config", config, "--model-name", "mock-model", "--http-port", "0"],
    },
    ...pools.flatMap((pool): Part[] => {
      const served = ["--endpoint", `${pool}.backend.generate`];
      return [
        { name: `local ${pool}`, args: ["local", ...served, "--router-block-size", "64"] },
        { name: `worker ${pool}`, args: ["worker", "mock", ...served] },
      ];
    }),
  ];
  fleet = createFleet(nats.url, parts);
  await fleet.up();
});

afterAll(async () => {
  await fleet?.down();
  await nats?.stop();
  await rm(folder, { recursive: true, force: true });
});

it("swaps the grid 100 times and fails no request, whoever asks for the swap", async () => {
  const long = await streamsInFlight(fleet.api, 16, 600);
  const sent = await selections();
  const short: Stream[] = [];
  const seen = new Set<string>([(await grid("versions")).in_force]);
  let before = (await grid("versions")).in_force;
  for (let swap = 1; swap <= 100; swap++) {
    await mount(swap);
    // Every fifth is left to the watched folder, every tenth is a signal's.
    if (swap % 10 === 0) process.kill(fleet.part("global").pid, "SIGHUP");
    else if (swap % 5 !== 0) await grid("reload", {});
    for (let count = 0; count < 3; count++) {
      short.push(openStream(fleet.api, promptOf(100 + 3 * swap + count, 12)));
    }
    await until("the swap is made", async () => (await grid("versions")).in_force !== before);
    before = (await grid("versions")).in_force;
    seen.add(before);
  }
  expect(seen.size).toBe(101);
  expect(await outcomesOf(short)).toEqual({ exact: 300 });
  expect(await outcomesOf(long)).toEqual({ exact: 16 });
  await fleet.idle();
  const { history } = await grid("versions");
  expect(new Set(history.map(({ by }) => by))).toEqual(
    new Set(["start", "file", "http", "signal"]),
  );
  expect((await selections()) - sent).toBe(300);
});

it("keeps the grid when the file breaks, tries a new one on a share, and goes back", async () => {
  const { in_force: good } = await grid("versions");
  await mount(101, "{");
  await until(
    "the file is refused",
    async () => (await grid("versions")).last_reload?.result === "rejected",
  );
  expect((await grid("versions")).last_reload?.faults?.[0]?.reason).toBe("invalid-json");
  expect((await grid("versions")).in_force).toBe(good);
  await mount(102);
  await until("the next file is taken", async () => (await grid("versions")).in_force !== good);
  const { in_force: next } = await grid("rollback", {}).then(() => grid("versions"));
  expect(next).toBe(good);
  const { versions } = await grid("versions");
  const last = versions.at(-1)?.version;
  expect(await grid("canary", { percent: 50, version: last })).toMatchObject({ in_force: good });
  const streams = Array.from({ length: 40 }, (_, at) =>
    openStream(fleet.api, promptOf(500 + at, 8)),
  );
  expect(await outcomesOf(streams)).toEqual({ exact: 40 });
  const tallies = (await grid("versions")).versions.filter(({ state }) => state !== "kept");
  const shares = tallies.map(({ tally }) => tally.requests);
  expect(Math.min(...shares)).toBeGreaterThan(0);
  expect((await grid("promote", {})).in_force).toBe(last);
});
