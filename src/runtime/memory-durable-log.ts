/**
 * The durable log in one process, for tests, the simulator and the embedded demo. The store outlives
 * the logs that are connected to it, as a server would; `vanish` and `corrupt` are its faults.
 */
import { type Clock, sleep } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import {
  batchMessagesMax,
  consumersMax,
  type DurableBatch,
  type DurableConsumer,
  type DurableLock,
  type DurableLog,
  type DurableMessage,
  type DurableObject,
  durableNames,
  lockTtlMs,
  retentionMs,
} from "./durable-log.ts";

export interface MemoryDurableStore {
  /** A log that shares everything with the other logs of this store. */
  connect(): DurableLog;
  /** Stream, consumers or objects are gone, as after a server's disk was. */
  vanish(what: "stream" | "bucket"): void;
  /** Flips one bit of an object. */
  corrupt(name: string): void;
  /** While false, every call fails with `disconnected`. */
  up: boolean;
}

const messagesMax = 1_000_000;

interface StoredMessage extends DurableMessage {
  readonly atMs: number;
}

interface Position {
  /** Sequence of the next message. */
  next: number;
  acknowledged: number;
}

interface Store {
  readonly clock: Clock;
  up: boolean;
  /** Undefined while the stream does not exist. */
  messages: StoredMessage[] | undefined;
  lastSequence: number;
  readonly positions: Map<string, Position>;
  readonly objects: Map<string, DurableObject>;
  /** Readers that wait for a message, or for the bad news. */
  readonly waiting: Set<() => void>;
  readonly locks: Map<string, { readonly term: object; readonly untilMs: number }>;
}

export function createMemoryDurableStore(clock: Clock): MemoryDurableStore {
  const store: Store = {
    clock,
    up: true,
    messages: undefined,
    lastSequence: 0,
    positions: new Map(),
    objects: new Map(),
    waiting: new Set(),
    locks: new Map(),
  };
  return {
    connect: () => logOf(store),
    vanish(what) {
      if (what === "bucket") store.objects.clear();
      else {
        store.messages = undefined;
        store.lastSequence = 0;
        store.positions.clear();
      }
      wake(store);
    },
    corrupt(name) {
      const object = store.objects.get(name);
      if (!object) return;
      const bytes = new Uint8Array(object.bytes);
      const at = bytes.length >> 1;
      bytes[at] = (bytes[at] ?? 0) ^ 1;
      store.objects.set(name, { ...object, bytes });
    },
    get up() {
      return store.up;
    },
    set up(up) {
      store.up = up;
      wake(store);
    },
  };
}

/** Logs of one store per pool component; the stores outlive them. */
export function memoryDurableLogs(
  clock: Clock,
): (pool: { readonly namespace: string; readonly component: string }) => DurableLog {
  const stores = new Map<string, MemoryDurableStore>();
  return ({ namespace, component }) => {
    const { stream } = durableNames(namespace, component);
    const store = stores.get(stream) ?? createMemoryDurableStore(clock);
    stores.set(stream, store);
    return store.connect();
  };
}

function logOf(store: Store): DurableLog {
  let closed = false;
  /** Every call takes a turn of the event loop, as one over a socket does. */
  const call = async <T>(work: () => T | Promise<T>): Promise<T> => {
    if (closed) throw new TiergridError("bus_closed", "the durable log is closed");
    await sleep(store.clock, 0);
    if (!store.up) throw new TiergridError("disconnected", "the durable store is down");
    return work();
  };
  return {
    open: () =>
      call(() => {
        store.messages ??= [];
      }),
    append: (_subject, payload) => call(() => append(store, payload)),
    state: () =>
      call(() => {
        const messages = kept(store);
        const firstSequence = messages[0]?.sequence ?? store.lastSequence + 1;
        return { firstSequence, lastSequence: store.lastSequence, messages: messages.length };
      }),
    purgeThrough: (sequence) =>
      call(() => {
        store.messages = kept(store).filter((message) => message.sequence > sequence);
      }),
    consumer: (name, fromSequence) => call(() => openConsumer(store, call, name, fromSequence)),
    consumers: () =>
      call(() =>
        [...store.positions].map(([name, { acknowledged }]) => ({
          name,
          acknowledgedSequence: acknowledged,
        })),
      ),
    deleteConsumer: (name) =>
      call(() => {
        store.positions.delete(name);
        wake(store);
      }),
    putObject: (name, parts, note) =>
      call(() => void store.objects.set(name, { bytes: Buffer.concat(parts), note })),
    getObject: (name) =>
      call(() => {
        const object = store.objects.get(name);
        return object && { ...object, bytes: new Uint8Array(object.bytes) };
      }),
    noteOf: (name) => call(() => store.objects.get(name)?.note),
    deleteObject: (name) => call(() => void store.objects.delete(name)),
    reset: () =>
      call(() => {
        if (store.messages) store.messages = [];
        store.objects.clear();
      }),
    lock: (name) => call(() => takeLock(store, call, name)),
    async close() {
      closed = true;
    },
  };
}

