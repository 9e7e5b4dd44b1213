/**
 * One streamed completion over HTTP, checked token by token: every token of the mock engine follows
 * from the request's seed and the token's position, so that lost, doubled and mixed-up tokens show.
 */
import { type Agent, type IncomingMessage, request as openRequest } from "node:http";
import type { Clock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { mockToken, readableMockTokenRange } from "../protocol/mock-tokens.ts";

export interface Completion {
  /** Times on the client's clock. */
  readonly arrivalMs: number;
  readonly seed: number;
  readonly prompt: Uint32Array;
  readonly outputTokens: number;
  readonly ttftTargetMs: number | null;
  readonly itlTargetMs: number | null;
}

/** `rejected`: refused for lack of room before any token. */
export type CompletionOutcome = "completed" | "rejected" | "failed" | "cancelled";

export interface CompletionResult {
  readonly outcome: CompletionOutcome;
  /** What went wrong, in one line. */
  readonly fault: string | undefined;
  /** From the arrival to the first token. */
  readonly ttftMs: number | undefined;
  /** Gaps between tokens in ms, as pairs of a gap and how many tokens had it. */
  readonly gaps: readonly number[];
  /** Tokens that were not the expected ones, missing and extra ones included. */
  readonly mismatches: number;
  readonly outputTokens: number;
  readonly promptTokens: number;
  /** Prompt tokens the engine took from its cache. */
  readonly cachedTokens: number;
  /** Workers of both legs, or the same one twice. */
  readonly prefillWorker: string | undefined;
  readonly decodeWorker: string | undefined;
}

export interface CompletionClient {
  readonly url: string;
  readonly model: string;
  readonly agent: Agent;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/** Bytes of one event, at most. */
const eventBytesMax = 1024 * 1024;
const errorBytesMax = 64 * 1024;
/** Times a request goes out again because its pooled connection was closed under it. */
const resendsMax = 3;
const overloadStatuses: ReadonlySet<number> = new Set([429, 529]);

/** Sends the request and reads its answer to the end; never rejects. */
export async function complete(
  client: CompletionClient,
  completion: Completion,
): Promise<CompletionResult> {
  const reader = new AnswerReader(client, completion);
  try {
    const response = await open(client, completion);
    if (response.statusCode !== 200) return reader.result(await refusal(response));
    response.setEncoding("utf8");
    for await (const text of response) reader.read(text as string);
    return reader.result();
  } catch (thrown) {
    if (client.signal.aborted) return reader.result({ outcome: "cancelled", fault: undefined });
    return reader.result({ outcome: "failed", fault: toTiergridError(thrown).message });
  }
}

/** Sends again when a pooled connection had been closed by the server in the meantime. */
async function open(client: CompletionClient, completion: Completion): Promise<IncomingMessage> {
  const body = bodyOf(client.model, completion);
  for (let resends = 0; ; resends++) {
    const sent = openRequest(`${client.url}/v1/completions`, {
      agent: client.agent,
      method: "POST",
      signal: client.signal,
      headers: { "content-type": "application/json", "content-length": Buffer.byteLength(body) },
    });
    try {
      return await new Promise((resolve, reject) => {
        sent.once("response", resolve);
        sent.once("error", reject);
        sent.end(body);
      });
    } catch (thrown) {
      const reset = (thrown as NodeJS.ErrnoException).code === "ECONNRESET";
      if (!reset || !sent.reusedSocket || resends >= resendsMax) throw thrown;
    }
  }
}

function bodyOf(model: string, completion: Completion): string {
  const { prompt, outputTokens, seed, ttftTargetMs, itlTargetMs } = completion;
  const router = {
    ...(ttftTargetMs !== null && { ttft_target: ttftTargetMs }),
    ...(itlTargetMs !== null && { itl_target: itlTargetMs }),
  };
  const rest = JSON.stringify({
    model,
    seed,
    max_tokens: outputTokens,
    ignore_eos: true,
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
    nvext: { extra_fields: ["worker_id"], router },
  });
  return `${rest.slice(0, -1)},"prompt":[${prompt.join(",")}]}`;
}

interface Ending {
  readonly outcome: CompletionOutcome;
  readonly fault: string | undefined;
}

async function refusal(response: IncomingMessage): Promise<Ending> {
  const status = response.statusCode ?? 0;
  let text = "";
  response.setEncoding("utf8");
  for await (const part of response) {
    if (text.length < errorBytesMax) text += part as string;
  }
  const fault = `${status} ${text.slice(0, 300)}`;
  return { outcome: overloadStatuses.has(status) ? "rejected" : "failed", fault };
}

/** The parts of a chunk that are read. */
interface Chunk {
  readonly choices?: readonly { readonly token_ids?: readonly number[] }[];
  readonly usage?: {
    readonly prompt_tokens: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number };
  } | null;
  readonly nvext?: {
    readonly worker_id?: {
      readonly prefill_worker_id: string | null;
      readonly decode_worker_id: string | null;
    };
  };
  readonly error?: { readonly message?: string };
}

class AnswerReader {
  readonly #client: CompletionClient;
  readonly #completion: Completion;
  #rest = "";
  #tokens = 0;
  #mismatches = 0;
  #ttftMs: number | undefined;
  #lastMs = 0;
  #untimed = 0;
  readonly #gaps: number[] = [];
  #usage: Chunk["usage"];
  #workers: NonNullable<Chunk["nvext"]>["worker_id"];
  #fault: string | undefined;
  #done = false;

  constructor(client: CompletionClient, completion: Completion) {
    this.#client = client;
    this.#completion = completion;
  }

  read(text: string): void {
    const events = (this.#rest + text).split("\n\n");
    this.#rest = events.pop() ?? "";
    if (this.#rest.length > eventBytesMax) {
      throw new TiergridError("malformed_reply", `an event of more than ${eventBytesMax} bytes`);
    }
    for (const event of events) this.#event(event);
    if (this.#untimed > 0) this.#time();
  }

  result(ending?: Ending): CompletionResult {
    const { outputTokens, prompt } = this.#completion;
    const complete = this.#done && this.#fault === undefined;
    const fault = this.#fault ?? (this.#done ? undefined : "the answer ended without [DONE]");
    const workers = this.#workers;
    return {
      outcome: ending?.outcome ?? (complete ? "completed" : "failed"),
      fault: ending ? ending.fault : fault,
      ttftMs: this.#ttftMs,
      gaps: this.#gaps,
      mismatches: this.#mismatches + (complete ? Math.abs(outputTokens - this.#tokens) : 0),
      outputTokens: this.#tokens,
      promptTokens: this.#usage?.prompt_tokens ?? prompt.length,
      cachedTokens: this.#usage?.prompt_tokens_details?.cached_tokens ?? 0,
      prefillWorker: workers?.prefill_worker_id ?? undefined,
      decodeWorker: workers?.decode_worker_id ?? undefined,
    };
  }

  #event(event: string): void {
    const [name, json] = partsOf(event);
    if (json === undefined) return;
    if (json === "[DONE]") {
      this.#done = true;
      return;
    }
    const chunk = JSON.parse(json) as Chunk;
    if (name === "error" || chunk.error) this.#fault = chunk.error?.message ?? json;
    if (chunk.usage) this.#usage = chunk.usage;
    if (chunk.nvext?.worker_id) this.#workers = chunk.nvext.worker_id;
    const tokenIds = chunk.choices?.[0]?.token_ids;
    if (tokenIds !== undefined && tokenIds.length > 0) this.#take(tokenIds);
  }

  #take(tokenIds: readonly number[]): void {
    const { seed, prompt } = this.#completion;
    for (const tokenId of tokenIds) {
      if (tokenId !== mockToken(seed, prompt.length + this.#tokens, readableMockTokenRange))
        this.#mismatches += 1;
      this.#tokens += 1;
    }
    this.#untimed += tokenIds.length;
  }

  /** Tokens of one read came together: they share the time since the last ones. */
  #time(): void {
    const nowMs = this.#client.clock.nowMs();
    if (this.#ttftMs === undefined) this.#ttftMs = nowMs - this.#completion.arrivalMs;
    else this.#gaps.push((nowMs - this.#lastMs) / this.#untimed, this.#untimed);
    this.#lastMs = nowMs;
    this.#untimed = 0;
  }
}

/** Name and data of one event; comments have neither. */
function partsOf(event: string): [name: string, json: string | undefined] {
  if (event.startsWith("data: ")) return ["", event.slice(6)];
  const lines = event.split("\n");
  const field = (name: string) => lines.find((line) => line.startsWith(name))?.slice(name.length);
  return [field("event: ") ?? "", field("data: ")];
}
