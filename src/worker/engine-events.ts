/**
 * KV events from the engine to the routers: numbered, remembered, then published, those of several
 * passes together. What is lost on the way is a gap in the numbers, and routers ask for it here.
 *
 *   engine ──events──▶ id ──▶ EventRing ──▶ EventOutbox ──▶ tg.ev.<namespace>.<inst>.<rank>
 *                                 ▲    └──▶ the durable stream
 *                                 └── tg.kvq.<inst>.<rank>: ring or dump, in chunks
 *
 * Whoever learns from the ring, by an answer or a digest, has been sent the events in it before.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { toTiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { ChainHashes } from "../core/kv-index.ts";
import { encodeKvEvents } from "../protocol/kv-event-frame.ts";
import type { KvEvent, KvEventBatch } from "../protocol/kv-events.ts";
import {
  decodeKvQuery,
  encodeKvAnswer,
  type KvAnswer,
  type KvQuery,
} from "../protocol/kv-query.ts";
import { kvEventSubject, kvQuerySubject } from "../protocol/subjects.ts";
import type { U64 } from "../protocol/u64.ts";
import type { Bus, BusMessage, Subscription } from "../runtime/bus.ts";
import { publishQuietly } from "../runtime/dispatch-offer.ts";
import type { RankDigest } from "../runtime/instance-card.ts";
import type { DurableEvents } from "./durable-events.ts";
import type { EngineCard, EngineKvEvent } from "./engine.ts";
import { EventOutbox } from "./event-outbox.ts";
import { EventRing } from "./event-ring.ts";

/** How long events wait for others: routing loses nothing by it (docs/decisions.md). */
export const eventLingerMsDefault = 50;
/** An answer's chunk leaves room for the bus's own framing. */
const chunkBytesMax = 512 * 1024;
/** Time that the last answer of several chunks is kept, per rank, for routers that lost some. */
export const answerKeptMs = 30_000;

export interface EngineEventsOptions {
  readonly bus: Bus;
  readonly clock: Clock;
  readonly random: Random;
  readonly chain: ChainHashes;
  readonly namespace: string;
  readonly inst: string;
  readonly epoch: string;
  readonly card: Pick<EngineCard, "dpStart" | "dpSize">;
  /** Fault switch: true when the events of this pass get lost on their way to the routers. */
  readonly loses: () => boolean;
  /** Times the wait for others; absent = `clock`. */
  readonly ticks?: Clock;
  /** How long events may wait for others; 0 = a message per pass. */
  readonly lingerMs: number;
  /** Takes the events instead of the bus. */
  readonly durable?: DurableEvents | undefined;
}

interface KeptAnswer {
  readonly number: number;
  readonly chunks: readonly Uint8Array[];
  readonly cancel: CancelTimer;
}

export class EngineEvents {
  readonly #options: EngineEventsOptions;
  readonly #rings = new Map<number, EventRing>();
  readonly #subscriptions: readonly Subscription[];
  readonly #kept = new Map<number, KeptAnswer>();
  readonly #outbox: EventOutbox;
  #answers = 0;

  constructor(options: EngineEventsOptions) {
    this.#options = options;
    const { bus, clock, ticks = clock, namespace, inst, chain, random, card } = options;
    for (let rank = card.dpStart; rank < card.dpStart + card.dpSize; rank++) {
      this.#rings.set(rank, new EventRing({ workerId: inst, chain, random }));
    }
    this.#outbox = new EventOutbox(ticks, options.lingerMs, (dpRank, events) => {
      const payload = encodeKvEvents({ ...this.#sourceOf(dpRank), events });
      publishQuietly(bus, kvEventSubject(namespace, inst, dpRank), payload);
    });
    this.#subscriptions = [...this.#rings].map(([rank, ring]) =>
      bus.subscribe(kvQuerySubject(inst, rank), (message) => this.#onQuery(rank, ring, message)),
    );
  }

