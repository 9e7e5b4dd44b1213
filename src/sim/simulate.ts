/**
 * A whole two-tier fleet under faults, from one seed: the real routers, workers, frontend and streams
 * on the in-process bus and a virtual clock. Checks what must hold whatever happens.
 *
 *   seed ──▶ requests ─┐
 *        └─▶ faults ───┴─▶ fleet ──▶ every answer, token by token ──▶ violations (must be none)
 *
 * Invariants
 *   - I1 the tokens an owner hears are a prefix of the reference sequence, and all of it at the end
 *   - I2 every request ends once, and none is open past its deadline and a second
 *   - I3 when all is quiet every book, stream and engine is empty
 *   - I4 when all is quiet the routers' indexes hold what the engines hold
 */
import { ManualClock } from "../base/clock.ts";
import type { TiergridError } from "../base/errors.ts";
import { mulberry32, type Random, randomInt } from "../base/random.ts";
import { defaultKvRouterConfig, type KvRouterConfig } from "../config/kv-router-config.ts";
import type { PoolConfig } from "../config/pool-config.ts";
import { startAnswer } from "../frontend/disaggregate.ts";
import { frontendDefaults } from "../frontend/frontend-parts.ts";
import type { LocalRouter } from "../local-router/local-router.ts";
import { mockToken } from "../protocol/mock-tokens.ts";
import { allHeartbeats } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { decodeHeartbeat } from "../runtime/instance-card.ts";
import { silentLog } from "../runtime/log.ts";
import { createMemoryNetwork, type MemoryNetwork } from "../runtime/memory-bus.ts";
import { memoryDurableLogs } from "../runtime/memory-durable-log.ts";
import { readMockEngineConfig } from "../worker/mock-engine-config.ts";
import { drawFaults, type Fault, type ScheduledFault } from "./fault-schedule.ts";
import { type Fleet, startFleet } from "./fleet.ts";

export interface SimulationOptions {
  readonly seed: number;
  readonly config: PoolConfig;
  readonly requests: number;
  /** Requests and faults begin within this span of virtual time. */
  readonly spanMs: number;
  readonly faults: number;
  readonly workersPerPool: number;
  /** Above 1 they tell each other their bookings; faults hit the first of a pool. */
  readonly routersPerPool: number;
  /** KV events through a durable stream; absent = on the bus. */
  readonly durable?: boolean;
  readonly costMode?: KvRouterConfig["routerCostMode"];
}

export interface SimulationReport {
  readonly seed: number;
  readonly faults: readonly ScheduledFault[];
  readonly completed: number;
  readonly failed: number;
  readonly cancelled: number;
  readonly migrations: number;
  /** Prompts that travelled as hashes and were had by a worker. */
  readonly promptsHandedOut: number;
  readonly tokens: number;
  /** Error codes of the requests that failed, with their counts. */
  readonly errors: ReadonlyMap<string, number>;
  /** Broken invariants; empty when all hold. */
  readonly violations: readonly string[];
  /** Equal for equal seeds: a checksum over every ending in order. */
  readonly digest: number;
}

export const simulationDefaults = {
  blockSize: 16,
  blocksPerWorker: 512,
  deadlineMs: 60_000,
  cancelShare: 0.1,
  readyWithinMs: 10_000,
  /** Leases, lists of active requests, recoveries and sweeps have all had their turn. */
  quietMs: 40_000,
} as const;

const model = "mock-model";
const islTokensMax = 1200;

interface Reference {
  readonly place: number;
  readonly seed: number;
  readonly tokens: Uint32Array;
  readonly maxTokens: number;
  readonly deadlineAtMs: number;
  received: number;
  endings: string[];
}

/** What a run holds while it goes on. */
interface Run {
  readonly clock: ManualClock;
  readonly network: MemoryNetwork;
  readonly fleet: Fleet;
  readonly references: Reference[];
  readonly violations: string[];
  readonly errors: Map<string, number>;
  digest: number;
  tokens: number;
}