type Call = <T>(work: () => T | Promise<T>) => Promise<T>;

/** The stream without what retention has taken. */
function kept(store: Store): StoredMessage[] {
  const { messages, clock } = store;
  if (!messages) throw new TiergridError("not_found", "the stream is missing");
  const oldestMs = clock.nowMs() - retentionMs;
  const stale = messages.findIndex(({ atMs }) => atMs >= oldestMs);
  messages.splice(0, stale < 0 ? messages.length : stale);
  return messages;
}

function wake({ waiting }: Store): void {
  for (const resume of waiting) resume();
}

function append(store: Store, payload: Uint8Array): number {
  const messages = kept(store);
  if (messages.length >= messagesMax) messages.shift();
  const sequence = ++store.lastSequence;
  messages.push({ sequence, payload: new Uint8Array(payload), atMs: store.clock.nowMs() });
  wake(store);
  return sequence;
}

function openConsumer(
  store: Store,
  call: Call,
  name: string,
  fromSequence: number,
): DurableConsumer {
  kept(store);
  let position = store.positions.get(name);
  if (!position) {
    if (store.positions.size >= consumersMax) {
      throw new TiergridError("bus_overloaded", `a stream has at most ${consumersMax} consumers`);
    }
    const from = Math.max(1, fromSequence);
    position = { next: from, acknowledged: from - 1 };
    store.positions.set(name, position);
  }
  position.next = position.acknowledged + 1;
  return { next: (waitMs) => call(() => next(store, name, waitMs)) };
}

async function next(store: Store, name: string, waitMs: number): Promise<DurableBatch> {
  const untilMs = store.clock.nowMs() + waitMs;
  for (;;) {
    if (!store.up) throw new TiergridError("disconnected", "the durable store is down");
    const position = store.positions.get(name);
    if (!position) throw new TiergridError("not_found", `consumer ${name} is missing`);
    const messages = kept(store);
    // Sequences follow each other: only the oldest are ever taken away.
    const from = Math.max(0, position.next - (messages[0]?.sequence ?? 0));
    const present = messages.slice(from, from + batchMessagesMax);
    const last = present.at(-1)?.sequence;
    if (last !== undefined) {
      position.next = last + 1;
      const acknowledge = (): void => {
        position.acknowledged = Math.max(position.acknowledged, last);
      };
      return { messages: present, acknowledge };
    }
    if (store.clock.nowMs() >= untilMs) return { messages: [], acknowledge: () => {} };
    await wakened(store, untilMs - store.clock.nowMs());
  }
}

/** Resolves when something changed, or after `waitMs`. */
async function wakened({ clock, waiting }: Store, waitMs: number): Promise<void> {
  const wait = new AbortController();
  const resume = (): void => wait.abort();
  waiting.add(resume);
  await sleep(clock, waitMs, wait.signal);
  waiting.delete(resume);
}

function takeLock(store: Store, call: Call, name: string): DurableLock | undefined {
  const { clock, locks } = store;
  const held = locks.get(name);
  if (held && held.untilMs > clock.nowMs()) return undefined;
  const term = {};
  const take = (): void => void locks.set(name, { term, untilMs: clock.nowMs() + lockTtlMs });
  take();
  const isOurs = (): boolean => {
    const lock = locks.get(name);
    return lock?.term === term && lock.untilMs > clock.nowMs();
  };
  return {
    renew: () =>
      call(() => {
        if (!isOurs()) return false;
        take();
        return true;
      }),
    release: () =>
      call(() => {
        if (isOurs()) locks.delete(name);
      }),
  };
}
