/**
 * B1: messages through a real nats-server, our safe bus against the plain client it wraps.
 * B2: the same through the in-process bus. Both against the plain client, payload 100 bytes.
 */
import { fileURLToPath } from "node:url";
import { connect } from "nats";
import { realClock } from "../src/base/clock.ts";
import { mulberry32, osRandom } from "../src/base/random.ts";
import type { Bus } from "../src/runtime/bus.ts";
import { findNatsServer } from "../src/runtime/find-nats-server.ts";
import { createMemoryNetwork } from "../src/runtime/memory-bus.ts";
import { connectNatsBus } from "../src/runtime/nats-bus.ts";
import { startNatsServer } from "../src/runtime/nats-server.ts";
import { type BenchRow, median } from "./bench-row.ts";

const cacheDir = fileURLToPath(new URL("../.cache/nats-server", import.meta.url));
const payload = new Uint8Array(100);
/** Published in one task; then the server is awaited, so that no mark is met. */
const burst = 5000;

/** No rows when there is no nats-server. */
export async function run(options: { quick: boolean; seed: number }): Promise<BenchRow[]> {
  const clock = realClock;
  const onProgress = (): void => {};
  const found = { cacheDir, env: process.env, onProgress, allowDownload: false, clock };
  const binary = await findNatsServer(found);
  if (binary === undefined) return [];
  const server = await startNatsServer({ binary, clock });
  const plain = await connect({ servers: server.url });
  const servers = [server.url];
  const safe = await connectNatsBus({ servers, role: "ob", clock, random: osRandom });
  const network = createMemoryNetwork({ clock, random: mulberry32(options.seed) });
  const embedded = network.connect({ role: "ob" });
  const sides = [
    sideOf({
      publish: () => plain.publish("tg.bench.plain", payload),
      flush: () => plain.flush(),
      listen: (heard) => void plain.subscribe("tg.bench.plain", { callback: heard }),
    }),
    busSide(safe, "tg.bench.safe"),
    busSide(embedded, "tg.bench.embedded"),
  ];
  try {
    const rates = await ratesOf(sides, options.quick ? 20 : 100, options.quick ? 3 : 7);
    const [baseline = 0, ours = 0, inProcess = 0] = rates;
    const row = (id: string, rate: number, target: string, note: string): BenchRow => {
      return { id, unit: "msg/s", baseline, ours: rate, ratio: rate / baseline, target, note };
    };
    return [
      row("B1", ours, ">= 0.7x", "safe bus against the plain client, publish and receive"),
      row("B2", inProcess, ">= 1x", "in-process bus against the plain client"),
    ];
  } finally {
    await Promise.all([plain.close(), safe.close(), embedded.close()]);
    await server.stop();
  }
}

interface Link {
  readonly publish: () => void;
  readonly flush: () => Promise<void>;
  readonly listen: (heard: () => void) => void;
}

/** Sends `bursts` bursts to itself; answers messages per second until the last has arrived. */
type Side = (bursts: number) => Promise<number>;

function busSide(bus: Bus, subject: string): Side {
  return sideOf({
    publish: () => bus.publish(subject, payload),
    flush: () => bus.flush(),
    listen: (heard) => void bus.subscribe(subject, heard),
  });
}

function sideOf(link: Link): Side {
  let heard = 0;
  link.listen(() => {
    heard += 1;
  });
  return async (bursts) => {
    heard = 0;
    const start = performance.now();
    for (let index = 0; index < bursts; index++) {
      for (let message = 0; message < burst; message++) link.publish();
      await link.flush();
    }
    while (heard < bursts * burst) await link.flush();
    return (heard * 1000) / (performance.now() - start);
  };
}

/** Median rate of each side; the sides take turns, and the first round warms up. */
async function ratesOf(sides: readonly Side[], bursts: number, rounds: number): Promise<number[]> {
  const rates: number[][] = sides.map(() => []);
  for (let round = 0; round <= rounds; round++) {
    for (const [index, side] of sides.entries()) {
      const rate = await side(bursts);
      if (round > 0) rates[index]?.push(rate);
    }
  }
  return rates.map((rate) => median(rate));
}
