/** `tiergrid simulate`: seeds one after the other, a line each. */
import { fileURLToPath } from "node:url";
import type { Given } from "../base/flags.ts";
import { loadPoolConfigFile, poolConfigError } from "../config/load-pool-config.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import { type SimulationReport, simulate } from "../sim/simulate.ts";
import type { simulateFlags } from "./flags-simulate.ts";

const workersPerPool = 2;

/** Runs the seeds; returns 1 when an invariant was broken. */
export async function run(
  { options }: Given<typeof simulateFlags>,
  print: (text: string) => void,
): Promise<number> {
  const { seed, seeds, requests, faults, spanMs, routersPerPool, json } = options;
  const config = await configOf(options.config);
  let broken = 0;
  for (let at = 0; at < seeds; at++) {
    const report = await simulate({
      seed: seed + at,
      config,
      requests,
      faults,
      spanMs,
      workersPerPool,
      routersPerPool,
    });
    if (report.violations.length > 0) broken++;
    print(json ? `${JSON.stringify(recordOf(report))}\n` : textOf(report));
  }
  if (!json) print(`${seeds - broken} of ${seeds} seeds keep every invariant\n`);
  return broken > 0 ? 1 : 0;
}

async function configOf(path: string | null): Promise<PoolConfig> {
  const file = path ?? fileURLToPath(new URL("../../pool-configs/demo.json", import.meta.url));
  const loaded = await loadPoolConfigFile(file, { ownNamespace: "dynamo" });
  if (!loaded.ok) throw poolConfigError(loaded.faults);
  return loaded.config;
}

function recordOf(report: SimulationReport): object {
  return { ...report, errors: Object.fromEntries(report.errors) };
}

function textOf(report: SimulationReport): string {
  const { seed, completed, failed, cancelled, migrations, tokens, errors, violations } = report;
  const codes = [...errors].map(([code, count]) => `${code} ${count}`).join(", ");
  const counts =
    `completed ${completed}  failed ${failed}  cancelled ${cancelled}  ` +
    `migrations ${migrations}  tokens ${tokens}`;
  const head = `seed ${seed}  ${counts}${codes === "" ? "" : `  (${codes})`}\n`;
  if (violations.length === 0) return head;
  const faults = report.faults.map(
    ({ atMs, durationMs, fault }) => `  at ${atMs} ms for ${durationMs} ms: ${fault.kind}\n`,
  );
  return `${head}${violations.map((text) => `  BROKEN ${text}\n`).join("")}${faults.join("")}`;
}
