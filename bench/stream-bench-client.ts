/**
 * The client of the stream bench: closed loops that count tokens or receipts, and an open loop that
 * takes the time to the first token.
 */
import { realClock } from "../src/base/clock.ts";
import { mulberry32, osRandom, randomHex128 } from "../src/base/random.ts";
import { encodeDispatch } from "../src/protocol/request-frame.ts";
import { encodeDispatchJson } from "../src/protocol/request-json.ts";
import { attemptNumber, type TokenDispatch } from "../src/protocol/requests.ts";
import { decodeJsonFrame } from "../src/protocol/stream-json.ts";
import type { Bus } from "../src/runtime/bus.ts";
import type { StreamSink } from "../src/runtime/owner-request.ts";
import { createStreamOwner, type StreamOwner } from "../src/runtime/stream-owner.ts";
import { busWire, type RelayWire, relayClient } from "./baselines/relay.ts";
import {
  acceptTimeoutMs,
  type Client,
  type Counter,
  closed,
  ended,
  type Go,
  longPrompt,
  pacedStepMs,
  runWindows,
  subjectOf,
} from "./stream-bench-go.ts";
import { sseClient } from "./stream-bench-sse.ts";

const promptTokens = Uint32Array.from({ length: 16 }, (_, index) => index);

/** The client of the relay on the plain wire. */
export function plainClient(wire: RelayWire): void {
  runWindows(baselineClients(wire));
}

export function client(bus: Bus): void {
  const owner = createStreamOwner({ bus, clock: realClock, random: osRandom, acceptTimeoutMs });
  const prompt = promptClient(bus);
  runWindows({
    ...baselineClients(busWire(bus)),
    json: jsonClient(bus),
    bundle: (go, counter) => closedLoop(owner, go, counter),
    sse: sseClient((go, sink) => callOwner(owner, go, sink)),
    open: (go, counter) => openLoop(owner, go, counter),
    "prompt-json": prompt,
    "prompt-frame": prompt,
  });
}

/** Our owner: the whole protocol with credit, acknowledgements and timers. */
function callOwner(owner: StreamOwner, go: Go, sink: StreamSink) {
  return owner.call({
    route: () => ({ inst: go.inst, subject: subjectOf(go.inst) }),
    phase: "aggregated",
    body: {
      model: "m",
      stop_conditions: { max_tokens: go.outputTokens },
      ...(go.mode === "open" ? { extra_args: { paced: true } } : {}),
    },
    tokens: promptTokens,
    deadlineMs: 60_000,
    firstTokenTimeoutMs: 30_000,
    migration: { limit: 0, allowed: false },
    sink,
  });
}

function closedLoop(owner: StreamOwner, go: Go, counter: Counter): void {
  const ask = (): void => {
    callOwner(owner, go, {
      onAccepted: () => {},
      onOutput: (output) => {
        counter.units += output.tokenIds.length;
      },
      onEnd: () => ended(counter, ask),
      onError: () => {
        counter.failed += 1;
        ended(counter, ask);
      },
    });
  };
  for (let stream = 0; stream < go.streams; stream++) ask();
}

/** Asks at random times, as often as keeps `streams` paced answers open. */
function openLoop(owner: StreamOwner, go: Go, counter: Counter): void {
  const random = mulberry32(1);
  const gapMs = (pacedStepMs * go.outputTokens) / go.streams;
  const ask = (): void => {
    const askedMs = realClock.nowMs();
    counter.open += 1;
    callOwner(owner, go, {
      onAccepted: () => {},
      onOutput: (output, first) => {
        counter.units += output.tokenIds.length;
        if (first === 0) counter.firstTokensMs.push(realClock.nowMs() - askedMs);
      },
      onEnd: () => closed(counter),
      onError: () => {
        counter.failed += 1;
        closed(counter);
      },
    });
  };
  let nextMs = realClock.nowMs();
  const arrive = (): void => {
    while (nextMs <= realClock.nowMs()) {
      ask();
      nextMs += gapMs * -Math.log(1 - random());
    }
    if (counter.stopped) closed(counter);
    else setTimeout(arrive, nextMs - realClock.nowMs());
  };
  arrive();
}

/** Clients of the relay: tokens of closed loops, and prompts that a worker drops. */
function baselineClients(wire: RelayWire): Readonly<Record<"relay" | "prompt-relay", Client>> {
  const askRelay = relayClient(wire, osRandom);
  const long = Array.from(longPrompt());
  const clientOf =
    (isPrompt: boolean): Client =>
    (go, counter) => {
      const tokenIds = isPrompt ? long : Array.from(promptTokens);
      const ask = (): void => {
        const end = (): void => {
          if (isPrompt) counter.units += 1;
          ended(counter, ask);
        };
        const token = (): void => {
          counter.units += 1;
        };
        askRelay({ inst: go.inst, maxTokens: go.outputTokens, tokenIds }, token, end);
      };
      for (let stream = 0; stream < go.streams; stream++) ask();
    };
  return { relay: clientOf(false), "prompt-relay": clientOf(true) };
}

/** A plain client of our wire: one JSON message per token. */
function jsonClient(bus: Bus): Client {
  let asked = 0;
  let current: { go: Go; counter: Counter } | undefined;
  const ask = (go: Go): void => {
    const subject = `${bus.inboxPrefix}.j.${asked++}`;
    const dispatch = dispatchTo(subject, promptTokens, go.outputTokens);
    void bus.request(subjectOf(go.inst), encodeDispatch(dispatch), { timeoutMs: 10_000 });
  };
  bus.subscribe(`${bus.inboxPrefix}.j.*`, ({ payload }) => {
    if (!current) return;
    const { go, counter } = current;
    const frame = decodeJsonFrame(payload)?.frame;
    if (frame?.type === "tokens") counter.units += 1;
    else if (frame?.type === "end" || frame?.type === "error") {
      counter.failed += frame.type === "end" ? 0 : 1;
      ended(counter, () => ask(go));
    }
  });
  return (go, counter) => {
    current = { go, counter };
    for (let stream = 0; stream < go.streams; stream++) ask(go);
  };
}

/** A request whose stream nobody reads, or one that reads JSON frames at `subject`. */
export function dispatchTo(subject: string, tokens: Uint32Array, maxTokens: number): TokenDispatch {
  return {
    envelope: {
      rid: randomHex128(osRandom),
      attempt: attemptNumber({ call: 1, global: 0, local: 0 }),
      first: 0,
      phase: "aggregated",
      deadlineMs: 60_000,
      stream: { subject, format: "json", key: 0, acks: false },
      notify: [],
      avoid: [],
      decisions: [],
    },
    body: { model: "m", stop_conditions: { max_tokens: maxTokens } },
    prompt: { type: "tokens", tokens },
  };
}

/** Requests of 131,072 tokens that a worker accepts and drops; counts receipts. */
function promptClient(bus: Bus): Client {
  const tokens = longPrompt();
  return (go, counter) => {
    const encode = go.mode === "prompt-json" ? encodeDispatchJson : encodeDispatch;
    const ask = async (): Promise<void> => {
      const bytes = encode(dispatchTo(`${bus.inboxPrefix}.none`, tokens, 0));
      await bus.request(subjectOf(go.inst), bytes, { timeoutMs: 20_000 });
      counter.units += 1;
      ended(counter, () => void ask());
    };
    for (let stream = 0; stream < go.streams; stream++) void ask();
  };
}
