/**
 * A client that has nothing but the `nats` package, against real processes: what docs/wire.md
 * promises to it, and its example word for word. Nothing of the product's code runs on its side.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { connect, createInbox, type NatsConnection } from "nats";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import type { NatsServer } from "../../src/runtime/nats-server.ts";
import { type AggFleet, createAggFleet } from "./agg-fleet.ts";
import { startNats } from "./nats-fixture.ts";
import { patienceMs, root, until } from "./processes.ts";

const globalGenerate = "tg.ep.dynamo.global_router.generate";
const localGenerate = "tg.ep.pool.router.generate";

let nats: NatsServer;
let fleet: AggFleet;
let nc: NatsConnection;

beforeAll(async () => {
  nats = await startNats();
  fleet = createAggFleet(nats.url);
  nc = await connect({ servers: nats.url });
});

beforeEach(async () => {
  await fleet.up();
});

afterAll(async () => {
  await nc?.close();
  await fleet?.down();
  fleet?.forget();
  await nats?.stop();
});

interface Frame {
  readonly type: string;
  readonly rid: string;
  readonly attempt: number;
  readonly [field: string]: unknown;
}

/** The murmur3 finaliser over seed and position: the mock engine's token at a position. */
function tokenAt(seed: number, position: number): number {
  let x = seed ^ Math.imul(position + 1, 0x9e3779b1);
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return 256 + (((x ^ (x >>> 16)) >>> 0) % 1789);
}

/** Sends `request` and yields every frame up to the last one. */
async function* framesOf(subject: string, request: unknown): AsyncGenerator<Frame> {
  const inbox = createInbox();
  const frames = nc.subscribe(inbox);
  nc.publish(subject, JSON.stringify(request), { reply: inbox });
  try {
    for await (const message of frames) {
      const frame = message.json<Frame>();
      yield frame;
      if (frame.type === "end" || frame.type === "error") return;
    }
  } finally {
    frames.unsubscribe();
  }
}

async function allFrames(subject: string, request: unknown): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const frame of framesOf(subject, request)) frames.push(frame);
  return frames;
}

const seed = 77;
const asked = (tokens: number) => ({
  model: "mock-model",
  token_ids: [1, 2, 3],
  stop_conditions: { max_tokens: tokens, ignore_eos: true },
  sampling_options: { seed },
});

it.each([globalGenerate, localGenerate])(
  "follows JSON frames of %s to the end",
  async (subject) => {
    const frames = await allFrames(subject, asked(16));
    expect(frames[0]).toMatchObject({
      type: "accepted",
      dp_rank: 0,
      worker_id: expect.any(String),
    });
    const tokens = frames.filter(({ type }) => type === "tokens");
    const ids = tokens.flatMap(({ token_ids }) => token_ids as number[]);
    expect(ids).toEqual(Array.from({ length: 16 }, (_, at) => tokenAt(seed, 3 + at)));
    let next = 0;
    for (const { first, token_ids } of tokens) {
      expect(first).toBe(next);
      next += (token_ids as number[]).length;
    }
    expect(frames.at(-1)).toMatchObject({ type: "end", total: 16, finish_reason: "length" });
    expect(new Set(frames.map(({ rid, attempt }) => `${rid} ${attempt}`)).size).toBe(1);
  },
);

it("gets one error frame for a request that cannot be served", async () => {
  const refused = { type: "error", code: "invalid_request", retryable: false, started: false };
  const { workers } = fleet.part("worker").facts ?? {};
  const worker = `tg.w.${workers}.gen`;
  for (const subject of [globalGenerate, localGenerate, worker]) {
    const [frame, ...rest] = await allFrames(subject, { ...asked(4), token_ids: [] });
    expect(frame).toMatchObject({ ...refused, message: expect.stringContaining("token_ids") });
    expect(rest).toEqual([]);
  }
  // A caller that names a stream of its own waits for a receipt.
  const tiergrid = { stream: { subject: createInbox() } };
  const payload = JSON.stringify({ ...asked(4), token_ids: [], tiergrid });
  const reply = await nc.request(globalGenerate, payload, { timeout: 5000 });
  expect(reply.json()).toMatchObject({ type: "refused", code: "invalid_request" });
});

