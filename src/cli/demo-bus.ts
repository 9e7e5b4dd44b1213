/** Where the demo's fleet meets: a server that runs, a private one, or the in-process bus. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Clock, realClock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { mulberry32, osRandom, randomU32 } from "../base/random.ts";
import type { BusRole, EndpointPath } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { type DurableLog, durableNames } from "../runtime/durable-log.ts";
import { findNatsServer } from "../runtime/find-nats-server.ts";
import { createMemoryNetwork } from "../runtime/memory-bus.ts";
import { memoryDurableLogs } from "../runtime/memory-durable-log.ts";
import { connectNatsBus } from "../runtime/nats-bus.ts";
import { natsServers } from "../runtime/nats-bus-credentials.ts";
import { createNatsDurableLog } from "../runtime/nats-durable-log.ts";
import { startNatsServer } from "../runtime/nats-server.ts";
import type { DemoOptions } from "./flags-demo.ts";

type DemoPool = Pick<EndpointPath, "namespace" | "component">;

export interface DemoBus {
  readonly kind: "nats" | "embedded";
  /** One line for people. */
  readonly description: string;
  readonly connect: (role: BusRole, name: string) => Promise<Bus>;
  /** The durable log of an endpoint's workers. */
  readonly durableLogOf: (endpoint: EndpointPath, role: BusRole) => DurableLog;
  close(): Promise<void>;
}

const cacheDir = join(fileURLToPath(new URL("../..", import.meta.url)), ".cache", "nats-server");

/**
 * `say` hears in one line each what is tried. Throws `config_invalid` or `disconnected` when the bus
 * that was asked for cannot be had.
 */
export async function openDemoBus(
  options: Pick<DemoOptions, "bus" | "nats" | "download" | "durableKvEvents">,
  say: (line: string) => void,
): Promise<DemoBus> {
  const clock = realClock;
  const { bus, nats, download, durableKvEvents } = options;
  if (bus === "embedded") return embedded(clock, "in-process bus, as asked");
  if (nats !== null) {
    const probe = await connect(nats, "ob", "demo-probe");
    await probe.close();
    if (durableKvEvents) await requireJetStream(nats);
    const servers = natsServers(nats).servers.join(", ");
    return onNats(nats, `nats-server at ${servers}`, async () => {});
  }
  try {
    const env = process.env;
    const binary = await findNatsServer({
      ...{ cacheDir, env, clock },
      onProgress: say,
      allowDownload: download,
    });
    if (binary !== undefined) {
      const server = await startNatsServer({ binary, clock, jetStream: durableKvEvents });
      return onNats(server.url, `private nats-server at ${server.url}`, () => server.stop());
    }
  } catch (thrown) {
    if (bus === "nats") throw thrown;
    say(`nats-server: ${toTiergridError(thrown).message}`);
  }
  if (bus === "nats") throw new TiergridError("config_invalid", "--bus nats: no nats-server found");
  return embedded(clock, "in-process bus: no nats-server could be had");
}

function onNats(url: string, description: string, close: () => Promise<void>): DemoBus {
  return {
    kind: "nats",
    description,
    connect: (role, name) => connect(url, role, name),
    durableLogOf: (endpoint, role) => natsLog(url, endpoint, role),
    close,
  };
}

function connect(url: string, role: BusRole, name: string): Promise<Bus> {
  const options = { role, name: `demo-${name}`, clock: realClock, random: osRandom };
  return connectNatsBus({ ...natsServers(url), ...options, failFast: true });
}

function natsLog(url: string, { namespace, component }: DemoPool, role: BusRole): DurableLog {
  const names = durableNames(namespace, component);
  const process = { role, clock: realClock, random: osRandom };
  return createNatsDurableLog({ ...natsServers(url), ...process, names });
}

/** Throws `config_invalid` when the server keeps no streams. */
async function requireJetStream(url: string): Promise<void> {
  const log = natsLog(url, { namespace: "tiergrid", component: "demo-probe" }, "ob");
  try {
    await log.state();
  } catch (thrown) {
    if (toTiergridError(thrown).code !== "not_found") throw thrown;
  } finally {
    await log.close();
  }
}

function embedded(clock: Clock, description: string): DemoBus {
  const network = createMemoryNetwork({ clock, random: mulberry32(randomU32(osRandom)) });
  return {
    kind: "embedded",
    description,
    connect: (role) => Promise.resolve(network.connect({ role })),
    durableLogOf: memoryDurableLogs(clock),
    close: () => Promise.resolve(),
  };
}
