/** Where the measurements of `tiergrid grid calibrate` come from: a file, or a global router. */
import { realClock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import { osRandom } from "../base/random.ts";
import { parseConfigText, readConfigText } from "../config/config-text.ts";
import { poolConfigError } from "../config/load-pool-config.ts";
import { type MeasuredCells, readMeasuredCells } from "../core/grid-calibrate.ts";
import { endpointSubject } from "../protocol/subjects.ts";
import { connectNatsBus } from "../runtime/nats-bus.ts";
import { natsServers } from "../runtime/nats-bus-credentials.ts";
import type { GridCalibrateOptions } from "./flags-grid.ts";

const answerTimeoutMs = 2_000;

/** The measurements that the flags name; throws `config_invalid` unless it is one source. */
export async function measuredCells(options: GridCalibrateOptions): Promise<MeasuredCells> {
  const { cells, nats } = options;
  if (cells !== null && nats === null) return await readCellsFile(cells);
  if (nats !== null && cells === null) return await askCells({ ...options, nats });
  throw new TiergridError("config_invalid", "expected either --cells or --nats");
}

async function readCellsFile(path: string): Promise<MeasuredCells> {
  const read = await readConfigText(path);
  const parsed = read.ok ? parseConfigText(read.text, "json") : read;
  if (!parsed.ok) throw poolConfigError([parsed.fault]);
  return readMeasuredCells(parsed.value);
}

/** What the global router of the namespace has measured since it started or was told to forget. */
async function askCells(
  options: GridCalibrateOptions & { readonly nats: string },
): Promise<MeasuredCells> {
  const { namespace, componentName: component } = options;
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
    const question = new TextEncoder().encode("{}");
    const reply = await bus.request(subject, question, { timeoutMs: answerTimeoutMs });
    return readMeasuredCells(JSON.parse(new TextDecoder().decode(reply.payload)));
  } finally {
    await bus.close();
  }
}