it("stops a stream early with a cancel to the control subject", async () => {
  let control = "";
  let tokens = 0;
  // Ten minutes of decoding: only the cancel ends it in time.
  for await (const frame of framesOf(globalGenerate, asked(100_000))) {
    if (frame.type === "accepted") control = String(frame["control"]);
    if (frame.type !== "tokens" || ++tokens < 5) continue;
    const { rid, attempt } = frame;
    const cancel = JSON.stringify({ type: "cancel", rid, attempt });
    const reply = await nc.request(control, cancel, { timeout: 5000 });
    expect(reply.json()).toEqual({ ok: true });
    break;
  }
  expect(tokens).toBe(5);
  await fleet.idle();
});

it("asks a local router which worker it would take", async () => {
  const ask = async (payload: unknown): Promise<unknown> => {
    const subject = "tg.ep.pool.router.best_worker_id";
    return (await nc.request(subject, JSON.stringify(payload), { timeout: 5000 })).json();
  };
  const { workers } = fleet.part("worker").facts ?? {};
  expect(await ask([1, 2, 3])).toBe(Number(workers));
  const taken = { worker_id: workers, dp_rank: 0, overlap_blocks: 0 };
  expect(await ask(asked(4))).toEqual(taken);
  expect(await ask({ token_ids: "x" })).toMatchObject({ error: { code: "invalid_request" } });
});

it("finds every process through $SRV, with its endpoints and its counts", async () => {
  for (const subject of [globalGenerate, localGenerate]) await allFrames(subject, asked(2));
  const parts = { "tiergrid-global": globalGenerate, "tiergrid-local": localGenerate };
  const replies = await nc.requestMany("$SRV.PING", "", { maxWait: 500 });
  const names: string[] = [];
  for await (const reply of replies) names.push(reply.json<{ name: string }>().name);
  expect(names.sort()).toEqual(["tiergrid-global", "tiergrid-local", "tiergrid-worker"]);
  for (const [name, subject] of Object.entries(parts)) {
    const ask = async (verb: string): Promise<Record<string, unknown>> =>
      (await nc.request(`$SRV.${verb}.${name}`, "", { timeout: 5000 })).json();
    const endpoint = expect.objectContaining({ name: "generate", subject });
    expect(await ask("INFO")).toMatchObject({
      name,
      endpoints: expect.arrayContaining([endpoint]),
    });
    // The notice that ends a request in the books may come after its last frame.
    await until(`${name} has counted`, async () => {
      const { endpoints } = await ask("STATS");
      const stats = endpoints as { name: string; num_requests: number }[];
      return stats.some((counted) => counted.name === "generate" && counted.num_requests > 0);
    });
  }
});

it("runs the example of docs/wire.md word for word", () => {
  const text = readFileSync(`${root}docs/wire.md`, "utf8");
  const example = /## Follow a stream with a plain NATS client[\s\S]*?```ts\n([\s\S]*?)```/.exec(
    text,
  );
  const code = (example?.[1] ?? "")
    .replace("nats://127.0.0.1:4222", nats.url)
    .replace("tg.ep.dynamo.router.generate", localGenerate);
  expect(code).toContain(nats.url);
  expect(code).toContain(localGenerate);
  const program = `${code}\nawait nc.close();\n`;
  const args = ["--input-type=module", "--eval", program];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, {
    cwd: root,
    timeout: patienceMs,
  });
  expect({ status, stderr: String(stderr) }).toEqual({ status: 0, stderr: "" });
  const tokens = String(stdout).matchAll(/^(\d+) \[ (.*?) \]$/gm);
  const counts = [...tokens].map(([, first, ids = ""]) => [Number(first), ids.split(",").length]);
  let next = 0;
  for (const [first, count = 0] of counts) {
    expect(first).toBe(next);
    next += count;
  }
  expect(next).toBe(16);
});
