/**
 * The path for huge prompts: a caller that hashes its prompt asks the pool's router with 8 bytes a
 * block, and sends the prompt once, straight to the worker. Real processes on a real nats-server.
 */
import { afterAll, beforeAll, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { osRandom } from "../../src/base/random.ts";
import { loadBlockHasher } from "../../src/protocol/block-hashes.ts";
import { encodeHashQuestion } from "../../src/protocol/hash-frame.ts";
import { mockToken, readableMockTokenRange } from "../../src/protocol/mock-tokens.ts";
import { endpointSubject } from "../../src/protocol/subjects.ts";
import type { Bus } from "../../src/runtime/bus.ts";
import { startEchoGate } from "../../src/runtime/echo-gate.ts";
import { connectNatsBus } from "../../src/runtime/nats-bus.ts";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { createStreamOwner } from "../../src/runtime/stream-owner.ts";
import { type AggFleet, createAggFleet } from "./agg-fleet.ts";
import { startNats } from "./nats-fixture.ts";
import { until } from "./processes.ts";

const blockSize = 64;
const promptTokens = 100_000;
const outputTokens = 20;

interface Routed {
  readonly request_id: string;
  readonly worker_id: string;
  readonly overlap_blocks: number;
  readonly generate_subject: string;
  readonly control_subject: string;
  readonly route_subject: string;
}

let nats: NatsServer;
let fleet: AggFleet;
let bus: Bus;

beforeAll(async () => {
  nats = await startNats();
  fleet = createAggFleet(nats.url, {
    worker: ["--speed", "100", "--block-size", String(blockSize)],
    workers: 2,
  });
  await fleet.up();
  const access = { servers: [nats.url], role: "ob", clock: realClock, random: osRandom } as const;
  bus = await connectNatsBus(access);
});

afterAll(async () => {
  await bus?.close();
  await fleet?.down();
  fleet?.forget();
  await nats?.stop();
});

const ask = async <Answer>(subject: string, payload: Uint8Array): Promise<Answer> => {
  const { payload: reply } = await bus.request(subject, payload, { timeoutMs: 5000 });
  return JSON.parse(new TextDecoder().decode(reply)) as Answer;
};

const json = (value: object): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

/** Asks by hashes, sends the prompt to the worker, reads the answer, tells the router. */
async function answerOf(prompt: Uint32Array, seed: number) {
  const hasher = await loadBlockHasher();
  const { local } = hasher.hashBlocks(prompt, blockSize);
  const question = encodeHashQuestion({
    body: { method: "new" },
    islTokens: prompt.length,
    blockSize,
    localHashes: local,
  });
  const subject = endpointSubject({ namespace: "pool", component: "router", endpoint: "route" });
  const routed = await ask<Routed>(subject, question);
  const { generate_subject, control_subject, route_subject, request_id } = routed;
  const gate = startEchoGate(bus, realClock);
  const owner = createStreamOwner({ bus, clock: realClock, random: osRandom, gate });
  const worker = { inst: routed.worker_id, subject: generate_subject, control: control_subject };
  const tokens: number[] = [];
  const outcome = await new Promise<string>((resolve) => {
    owner.call({
      route: (avoid) => (avoid.includes(worker.inst) ? undefined : worker),
      phase: "aggregated",
      body: {
        model: "mock-model",
        stop_conditions: { max_tokens: outputTokens, ignore_eos: true },
        sampling_options: { seed },
      },
      tokens: prompt,
      deadlineMs: 30_000,
      firstTokenTimeoutMs: 20_000,
      migration: { limit: 0, allowed: false },
      sink: {
        onAccepted: () => {},
        onOutput(output) {
          if (tokens.length === 0) {
            void ask(route_subject, json({ method: "mark_prefill", request_id }));
          }
          tokens.push(...output.tokenIds);
        },
        onEnd: ({ finishReason }) => resolve(finishReason),
        onError: ({ code, message }) => resolve(`${code}: ${message}`),
      },
    });
  });
  const freed = await ask<object>(route_subject, json({ method: "mark_free", request_id }));
  owner.close();
  gate.stop();
  return { routed, outcome, tokens, freed, questionBytes: question.length };
}

it("routes a huge prompt by its hashes, and the next like it to the worker that has it", async () => {
  const prompt = Uint32Array.from({ length: promptTokens }, (_, at) => 2000 + ((at * 7) % 900));
  const blocks = Math.floor(promptTokens / blockSize);
  const first = await answerOf(prompt, 5);
  expect(first.questionBytes).toBeLessThan(blocks * 8 + 100);
  await until("the router knows the worker's blocks", async () => {
    const metrics = await fleet.metricsOf("local");
    return metrics.sum("tiergrid_index_blocks") >= blocks;
  });
  const second = await answerOf(prompt, 6);
  expect(second.routed.worker_id).toBe(first.routed.worker_id);
  expect(second.routed.overlap_blocks).toBe(blocks);
  for (const [at, { outcome, tokens, freed }] of [first, second].entries()) {
    expect(outcome).toBe("length");
    const wanted = Array.from({ length: outputTokens }, (_, place) =>
      mockToken(5 + at, promptTokens + place, readableMockTokenRange),
    );
    expect(tokens).toEqual(wanted);
    expect(freed).toMatchObject({ success: true });
  }
  await fleet.idle();
});
