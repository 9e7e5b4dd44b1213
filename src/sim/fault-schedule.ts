/**
 * Faults of one simulated run, drawn from its seed: when each begins, whom it hits, how long it lasts.
 */
import { type Random, randomInt } from "../base/random.ts";

/** Whom a fault hits: a place in the fleet's lists of pools or workers. */
export type Fault =
  | { readonly kind: "loss"; readonly probability: number }
  | { readonly kind: "duplication"; readonly probability: number }
  | { readonly kind: "delay"; readonly delayMaxMs: number }
  | { readonly kind: "broker_down" }
  | { readonly kind: "freeze_worker"; readonly pool: number; readonly worker: number }
  | { readonly kind: "freeze_router"; readonly pool: number }
  | { readonly kind: "freeze_owner" }
  | { readonly kind: "cut_worker"; readonly pool: number; readonly worker: number }
  | { readonly kind: "kill_worker"; readonly pool: number; readonly worker: number }
  | { readonly kind: "kill_router"; readonly pool: number };

export interface ScheduledFault {
  readonly atMs: number;
  /** 0 for faults that happen at one instant. */
  readonly durationMs: number;
  readonly fault: Fault;
}

export interface FaultScope {
  /** Faults begin within [0, spanMs). */
  readonly spanMs: number;
  readonly count: number;
  readonly pools: number;
  readonly workersPerPool: number;
}

/** `count` faults, by time of their begin. */
export function drawFaults(scope: FaultScope, random: Random): readonly ScheduledFault[] {
  const faults: ScheduledFault[] = [];
  for (let place = 0; place < scope.count; place++) {
    const atMs = Math.floor(random() * scope.spanMs);
    faults.push({ atMs, ...drawFault(scope, random) });
  }
  return faults.sort((a, b) => a.atMs - b.atMs);
}

function drawFault(scope: FaultScope, random: Random): Omit<ScheduledFault, "atMs"> {
  const pool = randomInt(random, 0, scope.pools - 1);
  const worker = randomInt(random, 0, scope.workersPerPool - 1);
  const lasting = (minMs: number, maxMs: number, fault: Fault): Omit<ScheduledFault, "atMs"> => ({
    durationMs: randomInt(random, minMs, maxMs),
    fault,
  });
  switch (randomInt(random, 0, 9)) {
    case 0:
      return lasting(500, 4000, { kind: "loss", probability: 0.01 + 0.09 * random() });
    case 1:
      return lasting(500, 4000, { kind: "duplication", probability: 0.2 * random() });
    case 2:
      return lasting(500, 4000, { kind: "delay", delayMaxMs: randomInt(random, 1, 120) });
    case 3:
      return lasting(100, 4000, { kind: "broker_down" });
    case 4:
      return lasting(100, 5000, { kind: "freeze_worker", pool, worker });
    case 5:
      return lasting(100, 3000, { kind: "freeze_router", pool });
    case 6:
      return lasting(100, 3000, { kind: "freeze_owner" });
    case 7:
      return lasting(500, 8000, { kind: "cut_worker", pool, worker });
    case 8:
      return { durationMs: 0, fault: { kind: "kill_router", pool } };
    default:
      return { durationMs: 0, fault: { kind: "kill_worker", pool, worker } };
  }
}
