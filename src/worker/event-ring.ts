/**
 * The worker's memory of its KV events, one per dp rank: the newest `ringMax` events as they were
 * published, and all blocks they left, in every tier. An event is appended before it is published;
 * recovery relies on that order.
 *
 *   ids    … 7   8   9   …   1030      newest = 1030, oldest = 7, nextEventId = 1031
 *   ring   [ 1024 events, id modulo 1024 ]
 */
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { HolderBlocks } from "../core/holder-blocks.ts";
import type { BlockDigest, ChainHashes, Tier } from "../core/kv-index.ts";
import { type KvEvent, storageTiers } from "../protocol/kv-events.ts";
import type { KvAnswer, KvQuery } from "../protocol/kv-query.ts";

export const ringMaxDefault = 1024;

export interface EventRingOptions {
  readonly workerId: string;
  readonly chain: ChainHashes;
  readonly random: Random;
  readonly ringMax?: number;
}

export class EventRing {
  nextEventId = 0;
  /** Stores that this rank could not apply to its own blocks; routers refuse them as well. */
  refused = 0;

  readonly #workerId: string;
  readonly #ringMax: number;
  readonly #ring: KvEvent[] = [];
  readonly #blocks: HolderBlocks;

  constructor(options: EventRingOptions) {
    this.#workerId = options.workerId;
    this.#ringMax = options.ringMax ?? ringMaxDefault;
    this.#blocks = new HolderBlocks(options.chain, options.random);
  }

  /** Records the event `nextEventId`; any other id is a fault of the caller. */
  append(event: KvEvent): void {
    if (event.eventId !== this.nextEventId) {
      const message = `KV event: expected id ${this.nextEventId}, got ${event.eventId}`;
      throw new TiergridError("internal_error", message);
    }
    this.#ring[event.eventId % this.#ringMax] = event;
    this.nextEventId++;
    this.#apply(event);
  }

  answer(query: KvQuery): KvAnswer {
    const { workerId, startEventId, endEventId } = query;
    const newest = this.nextEventId - 1;
    if (workerId !== this.#workerId) {
      return { type: "error", message: `expected worker ${this.#workerId}, got ${workerId}` };
    }
    if (startEventId === undefined) return this.#dump();
    if (endEventId !== undefined && endEventId < startEventId) {
      return { type: "invalid_range", startId: startEventId, endId: endEventId };
    }
    if (startEventId > newest) {
      return {
        type: "too_new",
        requestedStart: startEventId,
        requestedEnd: endEventId ?? null,
        newestAvailable: newest < 0 ? null : newest,
      };
    }
    if (startEventId <= newest - this.#ringMax) return this.#dump();
    const events: KvEvent[] = [];
    for (let id = startEventId; id <= Math.min(endEventId ?? newest, newest); id++) {
      const event = this.#ring[id % this.#ringMax];
      if (event) events.push(event);
    }
    return { type: "events", events };
  }

  /** Number and XOR of the own keys of all blocks, for comparison with a router's. */
  digest(): BlockDigest {
    return this.#blocks.digest();
  }

  #dump(): KvAnswer {
    const lastEventId = this.nextEventId === 0 ? null : this.nextEventId - 1;
    return { type: "tree_dump", events: this.#blocks.dump(), lastEventId };
  }

  #apply(event: KvEvent): void {
    if (event.type === "cleared") this.#blocks.clear();
    else {
      const tier = storageTiers.indexOf(event.tier) as Tier;
      if (event.type === "removed") this.#blocks.remove(event.hashes, tier);
      else if (this.#blocks.store(event.parent, event.blocks, tier) !== "ok") this.refused++;
    }
  }
}
