/** A real nats-server for one test file; a machine that cannot have one fails, it never skips. */
import { fileURLToPath } from "node:url";
import { realClock } from "../../src/base/clock.ts";
import { findNatsServer } from "../../src/runtime/find-nats-server.ts";
import { type NatsServer, startNatsServer } from "../../src/runtime/nats-server.ts";

const cacheDir = fileURLToPath(new URL("../../.cache/nats-server", import.meta.url));

export async function natsBinary(): Promise<string> {
  const lines: string[] = [];
  const onProgress = (line: string): void => void lines.push(line);
  const options = { cacheDir, env: process.env, onProgress, allowDownload: true, clock: realClock };
  const binary = await findNatsServer(options);
  if (binary === undefined) throw new Error(`no nats-server for this test: ${lines.join("; ")}`);
  return binary;
}

export async function startNats(configText = ""): Promise<NatsServer> {
  return startNatsServer({ binary: await natsBinary(), clock: realClock, configText });
}

/** A server that keeps streams. */
export async function startJetStream(): Promise<NatsServer> {
  return startNatsServer({ binary: await natsBinary(), clock: realClock, jetStream: true });
}
