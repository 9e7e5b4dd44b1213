/** Where the measurements of `tiergrid grid calibrate` come from: a file, a router, a replay. */
import { realClock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { osRandom } from "../base/random.ts";
import { formatFault } from "../config/config-fault.ts";
import { formatOfPath, parseConfigText, readConfigText } from "../config/config-text.ts";
import type { PoolConfig, RolePools } from "../config/pool-config.ts";
import { isFileObject } from "../config/pool-config-keys.ts";
import {
  type MeasuredCells,
  type MeasuredRole,
  readMeasuredCells,
} from "../core/grid-calibrate.ts";
import type { TrafficRequest } from "../core/grid-traffic.ts";
import { endpointSubject } from "../protocol/subjects.ts";
import { connectNatsBus } from "../runtime/nats-bus.ts";
import { natsServers } from "../runtime/nats-bus-credentials.ts";
import { type PoolEngines, replayCells } from "../sim/replay/replay-cells.ts";
import { recordedBatchMs } from "../sim/workload.ts";
import type { GridCalibrateOptions } from "./flags-grid.ts";
import { classifyTrace, traceOf } from "./grid-requests.ts";

const answerTimeoutMs = 2_000;
const replayedWorkersMax = 1024;

/** The measurements that the flags name; throws `config_invalid` unless it is one source. */
export async function measuredCells(
  config: PoolConfig,
  options: GridCalibrateOptions,
): Promise<MeasuredCells> {
  const { cells, nats, replay } = options;
  if ([cells, nats, replay].filter((source) => source !== null).length !== 1) {
    throw new TiergridError("config_invalid", "expected one of --cells, --nats and --replay");
  }
  if (cells !== null) return await readCellsFile(cells);
  if (nats !== null) return await askCells(config.version, { ...options, nats });
  return await replayFile(config, options);
}

async function readCellsFile(path: string): Promise<MeasuredCells> {
  return readMeasuredCells(await readFile("--cells", path));
}

async function readFile(flag: string, path: string): Promise<unknown> {
  const read = await readConfigText(path);
  const parsed = read.ok ? parseConfigText(read.text, formatOfPath(path)) : read;
  if (parsed.ok) return parsed.value;
  throw new TiergridError("config_invalid", `${flag}: ${formatFault(parsed.fault)}`);
}

/** What the global router of the namespace has measured under `version`, or under what it runs. */
async function askCells(
  version: string,
  options: GridCalibrateOptions & { readonly nats: string },
): Promise<MeasuredCells> {
  const { namespace, componentName: component, anyVersion } = options;
  const access = natsServers(options.nats);
  const clock = realClock;
  const bus = await connectNatsBus({
    ...access,
    role: "ob",
    clock,
    random: osRandom,
    failFast: true,
  });
  try {
    const subject = endpointSubject({ namespace, component, endpoint: "cells" });
    const question = new TextEncoder().encode(JSON.stringify(anyVersion ? {} : { version }));
    const reply = await bus.request(subject, question, { timeoutMs: answerTimeoutMs });
    const answer: unknown = JSON.parse(new TextDecoder().decode(reply.payload));
    const refused = isFileObject(answer) ? answer["error"] : undefined;
    if (!isFileObject(refused)) return readMeasuredCells(answer);
    throw new TiergridError("not_found", `the global router: ${String(refused["message"])}`);
  } finally {
    await bus.close();
  }
}

/** Measures `--traffic` against the engines of a file: one role after the other, told on stderr. */
async function replayFile(
  config: PoolConfig,
  options: GridCalibrateOptions,
): Promise<MeasuredCells> {
  const { traffic, seed, speed, explore } = options;
  if (traffic === null) throw new TiergridError("config_invalid", "--replay needs --traffic");
  const file = await readFile("--replay", options.replay ?? "");
  const requests = await traceOf(traffic, seed);
  const classified = classifyTrace(requests, options);
  const roles = config.roles.flatMap((pools): MeasuredRole[] => {
    if (pools.role === "decode") {
      process.stderr.write("decode: not replayed, its cells stay\n");
      return [];
    }
    const startMs = realClock.nowMs();
    const cells = replayCells({
      pools,
      enginesOf: (namespace) => enginesOf(file, namespace, pools),
      requests,
      queryOf: (place) => (classified[place] as TrafficRequest).query,
      spreadMs: recordedBatchMs(requests),
      ...{ speed, explore, seed },
    });
    const seconds = ((realClock.nowMs() - startMs) / 1000).toFixed(1);
    process.stderr.write(`${pools.role}: ${requests.length} requests replayed in ${seconds} s\n`);
    return [{ role: pools.role, cells }];
  });
  return { configVersion: config.version, roles };
}

/** `{"prefill-fast": {"workers": 4, "engine": {…}}}`: an entry for each pool that is replayed. */
function enginesOf(file: unknown, namespace: string, { role }: RolePools): PoolEngines {
  const entry = isFileObject(file) ? file[namespace] : undefined;
  const { workers, engine = {} } = isFileObject(entry) ? entry : {};
  const isCount = Number.isInteger(workers) && (workers as number) >= 1;
  if (isCount && (workers as number) <= replayedWorkersMax && isFileObject(engine)) {
    return { workers: workers as number, engine };
  }
  const expected = `{"workers": 1 to ${replayedWorkersMax}, "engine": {…}}`;
  const message = `--replay: expected ${expected} for ${role} pool ${namespace}`;
  throw new TiergridError("config_invalid", message);
}