  /** Takes the events of one pass; the ring has them before anyone hears of them. */
  publish(dpRank: number, engineEvents: readonly EngineKvEvent[]): void {
    const ring = this.#rings.get(dpRank);
    if (!ring || engineEvents.length === 0) return;
    const events = engineEvents.map((engineEvent) => {
      const event = kvEventOf(engineEvent, ring.nextEventId);
      ring.append(event);
      return event;
    });
    if (this.#options.loses()) return;
    const { durable } = this.#options;
    if (durable) durable.publish(dpRank, events);
    else this.#outbox.add(dpRank, events);
  }

  /** Stores that did not fit the blocks already known; 0 with a sound engine. */
  get refused(): number {
    return [...this.#rings.values()].reduce((count, ring) => count + ring.refused, 0);
  }

  digests(): RankDigest[] {
    this.#outbox.flush();
    return [...this.#rings].map(([dpRank, ring]) => {
      const { blocks, lo, hi } = ring.digest();
      const xor = [hi, lo].map((word) => word.toString(16).padStart(8, "0")).join("");
      return { dpRank, blockCount: blocks, xor };
    });
  }

  close(): void {
    for (const { cancel } of this.#kept.values()) cancel();
    this.#kept.clear();
    this.#outbox.close();
    this.#options.durable?.close();
    for (const subscription of this.#subscriptions) subscription.unsubscribe();
  }

  #sourceOf(dpRank: number): Omit<KvEventBatch, "events"> {
    const { inst, epoch } = this.#options;
    return { workerId: inst, dpRank, stateSource: epoch };
  }

  #onQuery(dpRank: number, ring: EventRing, { payload, reply }: BusMessage): void {
    if (reply === undefined) return;
    const { bus } = this.#options;
    this.#outbox.flush();
    for (const chunk of this.#chunksFor(dpRank, ring, payload)) publishQuietly(bus, reply, chunk);
  }

  #chunksFor(dpRank: number, ring: EventRing, payload: Uint8Array): readonly Uint8Array[] {
    const { bus, clock } = this.#options;
    const query = queryOf(payload);
    const kept = this.#kept.get(dpRank);
    if ("rest" in query && query.rest && query.rest.answer === kept?.number) {
      return query.rest.missing.flatMap((index) => kept.chunks[index] ?? []);
    }
    const number = ++this.#answers >>> 0;
    const answer = "message" in query ? query : ring.answer(query);
    const bytesMax = Math.min(chunkBytesMax, bus.maxPayloadBytes);
    const chunks = encodeKvAnswer(this.#sourceOf(dpRank), answer, bytesMax, number);
    if (chunks.length > 1) {
      kept?.cancel();
      const cancel = clock.after(answerKeptMs, () => this.#kept.delete(dpRank));
      this.#kept.set(dpRank, { number, chunks, cancel });
    }
    return chunks;
  }
}

function queryOf(payload: Uint8Array): KvQuery | Extract<KvAnswer, { type: "error" }> {
  try {
    return decodeKvQuery(payload);
  } catch (thrown) {
    return { type: "error", message: toTiergridError(thrown).message };
  }
}

/** The ring keeps what it is given, so the engine's columns are copied. */
function kvEventOf(event: EngineKvEvent, eventId: number): KvEvent {
  switch (event.type) {
    case "cleared":
      return { type: "cleared", eventId };
    case "removed":
      return { type: "removed", eventId, tier: "device", hashes: event.sequenceHashes.slice() };
    case "stored": {
      const { parent, sequenceHashes, localHashes } = event;
      const blocks = interleaved(localHashes, sequenceHashes);
      return { type: "stored", eventId, tier: "device", parent: u64Of(parent), blocks };
    }
  }
}

/** Four words per block: local hash lo, hi, sequence hash lo, hi. */
function interleaved(local: Uint32Array, sequence: Uint32Array): Uint32Array {
  const blocks = new Uint32Array(2 * sequence.length);
  for (let lane = 0; lane + 1 < sequence.length; lane += 2) {
    blocks[2 * lane] = local[lane] ?? 0;
    blocks[2 * lane + 1] = local[lane + 1] ?? 0;
    blocks[2 * lane + 2] = sequence[lane] ?? 0;
    blocks[2 * lane + 3] = sequence[lane + 1] ?? 0;
  }
  return blocks;
}

function u64Of(lanes: Uint32Array | undefined): U64 | undefined {
  return lanes && { lo: lanes[0] ?? 0, hi: lanes[1] ?? 0 };
}