export async function simulate(options: SimulationOptions): Promise<SimulationReport> {
  const { seed, workersPerPool, spanMs } = options;
  const random = mulberry32(seed);
  const run = await startRun(options, random);
  const { clock, fleet, references, violations } = run;
  const pools = fleet.pools.length;
  const faults = drawFaults({ spanMs, count: options.faults, pools, workersPerPool }, random);
  for (const scheduled of faults) schedule(run, scheduled);
  for (let place = 0; place < options.requests; place++)
    scheduleRequest(run, place, spanMs, random);
  const done = (): boolean =>
    references.length === options.requests && references.every(({ endings }) => endings.length > 0);
  const limitMs = spanMs + simulationDefaults.deadlineMs + 1_000;
  await clock.runUntil(done, limitMs);
  for (const { place, endings } of references) {
    if (endings.length === 0) violations.push(`I2 request ${place} is open past its deadline`);
  }
  await clock.runUntil(() => clock.nowMs() >= spanMs, spanMs);
  await settleDown(run);
  for (const { place, endings } of references) {
    if (endings.length > 1) violations.push(`I2 request ${place} ended as ${endings.join(", ")}`);
  }
  const count = (ending: string): number =>
    references.filter(({ endings }) => endings[0] === ending).length;
  const { migrations, promptsHandedOut } = fleet.frontend.owner.totals;
  const closed = fleet.close();
  await clock.runFor(2_000);
  await closed;
  if (clock.pending() > 0) violations.push(`I3 ${clock.pending()} timers are left`);
  return {
    seed,
    faults,
    completed: count("length"),
    cancelled: count("cancelled"),
    failed: references.length - count("length") - count("cancelled"),
    migrations,
    promptsHandedOut,
    tokens: run.tokens,
    errors: run.errors,
    violations,
    digest: run.digest,
  };
}

/** A few messages are enough for a snapshot, so that restarted routers find some. */
const durableSnapshotThreshold = 5;

function kvRouterOf(options: SimulationOptions): KvRouterConfig {
  const { routersPerPool, durable = false, costMode = "blocks" } = options;
  return {
    ...defaultKvRouterConfig,
    routerCostMode: costMode,
    routerReplicaSync: routersPerPool > 1,
    durableKvEvents: durable,
    ...(durable ? { routerSnapshotThreshold: durableSnapshotThreshold } : {}),
  };
}

async function startRun(options: SimulationOptions, random: Random): Promise<Run> {
  const clock = new ManualClock();
  const network = createMemoryNetwork({ clock, random });
  const { blockSize, blocksPerWorker, readyWithinMs } = simulationDefaults;
  const fleet = await startFleet({
    connect: (role) => Promise.resolve(network.connect({ role })),
    clock,
    random,
    logs: () => silentLog,
    config: options.config,
    frontend: { hashFirstMinTokens: randomInt(random, 1, islTokensMax) },
    kvRouter: kvRouterOf(options),
    durableLogOf: options.durable ? memoryDurableLogs(clock) : undefined,
    routersPerPool: options.routersPerPool,
    workerPolicy: "blocks",
    enginesOf: (role) =>
      Array.from({ length: options.workersPerPool }, () =>
        readMockEngineConfig({
          worker_type: role,
          block_size: blockSize,
          num_gpu_blocks: blocksPerWorker,
          max_model_len: 4096,
        }),
      ),
    model,
    acceptTimeoutMs: 300,
    version: "0.0.0",
  });
  const violations: string[] = [];
  const ready = fleet.ready(readyWithinMs).then(
    () => true,
    () => false,
  );
  await clock.runFor(readyWithinMs + 100);
  if (!(await ready)) violations.push("the fleet never became ready");
  const books = { references: [], errors: new Map<string, number>(), digest: 0, tokens: 0 };
  return { clock, network, fleet, violations, ...books };
}

