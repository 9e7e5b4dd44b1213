/** What the stream bench's processes tell each other: one window of load, and what it counted. */
import { realClock } from "../src/base/clock.ts";
import { generateSubject, type InstanceKind } from "../src/protocol/subjects.ts";

/**
 * `relay`: the baseline's client; `json`: our wire's, one JSON message per token; `bundle`: our owner
 * counts tokens; `sse`: it writes them as events to HTTP clients; `open`: the same owner, open loop,
 * paced engine; `prompt-…`: requests of 131,072 tokens and no answer.
 */
export type ClientMode =
  | "relay"
  | "json"
  | "bundle"
  | "sse"
  | "open"
  | "prompt-relay"
  | "prompt-json"
  | "prompt-frame";

export interface Go {
  readonly type: "go";
  readonly mode: ClientMode;
  /** Instance asked: a router, or a worker for no hop. */
  readonly inst: string;
  /** Streams open at once; of an open loop on average. */
  readonly streams: number;
  /** Tokens of one answer. */
  readonly outputTokens: number;
  readonly warmupMs: number;
  readonly windowMs: number;
}

export interface Counted {
  readonly type: "counted";
  readonly units: number;
  readonly ms: number;
  /** Answers that ended with an error: on a busy machine some are accepted too late. */
  readonly failed: number;
  /** Time from each request of an open loop to its first token. */
  readonly firstTokensMs: readonly number[];
}

export interface Counter {
  units: number;
  /** Streams, or requests, that have not ended. */
  open: number;
  failed: number;
  stopped: boolean;
  firstTokensMs: number[];
}

export type Client = (go: Go, counter: Counter) => void;

/** Runs the windows that the parent asks for; modes that a process has no client for are not asked. */
export function runWindows(clients: Readonly<Partial<Record<ClientMode, Client>>>): void {
  process.on("message", (go: Go) => {
    if (go.type !== "go") return;
    // Where answers start by themselves, what starts them counts as open.
    const open = go.mode === "open" || go.mode === "sse" ? 1 : go.streams;
    const counter: Counter = { units: 0, open, failed: 0, stopped: false, firstTokensMs: [] };
    clients[go.mode]?.(go, counter);
    setTimeout(() => countWindow(go, counter), go.warmupMs);
  });
}

function countWindow(go: Go, counter: Counter): void {
  process.send?.({ type: "warm" });
  counter.firstTokensMs = [];
  const [startMs, startUnits] = [realClock.nowMs(), counter.units];
  setTimeout(() => {
    const { failed, firstTokensMs } = counter;
    const [units, ms] = [counter.units - startUnits, realClock.nowMs() - startMs];
    counter.stopped = true;
    process.send?.({ type: "counted", units, ms, failed, firstTokensMs } satisfies Counted);
  }, go.windowMs);
}

/** Calls `step` once per loop turn while it says that there is work. */
export function loop(step: () => boolean): () => void {
  let running = false;
  const turn = (): void => {
    if (step()) setImmediate(turn);
    else running = false;
  };
  return () => {
    if (running) return;
    running = true;
    setImmediate(turn);
  };
}

/** The prompt of P1. */
export function longPrompt(): Uint32Array {
  return Uint32Array.from({ length: 131_072 }, (_, index) => (index * 7919) % 128_000);
}

/** One stream ended: another one starts, unless the window is over. */
export function ended(counter: Counter, ask: () => void): void {
  if (counter.stopped) closed(counter);
  else ask();
}

/** One stream ended. */
export function closed(counter: Counter): void {
  counter.open -= 1;
  if (counter.open === 0) process.send?.({ type: "idle" });
}

/** Where all processes want more than the machine has, 300 ms would measure retries. */
export const acceptTimeoutMs = 5_000;

/** Step of the paced engine. */
export const pacedStepMs = 20;

/** Kinds of the instances that are not asked as workers are. */
const kinds: Readonly<Record<string, InstanceKind>> = {
  "dispatcher-a": "global",
  "dispatcher-b": "local",
};
export const kindOf = (inst: string): InstanceKind => kinds[inst] ?? "w";
export const subjectOf = (inst: string): string => generateSubject(kindOf(inst), inst);
