/**
 * A durable pool under one manual clock: workers that do as an engine's cache does, a store that
 * keeps their events, and routers that follow it with a real index and intake.
 */
import { type Clock, ManualClock } from "../../src/base/clock.ts";
import { mulberry32, type Random, randomInt } from "../../src/base/random.ts";
import { createKvIndex } from "../../src/core/create-kv-index.ts";
import type { KvIndex } from "../../src/core/kv-index.ts";
import {
  type DurableIntake,
  type DurableIntakeOptions,
  startDurableIntake,
} from "../../src/local-router/durable-intake.ts";
import { createEventIntake, type EventIntake } from "../../src/local-router/event-intake.ts";
import { holdIntake } from "../../src/local-router/held-intake.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import type { KvEvent } from "../../src/protocol/kv-events.ts";
import { durableEventSubject } from "../../src/protocol/subjects.ts";
import { announce, newEpoch } from "../../src/runtime/announce.ts";
import type { DurableLog } from "../../src/runtime/durable-log.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import type { InstanceCard } from "../../src/runtime/instance-card.ts";
import { type Log, silentLog } from "../../src/runtime/log.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { createMemoryDurableStore } from "../../src/runtime/memory-durable-log.ts";
import { createDurableEvents } from "../../src/worker/durable-events.ts";
import { EventRing } from "../../src/worker/event-ring.ts";
import { sampleCard } from "../runtime/sample-card.ts";

const { chain } = await loadBlockHasher();
export const pool = { namespace: "pool", component: "backend" };
const stateSource = "00000000000000aa";

export interface RigWorker {
  readonly id: string;
  readonly ring: EventRing;
  /** False: nobody gets an answer from it. */
  reachable: boolean;
  /** Lets `count` random things happen in its cache. */
  act(count: number): void;
}

export interface RigRouter {
  readonly inst: string;
  readonly index: KvIndex;
  readonly intake: EventIntake;
  readonly durable: DurableIntake;
  readonly stream: DurableLog;
  /** Questions that workers were asked. */
  readonly asked: () => number;
  readonly warnings: string[];
  /** A worker is discovered, or said goodbye. */
  discover(worker: RigWorker): void;
  gone(worker: RigWorker): void;
  /** True when it holds exactly what the worker does. */
  agrees(worker: RigWorker): boolean;
  close(): Promise<void>;
  /** Ends without a word to anybody. */
  crash(): Promise<void>;
}

export type RigPool = ReturnType<typeof newDurablePool>;

export function newDurablePool(seed: number) {
  const clock = new ManualClock();
  const random = mulberry32(seed);
  const network = createMemoryNetwork({ clock, random });
  const store = createMemoryDurableStore(clock);
  const workers: RigWorker[] = [];
  let routers = 0;
  return {
    clock,
    random,
    store,
    workers,
    worker(): RigWorker {
      const worker = newWorker(clock, random, store.connect(), String(100 + workers.length));
      workers.push(worker);
      return worker;
    },
    router(change: Partial<DurableIntakeOptions> = {}): RigRouter {
      const inst = String(9000 + routers++);
      const bus = network.connect({ role: "lo" });
      return newRouter({ clock, random, bus, inst, workers, stream: store.connect() }, change);
    },
    /** Waits for `promise` while time goes on. */
    async during<T>(promise: Promise<T>): Promise<T> {
      let done = false;
      const end = (): void => {
        done = true;
      };
      promise.then(end, end);
      await clock.runUntil(() => done, 60_000);
      return promise;
    },
  };
}