/** One request at a random time: random length, shared prefixes, some cancelled by their caller. */
function scheduleRequest(run: Run, place: number, spanMs: number, random: Random): void {
  const { clock } = run;
  const atMs = random() * spanMs;
  const conversation = randomInt(random, 0, 7);
  const islTokens = randomInt(random, 8, islTokensMax);
  const maxTokens = randomInt(random, 1, 400);
  const cancelAfterMs =
    random() < simulationDefaults.cancelShare ? randomInt(random, 0, 3000) : undefined;
  clock.after(atMs, () => {
    const reference: Reference = {
      place,
      seed: place + 1,
      tokens: Uint32Array.from({ length: islTokens }, (_, at) => mockToken(conversation, at)),
      maxTokens,
      deadlineAtMs: clock.nowMs() + simulationDefaults.deadlineMs,
      received: 0,
      endings: [],
    };
    run.references.push(reference);
    ask(run, reference, cancelAfterMs);
  });
}

function ask(run: Run, reference: Reference, cancelAfterMs: number | undefined): void {
  const { clock, fleet } = run;
  const { frontend } = fleet;
  const served = frontend.models.find(model);
  if (!served) {
    end(run, reference, "not_served");
    return;
  }
  const cancel = new AbortController();
  const { tokens, seed, maxTokens, deadlineAtMs } = reference;
  startAnswer(
    {
      model: served,
      body: {
        model,
        stop_conditions: { max_tokens: maxTokens, ignore_eos: true },
        sampling_options: { seed },
      },
      tokens,
      deadlineAtMs,
      signal: cancel.signal,
      sink: {
        onAccepted: () => {},
        onOutput: ({ tokenIds }) => take(run, reference, tokenIds),
        onEnd: ({ finishReason, total }) => {
          if (reference.received !== maxTokens || total !== maxTokens) {
            const counts = `${reference.received} of ${maxTokens} tokens, total ${total}`;
            run.violations.push(`I1 request ${reference.place} ended with ${counts}`);
          }
          end(run, reference, finishReason);
        },
        onError: (error) => fail(run, reference, error),
      },
    },
    {
      owner: frontend.owner,
      models: frontend.models,
      settings: frontendDefaults,
      clock,
      onFallback: () => {},
      onPrefillComplete: () => {},
    },
  );
  if (cancelAfterMs !== undefined) clock.after(cancelAfterMs, () => cancel.abort());
}

function take(run: Run, reference: Reference, tokenIds: readonly number[]): void {
  for (const id of tokenIds) {
    const position = reference.tokens.length + reference.received;
    if (id !== mockToken(reference.seed, position)) {
      run.violations.push(`I1 request ${reference.place}: token ${reference.received} is ${id}`);
    }
    reference.received += 1;
    run.tokens += 1;
  }
  if (reference.endings.length > 0) {
    run.violations.push(`I2 request ${reference.place} had output after its end`);
  }
}

function fail(run: Run, reference: Reference, error: TiergridError): void {
  if (error.code !== "cancelled") {
    run.errors.set(error.code, (run.errors.get(error.code) ?? 0) + 1);
    if (error.code === "internal_error") {
      run.violations.push(`request ${reference.place}: internal_error ${error.message}`);
    }
  }
  end(run, reference, error.code);
}

function end(run: Run, reference: Reference, ending: string): void {
  reference.endings.push(ending);
  const text = `${reference.place} ${ending} ${reference.received} ${run.clock.nowMs()}`;
  for (const char of text)
    run.digest = Math.imul(run.digest ^ char.charCodeAt(0), 0x01000193) >>> 0;
}

function schedule(run: Run, { atMs, durationMs, fault }: ScheduledFault): void {
  const { clock } = run;
  clock.after(atMs, () => {
    const heal = strike(run, fault);
    clock.after(durationMs, heal);
  });
}

