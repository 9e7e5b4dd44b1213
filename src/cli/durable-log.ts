/** The durable log of a command that asks for one. */
import { toTiergridError } from "../base/errors.ts";
import type { BusRole, EndpointPath } from "../protocol/subjects.ts";
import { type DurableLog, durableNames } from "../runtime/durable-log.ts";
import { createNatsDurableLog } from "../runtime/nats-durable-log.ts";
import { accessOf, type ProcessOptions, type Shell } from "./shell.ts";

/**
 * Opens the log of the workers at `endpoint`. Throws `config_invalid` when the server keeps no
 * streams; a server that is away is waited for later, as by the bus.
 */
export async function openDurableLog(
  options: ProcessOptions,
  shell: Shell,
  role: BusRole,
  { namespace, component }: EndpointPath,
): Promise<DurableLog> {
  const { clock, random } = shell;
  const names = durableNames(namespace, component);
  const durableLog = createNatsDurableLog({ ...accessOf(options), names, role, clock, random });
  const log = shell.logs("durable");
  try {
    await durableLog.open();
    log.info("KV events are durable", { stream: names.stream, bucket: names.bucket });
  } catch (thrown) {
    const error = toTiergridError(thrown);
    if (error.code === "config_invalid") throw error;
    log.warn("the durable stream cannot be had yet", { error: error.message });
  }
  return durableLog;
}
