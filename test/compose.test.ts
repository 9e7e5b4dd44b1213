/** `docker-compose.yml` against what the commands accept and what its pool config names. */
import { existsSync, readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { parse } from "yaml";
import { type Command, type FlagTable, parseCommand, variablesOf } from "../src/base/flags.ts";
import { commands } from "../src/cli/commands.ts";
import { type GlobalOptions, globalProblems } from "../src/cli/flags-global.ts";
import type { LocalOptions } from "../src/cli/flags-local.ts";
import type { WorkerMockOptions } from "../src/cli/flags-worker.ts";
import { loadPoolConfigFile } from "../src/config/load-pool-config.ts";
import { parseEndpointPath } from "../src/protocol/subjects.ts";
import { metricTables } from "../src/runtime/metric-table.ts";

interface Service {
  readonly image: string;
  readonly command: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly volumes?: readonly string[];
  readonly build?: string;
}

const file = (path: string): string => new URL(`../${path}`, import.meta.url).pathname;
const { services } = parse(readFileSync(file("docker-compose.yml"), "utf8"), { merge: true }) as {
  services: Readonly<Record<string, Service>>;
};
const ours = Object.entries(services).filter(([, { image }]) => image === "tiergrid:dev");

function commandOf({ command }: Service): { table: Command; argv: readonly string[] } {
  const table = commands.find(({ name }) =>
    `tiergrid ${command.join(" ")} `.startsWith(`${name} `),
  );
  if (table === undefined) throw new Error(`no command ${command.join(" ")}`);
  return { table, argv: command.slice(table.name.split(" ").length - 1) };
}

/** Options of the services that run `name`. */
function optionsOf<Options>(name: string): Options[] {
  return ours.flatMap(([, service]) => {
    const { table, argv } = commandOf(service);
    if (table.name !== name) return [];
    const parsed = parseCommand(table as Command<FlagTable>, argv, service.environment ?? {});
    return parsed.type === "options" ? [parsed.options as Options] : [];
  });
}

it.each(ours)("%s has a command line and an environment that its command takes", (_, service) => {
  const { table, argv } = commandOf(service);
  const environment = service.environment ?? {};
  const parsed = parseCommand(table, argv, environment);
  expect(parsed).toMatchObject({ type: "options", warnings: [] });
  const known = variablesOf(table.flags);
  for (const name of Object.keys(environment)) expect(known).toContain(name);
  expect(existsSync(file(`${service.build}/Dockerfile`))).toBe(true);
});

it("scrapes every service of ours", () => {
  const text = readFileSync(file("deploy/prometheus.yml"), "utf8");
  const { scrape_configs } = parse(text) as {
    scrape_configs: { dns_sd_configs: { names: string[] }[] }[];
  };
  const scraped = scrape_configs.flatMap(({ dns_sd_configs }) =>
    dns_sd_configs.flatMap(({ names }) => names),
  );
  expect([...new Set(scraped)].sort()).toEqual(ours.map(([name]) => name).sort());
});

it("alerts on metrics that exist", () => {
  const { groups } = parse(readFileSync(file("deploy/rules.yml"), "utf8")) as {
    groups: { rules: { expr: string }[] }[];
  };
  const names = new Set(Object.values(metricTables).flatMap((table) => Object.keys(table)));
  const used = groups.flatMap(({ rules }) =>
    rules.flatMap(({ expr }) => expr.match(/\b(?:tiergrid|dynamo)_[a-z_]+/g) ?? []),
  );
  expect(used.length).toBeGreaterThan(0);
  for (const name of used) expect(names).toContain(name.replace(/_bucket$/, ""));
});

it("mounts files that are there", () => {
  const mounted = Object.values(services).flatMap(({ volumes = [] }) => volumes);
  expect(mounted.length).toBeGreaterThan(0);
  for (const volume of mounted) expect(existsSync(file(volume.split(":")[0] ?? ""))).toBe(true);
});

it("starts a local router and workers for every pool of the config, alike in role and block", async () => {
  const [global, ...others] = optionsOf<GlobalOptions>("tiergrid global");
  expect(others).toEqual([]);
  if (global === undefined) throw new Error("no global router");
  expect(globalProblems(global)).toEqual([]);
  const path = file(global.config.replace(/^\/config\//, "pool-configs/"));
  const loaded = await loadPoolConfigFile(path, { ownNamespace: global.namespace, strict: true });
  if (!loaded.ok) throw new Error(JSON.stringify(loaded.faults));
  const wanted = loaded.config.roles.flatMap(({ role, pools }) =>
    pools.map(({ namespace }) => `${namespace} ${role === "agg" ? "aggregated" : role}`),
  );
  const served = ({ endpoint, role }: { endpoint: string; role: string }): string =>
    `${parseEndpointPath(endpoint).namespace} ${role}`;
  const locals = optionsOf<LocalOptions>("tiergrid local");
  const workers = optionsOf<WorkerMockOptions>("tiergrid worker mock");
  expect(locals.map(served).sort()).toEqual(wanted.sort());
  expect([...new Set(workers.map(served))].sort()).toEqual(wanted.sort());
  const endpoints = new Set(locals.map(({ endpoint }) => endpoint));
  const blockSizes = new Set(locals.map(({ blockSize }) => blockSize));
  for (const { endpoint, blockSize, modelName } of workers) {
    expect(endpoints).toContain(endpoint);
    expect([...blockSizes]).toEqual([blockSize]);
    expect(modelName).toBe(global.modelName);
  }
});
