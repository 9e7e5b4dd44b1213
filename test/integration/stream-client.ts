/** Streamed completions over HTTP, every token checked against the mock engine's own sequence. */
import { realClock, sleep } from "../../src/base/clock.ts";
import { mockToken, readableMockTokenRange } from "../../src/protocol/mock-tokens.ts";
import { patienceMs, until } from "./processes.ts";

export const model = "mock-model";

/** What a stream has to have brought to count as running. */
const tokensMin = 10;

export interface Prompt {
  readonly prompt: readonly number[];
  readonly tokens: number;
  readonly seed: number;
}

export interface Stream {
  /** Tokens that came so far. */
  readonly tokens: number;
  /** Undefined while it runs; `exact`, or in one line what was wrong. */
  readonly outcome: string | undefined;
  /** Never rejects: a stream that does not end in time ends as `hung`. */
  readonly ended: Promise<string>;
  /** Closes the client's connection. */
  leave(): void;
}

/** Opens one stream. `exact` means: status 200, every token once and in order, one clean end. */
export function openStream(api: string, asked: Prompt): Stream {
  const leaving = new AbortController();
  const reading = {
    tokens: 0,
    finished: false,
    done: false,
    fault: undefined as string | undefined,
  };
  let outcome: string | undefined;
  const read = async (): Promise<string> => {
    const response = await post(api, asked, leaving.signal);
    if (response.status !== 200) return refusalOf(response.status, await response.text());
    for await (const event of eventsOf(response)) take(reading, event, asked);
    if (reading.fault) return `${reading.fault} after ${reading.tokens} tokens`;
    const whole = reading.finished && reading.done && reading.tokens === asked.tokens;
    return whole ? "exact" : `cut after ${reading.tokens} tokens`;
  };
  const hung = (async () => {
    await sleep(realClock, patienceMs, leaving.signal);
    return leaving.signal.aborted ? "left" : `hung after ${reading.tokens} tokens`;
  })();
  const ended = Promise.race([read().catch((thrown) => `broken: ${thrown}`), hung]).then((text) => {
    outcome = text;
    leaving.abort();
    return text;
  });
  return {
    get tokens() {
      return reading.tokens;
    },
    get outcome() {
      return outcome;
    },
    ended,
    leave: () => leaving.abort(),
  };
}

/** `count` streams at once, each with a prompt and a seed of its own. */
export function openStreams(api: string, count: number, tokens: number): Stream[] {
  return Array.from({ length: count }, (_, at) => openStream(api, promptOf(at, tokens)));
}

/** A prompt that no other number shares from its first block on; two blocks and a bit by default. */
export function promptOf(number: number, tokens: number, promptTokens = 150): Prompt {
  const prompt = Array.from({ length: promptTokens }, (_, at) => 2000 + number * 200 + (at % 200));
  return { prompt, tokens, seed: 1000 + number };
}

/** How often streams that ended before the last of them ran are opened anew. */
const lengtheningsMax = 3;

/**
 * As `openStreams`, once all of them run at the same time. Where the first end before the last has
 * begun, all are opened anew with twice the tokens: a busy machine takes its time over the opening.
 */
export async function streamsInFlight(
  api: string,
  count: number,
  tokens: number,
): Promise<Stream[]> {
  for (let lengthening = 0; lengthening < lengtheningsMax; lengthening++) {
    const streams = openStreams(api, count, tokens << lengthening);
    if (await haveBegun(streams)) return streams;
    const outcomes = await outcomesOf(streams);
    if (outcomes["exact"] !== count) throw new Error(JSON.stringify(outcomes));
  }
  const streams = openStreams(api, count, tokens << lengtheningsMax);
  await inFlight(streams);
  return streams;
}

/** Resolves when all of them run and have some tokens, and none has ended. */
export async function inFlight(streams: readonly Stream[]): Promise<void> {
  if (await haveBegun(streams)) return;
  throw new Error(`streams ended too early: ${stateOf(streams)}`);
}

/** Waits until each has some tokens or has ended; true when none has ended. */
async function haveBegun(streams: readonly Stream[]): Promise<boolean> {
  const begun = ({ tokens, outcome }: Stream): boolean =>
    tokens >= tokensMin || outcome !== undefined;
  await until(
    "all streams run",
    () => streams.every(begun),
    () => stateOf(streams),
  );
  return streams.every(({ outcome }) => outcome === undefined);
}

const stateOf = (streams: readonly Stream[]): string =>
  streams.map(({ tokens, outcome }) => outcome ?? tokens).join(", ");

/** How the streams ended, each outcome with its count: `{ exact: 24 }`. */
export async function outcomesOf(
  streams: readonly Stream[],
): Promise<Readonly<Record<string, number>>> {
  const counts: Record<string, number> = {};
  for (const outcome of await Promise.all(streams.map(({ ended }) => ended))) {
    counts[outcome] = (counts[outcome] ?? 0) + 1;
  }
  return counts;
}

function post(api: string, asked: Prompt, signal: AbortSignal): Promise<Response> {
  const body = {
    model,
    prompt: asked.prompt,
    max_tokens: asked.tokens,
    seed: asked.seed,
    ignore_eos: true,
    stream: true,
    return_token_ids: true,
  };
  const headers = { "content-type": "application/json" };
  const url = `${api}/v1/completions`;
  return fetch(url, { method: "POST", headers, body: JSON.stringify(body), signal });
}

function refusalOf(status: number, text: string): string {
  const { error } = JSON.parse(text) as { error: { code: string } };
  return `${status} ${error.code}`;
}

/** The `data` of every event. */
async function* eventsOf(response: Response): AsyncGenerator<string> {
  let rest = "";
  const decoder = new TextDecoder();
  for await (const bytes of response.body ?? []) {
    const events = (rest + decoder.decode(bytes, { stream: true })).split("\n\n");
    rest = events.pop() ?? "";
    for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
  }
}

interface Chunk {
  readonly choices?: readonly {
    readonly token_ids?: readonly number[];
    readonly finish_reason?: string | null;
  }[];
  readonly error?: { readonly code: string };
}

interface Reading {
  tokens: number;
  finished: boolean;
  done: boolean;
  fault: string | undefined;
}

function take(reading: Reading, event: string, { prompt, seed }: Prompt): void {
  if (reading.done) reading.fault ??= "an event behind [DONE]";
  if (event === "[DONE]") {
    reading.done = true;
    return;
  }
  const { choices, error } = JSON.parse(event) as Chunk;
  if (error) reading.fault ??= `error ${error.code}`;
  const [choice] = choices ?? [];
  for (const token of choice?.token_ids ?? []) {
    if (token !== mockToken(seed, prompt.length + reading.tokens, readableMockTokenRange))
      reading.fault ??= "a wrong token";
    reading.tokens += 1;
  }
  if (choice?.finish_reason === "length") reading.finished = true;
}
