import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { mockToken, readableMockTokenRange } from "../../src/protocol/mock-tokens.ts";
import type { CompletionResult } from "../../src/sim/completion-client.ts";
import { runLoad, targetsOf } from "../../src/sim/demo-load.ts";
import type { TraceRequest } from "../../src/sim/mooncake-trace.ts";

interface Body {
  readonly prompt: readonly number[];
  readonly seed: number;
  readonly max_tokens: number;
}
type Answer = (body: Body, response: ServerResponse) => void;

const trace: readonly TraceRequest[] = [600, 5, 1025].map((inputTokens, at) => ({
  arrivalMs: at * 5,
  inputTokens,
  outputTokens: 20,
  hashIds: Array.from({ length: Math.ceil(inputTokens / 512) }, (_, id) => id),
}));

const chunk = (fields: object): string => `data: ${JSON.stringify(fields)}\n\n`;
const tokens = (ids: readonly number[]): string => chunk({ choices: [{ token_ids: ids }] });
const rightTokens = ({ prompt, seed, max_tokens: count }: Body): number[] =>
  Array.from({ length: count }, (_, at) =>
    mockToken(seed, prompt.length + at, readableMockTokenRange),
  );
const ending = ({ prompt }: Body): string =>
  chunk({ choices: [{ token_ids: [] }], nvext: { worker_id: { prefill_worker_id: "1" } } }) +
  chunk({
    choices: [],
    usage: { prompt_tokens: prompt.length, prompt_tokens_details: { cached_tokens: 3 } },
  }) +
  "data: [DONE]\n\n";

/** Runs the trace against a server that answers as told. */
async function load(answer: Answer, signal?: AbortSignal): Promise<CompletionResult[]> {
  const server = createServer((request: IncomingMessage, response) => {
    let text = "";
    request.on("data", (part) => {
      text += part;
    });
    request.on("end", () => answer(JSON.parse(text), response));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const results: CompletionResult[] = [];
  await runLoad({
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    model: "mock-model",
    requests: trace,
    seed: 1,
    clock: realClock,
    signal: signal ?? new AbortController().signal,
    onStart: () => {},
    onResult: (result) => results.push(result),
  });
  server.closeAllConnections();
  server.close();
  return results;
}

it("finds every token right that is right, however the bytes are cut", async () => {
  const results = await load((body, response) => {
    const ids = rightTokens(body);
    const text = `: note\n\n${tokens(ids.slice(0, 1))}${tokens(ids.slice(1))}${ending(body)}`;
    for (let at = 0; at < text.length; at += 37) response.write(text.slice(at, at + 37));
    response.end();
  });
  expect(results).toHaveLength(3);
  for (const one of results) {
    expect(one).toMatchObject({ outcome: "completed", mismatches: 0, outputTokens: 20 });
    expect(one).toMatchObject({ cachedTokens: 3, prefillWorker: "1", decodeWorker: undefined });
  }
});

it.each<[string, (ids: number[]) => number[], number]>([
  ["a wrong token", (ids) => ids.with(7, 1), 1],
  ["a lost token at the end", (ids) => ids.slice(0, -1), 1],
  ["a doubled token", (ids) => [...ids.slice(0, 19), ids[18]!, ids[19]!], 3],
  [
    "the tokens of another request",
    (ids) => ids.map((_, at) => mockToken(99, at, readableMockTokenRange)),
    20,
  ],
])("counts %s", async (_name, change, mismatches) => {
  const results = await load((body, response) =>
    response.end(tokens(change(rightTokens(body))) + ending(body)),
  );
  for (const one of results) expect(one).toMatchObject({ outcome: "completed", mismatches });
});

it.each<[string, Answer, Partial<CompletionResult>]>([
  [
    "an answer without its last event",
    (body, response) => response.end(tokens(rightTokens(body))),
    { outcome: "failed", fault: "the answer ended without [DONE]", mismatches: 0 },
  ],
  [
    "an error event",
    (body, response) =>
      response.end(
        `${tokens(rightTokens(body))}event: error\n${chunk({ error: { message: "x" } })}`,
      ),
    { outcome: "failed", fault: "x" },
  ],
  [
    "a refusal for lack of room",
    (_, response) => response.writeHead(529).end("{}"),
    { outcome: "rejected", fault: "529 {}", ttftMs: undefined },
  ],
  [
    "any other refusal",
    (_, response) => response.writeHead(503).end("down"),
    { outcome: "failed", fault: "503 down" },
  ],
  ["a cut connection", (_, response) => response.destroy(), { outcome: "failed" }],
])("tells %s", async (_name, answer, expected) => {
  for (const one of await load(answer)) expect(one).toMatchObject(expected);
});

it("ends what is under way when it is told to stop", async () => {
  const controller = new AbortController();
  const results = await load(() => controller.abort(), controller.signal);
  expect(results.length).toBeGreaterThan(0);
  for (const { outcome } of results) expect(outcome).toBe("cancelled");
});

it("gives all turns of a conversation the same targets, and conversations different ones", () => {
  const turn = (conversation: number, more: readonly number[]): TraceRequest => ({
    ...trace[0]!,
    hashIds: [0, conversation, ...more],
  });
  const seen = new Set<number | null>();
  for (let conversation = 1; conversation < 50; conversation++) {
    const first = targetsOf(7, turn(conversation, []));
    expect(targetsOf(7, turn(conversation, [5, 6]))).toEqual(first);
    seen.add(first.ttftTargetMs);
  }
  expect(seen).toEqual(new Set([300, null, 5000]));
});
