/**
 * Replica syncs with real load books on the in-process bus, without the routers around them: what a
 * test books, marks and frees is all that happens.
 */
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32, randomId } from "../../src/base/random.ts";
import { type LoadLimits, WorkerLoad } from "../../src/core/worker-load.ts";
import { localRouterTable } from "../../src/local-router/local-metrics.ts";
import { startReplicaSync } from "../../src/local-router/replica-sync.ts";
import type { PoolWorker } from "../../src/local-router/worker-directory.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import type { InstanceCard } from "../../src/runtime/instance-card.ts";
import { createLogs } from "../../src/runtime/log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { createMetrics } from "../../src/runtime/metrics.ts";

export const endpoint = { namespace: "pool", component: "backend", endpoint: "generate" };

export interface BookOptions {
  /** Sequence hashes, one number per block. */
  readonly blocks?: readonly number[];
  readonly privateBlocks?: number;
  readonly prefillTokens?: number;
}

export interface ReplicaOptions {
  readonly blockSize?: number;
  readonly inst?: string;
  readonly workers?: readonly string[];
  readonly limits?: LoadLimits;
}

export function createReplicas(seed: number, maxPayloadBytes?: number) {
  const clock = new ManualClock();
  const random = mulberry32(seed);
  const network = createMemoryNetwork({
    clock,
    random,
    ...(maxPayloadBytes === undefined ? {} : { maxPayloadBytes }),
  });
  const start = (options: ReplicaOptions = {}) => {
    const bus = network.connect({ role: "lo" });
    const gate = startEchoGate(bus, clock);
    const metrics = createMetrics(localRouterTable);
    const lines: string[] = [];
    const sink = { write: (line: string) => void lines.push(line) };
    const filter = { level: "info", targets: [] } as const;
    const log = createLogs({ filter, format: "json", clock, sink })("router");
    const load = new WorkerLoad(random, options.limits);
    const workers = new Map<string, PoolWorker>();
    const inst = options.inst ?? String(randomId(random));
    let relieved = 0;
    load.onRelief = () => {
      relieved++;
    };
    const sync = startReplicaSync({
      ...{ bus, clock, random, gate, log, metrics, endpoint, inst, load },
      blockSize: options.blockSize ?? 16,
      directory: { workers },
    });
    const meetWorker = (workerId: string): void => {
      const slot = Number(workerId);
      const card = { inst: workerId, dpStart: 0 } as InstanceCard;
      const worker = { inst: workerId, card, slots: [slot], selectable: true };
      workers.set(workerId, worker);
      load.addHolder(slot);
      sync.workerAdded(worker);
    };
    for (const workerId of options.workers ?? ["0", "1", "2"]) meetWorker(workerId);
    return {
      ...{ inst, bus, gate, load, metrics, lines, sync, meetWorker },
      get relieved() {
        return relieved;
      },
      loseWorker(workerId: string): void {
        workers.delete(workerId);
        load.removeHolder(Number(workerId));
      },
      book(key: string, workerId: string, booked: BookOptions = {}): void {
        const { blocks = [], privateBlocks = 0, prefillTokens = 0 } = booked;
        const sequence = Uint32Array.from(blocks.flatMap((block) => [block, 1]));
        const facts = { sequence, privateBlocks, prefillTokens, expectedPrefillMs: 0 };
        load.add({ key, slot: Number(workerId), nowMs: clock.nowMs(), ...facts });
        sync.added(key, { workerId, dpRank: 0, cachedTokens: 0 });
      },
      firstToken(key: string): void {
        load.markPrefillCompleted(key, clock.nowMs());
        sync.firstToken(key);
      },
      free(key: string): void {
        load.free(key, clock.nowMs());
        sync.freed(key);
      },
      /** Blocks, prefill tokens and requests of the first three workers. */
      columns(): number[][] {
        return [0, 1, 2].map((slot) => [
          load.activeBlocks[slot] ?? 0,
          load.prefillTokens[slot] ?? 0,
          load.activeRequests[slot] ?? 0,
        ]);
      },
      resyncs: (cause: string): number =>
        metrics.counter("tiergrid_replica_resyncs_total", { cause }).value,
      dropped: (cause: string): number =>
        metrics.counter("tiergrid_replica_dropped_total", { cause }).value,
      stop(): void {
        sync.close();
        gate.stop();
      },
      /** Disappears without a word. */
      async crash(): Promise<void> {
        gate.stop();
        await bus.close();
        sync.close();
      },
    };
  };
  return { clock, random, network, start };
}

export type Replica = ReturnType<ReturnType<typeof createReplicas>["start"]>;