/** Begins a fault; answers what ends it. */
function strike({ network, fleet }: Run, fault: Fault): () => void {
  const { faults } = network;
  const rules = (rule: { loss?: number; duplication?: number; delayMaxMs?: number }) => {
    faults.setMessageFaults([{ subject: ">", ...rule }]);
    return () => faults.setMessageFaults([]);
  };
  const frozen = (bus: Bus | undefined) => {
    if (bus) faults.freeze(bus);
    return () => bus && faults.thaw(bus);
  };
  switch (fault.kind) {
    case "loss":
      return rules({ loss: fault.probability });
    case "duplication":
      return rules({ duplication: fault.probability });
    case "delay":
      return rules({ delayMaxMs: fault.delayMaxMs });
    case "broker_down":
      faults.brokerDown();
      return () => faults.brokerUp();
    case "freeze_worker":
      return frozen(fleet.pools[fault.pool]?.workers[fault.worker]?.bus);
    case "freeze_router":
      return frozen(fleet.pools[fault.pool]?.routers[0]?.part.bus);
    case "freeze_owner":
      return frozen(fleet.frontBus);
    case "cut_worker": {
      const bus = fleet.pools[fault.pool]?.workers[fault.worker]?.bus;
      if (bus) faults.cut(bus);
      return () => bus && faults.heal(bus);
    }
    case "kill_worker":
      void fleet.pools[fault.pool]?.replaceWorker(fault.worker);
      return () => {};
    case "kill_router":
      void fleet.pools[fault.pool]?.restartRouter(0);
      return () => {};
  }
}

/** Lets everything come to rest, then compares books, streams, engines and indexes with nothing. */
async function settleDown(run: Run): Promise<void> {
  const { clock, network, fleet, violations } = run;
  network.faults.setMessageFaults([]);
  const observer = network.connect({ role: "ob" });
  const resident = new Map<string, number>();
  observer.subscribe(allHeartbeats, ({ payload }) => {
    const card = decodeHeartbeat(payload)?.card;
    for (const { blockCount } of card?.digests ?? []) resident.set(card?.inst ?? "", blockCount);
  });
  await clock.runFor(simulationDefaults.quietMs);
  await observer.close();
  const { frontend, global } = fleet;
  if (frontend.owner.open > 0) violations.push(`I3 ${frontend.owner.open} streams are open`);
  if (frontend.owner.promptsHeld > 0) violations.push("I3 the owner holds prompts");
  if (global.openRequests > 0) violations.push(`I3 global router holds ${global.openRequests}`);
  for (const { namespace, routers, workers } of fleet.pools) {
    for (const { worker, engine } of workers) {
      const busy = engine.load().reduce((sum, load) => sum + load.activeBlocks + load.running, 0);
      if (worker.active() + busy > 0) violations.push(`I3 worker ${worker.inst} is not idle`);
    }
    for (const { router } of routers) {
      const found = violationsOf(router, workers.length, resident);
      violations.push(...found.map((violation) => `${violation} (pool ${namespace})`));
    }
  }
}

/** What is wrong with a router at rest; `resident` has the blocks of each engine that tells. */
function violationsOf(
  router: LocalRouter,
  workers: number,
  resident: ReadonlyMap<string, number>,
): string[] {
  const found: string[] = [];
  const { openRequests, bookings, bookedBlocks, latencyRequests } = router.stats;
  if (openRequests + bookings + bookedBlocks + latencyRequests > 0) {
    const booked = `${bookings} bookings, ${bookedBlocks} blocks, ${latencyRequests} latencies`;
    const books = `${openRequests} requests, ${booked}`;
    found.push(`I3 router holds ${books}`);
  }
  const holders = router.holders();
  for (const { workerId, cachedBlocks } of holders) {
    const held = resident.get(workerId);
    if (held === undefined || held === cachedBlocks) continue;
    const counts = `${cachedBlocks} blocks in the index, ${held} in the engine`;
    found.push(`I4 worker ${workerId}: ${counts}`);
  }
  if (holders.length < workers) found.push(`I4 router knows ${holders.length} workers`);
  return found;
}
