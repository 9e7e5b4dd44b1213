/** Where the measurements of `tiergrid grid calibrate` come from: a file, a router, a replay. */
import { realClock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { osRandom } from "../base/random.ts";
import { formatFault } from "../config/config-fault.ts";
import { formatOfPath, parseConfigText, readConfigText } from "../config/config-text.ts";
import type { PoolConfig } from "../config/pool-config.ts";
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
import { replayCells } from "../sim/replay/replay-cells.ts";
import { recordedBatchMs } from "../sim/workload.ts";
import type { GridCalibrateOptions } from "./flags-grid.ts";
import { readGridEngines } from "./grid-engines.ts";
import { percentText } from "./grid-file.ts";
import type { Traffic } from "./grid-requests.ts";

const answerTimeoutMs = 2_000;

/** The measurements that the flags name; throws `config_invalid` unless it is one source. */
export async function measuredCells(
  config: PoolConfig,
  options: GridCalibrateOptions,
  traffic: Traffic | undefined,
): Promise<MeasuredCells> {
  const { cells, nats, replay } = options;
  if ([cells, nats, replay].filter((source) => source !== null).length !== 1) {
    throw new TiergridError("config_invalid", "expected one of --cells, --nats and --replay");
  }
  if (cells !== null) return await readCellsFile(cells);
  if (nats !== null) return await askCells(config.version, { ...options, nats });
  return await replayFile(config, options, traffic);
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
    const hint = anyVersion ? "" : "; --any-version takes those of the version in force";
    throw new TiergridError("not_found", `the global router: ${String(refused["message"])}${hint}`);
  } finally {
    await bus.close();
  }
}

/** Measures `--traffic` against the engines of a file: one role after the other, told on stderr. */
async function replayFile(
  config: PoolConfig,
  options: GridCalibrateOptions,
  traffic: Traffic | undefined,
): Promise<MeasuredCells> {
  const { seed, speed, explore } = options;
  if (!traffic) throw new TiergridError("config_invalid", "--replay needs --traffic");
  const engines = readGridEngines(await readFile("--replay", options.replay ?? ""), config);
  const { trace: requests } = traffic;
  const roles = config.roles.flatMap((pools): MeasuredRole[] => {
    const { role } = pools;
    const own = engines.get(role);
    if (!own) {
      process.stderr.write(`${role}: no engines in the file, its cells stay\n`);
      return [];
    }
    const progress = replayProgress(role, requests.length);
    const { cells, rejected } = replayCells({
      ...{ pools, requests, speed, explore, seed, onSent: progress.sent },
      engines: own,
      queryOf: (place) => (traffic.requests[place] as TrafficRequest).query,
      spreadMs: recordedBatchMs(requests),
    });
    progress.done(rejected);
    return [{ role, cells }];
  });
  return { configVersion: config.version, roles };
}

/** A line on stderr when a role is done; on a terminal also how far it is. */
function replayProgress(
  role: string,
  total: number,
): { readonly sent: (count: number) => void; readonly done: (rejected: number) => void } {
  const startMs = realClock.nowMs();
  const { isTTY } = process.stderr;
  const clear = isTTY ? "\r\u001b[K" : "";
  return {
    sent: (count) => {
      if (isTTY) process.stderr.write(`${clear}${role}: ${percentText(count, total)} replayed`);
    },
    done: (rejected) => {
      const seconds = ((realClock.nowMs() - startMs) / 1000).toFixed(1);
      const refused = rejected === 0 ? "" : `, ${rejected} of them refused by the engines`;
      process.stderr.write(
        `${clear}${role}: ${total} requests replayed in ${seconds} s${refused}\n`,
      );
    },
  };
}