/** A worker with a cache that writes its events into `log`. */
export function newWorker(clock: Clock, random: Random, log: DurableLog, id: string): RigWorker {
  const ring = new EventRing({ workerId: id, chain, random });
  const subject = durableEventSubject(pool, id, 0);
  const events = createDurableEvents({
    ...{ log, clock },
    sourceOf: () => ({ workerId: id, dpRank: 0, stateSource, subject }),
    onTrouble: () => {},
  });
  /** Names of its blocks, with that of the block before. */
  const held = new Map<number, number | undefined>();
  const publish = (event: KvEvent): void => {
    ring.append(event);
    events.publish(0, [event]);
  };
  const one = (): void => {
    const eventId = ring.nextEventId;
    const dice = random();
    const names = [...held.keys()];
    if (dice < 0.01) {
      held.clear();
      publish({ type: "cleared", eventId });
    } else if (dice < 0.3 && held.size > 0) {
      // As engines evict: nothing behind a removed block stays.
      const parents = new Set(held.values());
      const leaves = names.filter((name) => !parents.has(name));
      const name = leaves[randomInt(random, 0, leaves.length - 1)] ?? 0;
      held.delete(name);
      publish({ type: "removed", eventId, tier: "device", hashes: Uint32Array.of(name, 0) });
    } else {
      const parent = names[randomInt(random, 0, names.length)];
      const name = 1 + eventId;
      const blocks = Uint32Array.of(randomInt(random, 1, 1e6), 0, name, 0);
      held.set(name, parent);
      const above = parent === undefined ? undefined : { lo: parent, hi: 0 };
      publish({ type: "stored", eventId, tier: "device", parent: above, blocks });
    }
  };
  return {
    ...{ id, ring, reachable: true },
    act(count) {
      for (let left = count; left > 0; left--) one();
    },
  };
}

export interface RouterParts {
  readonly clock: Clock;
  readonly random: Random;
  readonly bus: DurableIntakeOptions["bus"];
  readonly inst: string;
  readonly workers: readonly RigWorker[];
  readonly stream: DurableLog;
}

/** A router's index and intake behind `stream`. */
export function newRouter(
  parts: RouterParts,
  change: Partial<DurableIntakeOptions> = {},
): RigRouter {
  const { clock, random, bus, inst, workers, stream } = parts;
  const index = createKvIndex({ mode: "opaque", random, chain });
  let asked = 0;
  const events = createEventIntake({
    ...{ index, clock },
    query: async ({ workerId }, startEventId) => {
      asked++;
      const worker = workers.find(({ id }) => id === workerId);
      if (!worker?.reachable) throw new Error("nobody answers");
      return worker.ring.answer({ workerId, startEventId, endEventId: undefined });
    },
  });
  const intake = holdIntake(events);
  const present = new Set<string>();
  const warnings: string[] = [];
  const log: Log = { ...silentLog, warn: (message) => void warnings.push(message) };
  const announcer = announce({ bus, clock, random, card: () => routerCard(inst) });
  const durable = startDurableIntake(
    {
      ...{
        stream,
        bus,
        clock,
        random,
        inst,
        log,
        gate: startEchoGate(bus, clock),
        namespace: pool.namespace,
      },
      tables: { index, intake, clock, blockSize: 16 },
      snapshotThreshold: 20,
      resetStates: false,
      isPresent: ({ workerId }) => present.has(workerId),
      workerCount: () => present.size,
      ...change,
    },
    intake,
  );
  return {
    ...{ inst, index, intake, durable, stream, warnings, asked: () => asked },
    discover({ id }) {
      present.add(id);
      intake.onDiscovered({ workerId: id, dpRank: 0 });
    },
    gone({ id }) {
      present.delete(id);
      intake.removeWorker(id);
    },
    agrees({ id, ring }) {
      const slot = index.findHolder(id, 0);
      const { blocks, lo, hi } = ring.digest();
      if (slot === undefined) return blocks === 0;
      const found = index.digestOf(slot);
      return found.blocks === blocks && found.lo === lo && found.hi === hi;
    },
    async close() {
      announcer.goodbye();
      await durable.close();
      await stream.close();
      intake.close();
    },
    async crash() {
      announcer.stop();
      await stream.close();
      await durable.close();
      intake.close();
    },
  };
}

function routerCard(inst: string): InstanceCard {
  const epoch = newEpoch(mulberry32(Number(inst)));
  return sampleCard(inst, { epoch, kind: "local", ...pool, component: "router" });
}
