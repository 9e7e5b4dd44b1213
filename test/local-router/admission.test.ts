import { expect, it } from "vitest";
import { randomHex128, randomInt } from "../../src/base/random.ts";
import type { LocalRouterOptions } from "../../src/local-router/local-router.ts";
import { decodeReceipt } from "../../src/protocol/receipts.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import type { Dispatch, Receipt, RequestBody } from "../../src/protocol/requests.ts";
import { encodeControl } from "../../src/protocol/stream-control.ts";
import { controlSubject, generateSubject } from "../../src/protocol/subjects.ts";
import { configOf, promptOf, startPool } from "./pool-rig.ts";

const firstAttempt = 1 << 20;

interface Posted {
  readonly rid: string;
  /** The worker's instance, a refusal's code, or `waiting`. */
  outcome: string;
  receipt: Receipt | undefined;
}

/**
 * A pool whose requests wait as soon as every worker has some prefill, unless `settings` say
 * otherwise. `post` does not wait for the answer.
 */
async function startQueue(
  settings: object,
  workers: number,
  change: Partial<LocalRouterOptions> = {},
) {
  const config = configOf({ router_queue_threshold: 0, ...settings });
  const pool = startPool(31, { config, ...change });
  const { clock, client, random, router } = pool;
  const started = Array.from({ length: workers }, (_, at) => pool.worker(String(at + 1)));
  await clock.runFor(100);
  const post = (prompt: Uint32Array, body: RequestBody = {}, envelope: object = {}): Posted => {
    const stream = { subject: `${client.inboxPrefix}.s`, format: "json", key: 0, acks: false };
    const rid = randomHex128(random);
    const dispatch = {
      envelope: {
        ...{ rid, attempt: firstAttempt, first: 0, phase: "aggregated", deadlineMs: 600_000 },
        ...{ stream, notify: [], avoid: [], decisions: [], ...envelope },
      },
      body,
      prompt: { type: "tokens", tokens: prompt },
    } as Dispatch;
    const posted: Posted = { rid, outcome: "waiting", receipt: undefined };
    const subject = generateSubject("local", router.inst);
    void client
      .request(subject, encodeDispatch(dispatch), { timeoutMs: 600_000 })
      .then(({ payload }) => {
        posted.receipt = decodeReceipt(payload);
        const { receipt } = posted;
        posted.outcome = receipt.type === "accepted" ? receipt.inst : receipt.code;
      });
    return posted;
  };
  const firstOutput = (rid: string): void => {
    const worker = started.find(({ taken }) => taken.some(({ envelope }) => envelope.rid === rid));
    const attempt = worker?.taken.find(({ envelope }) => envelope.rid === rid)?.envelope.attempt;
    worker?.tell({ type: "first_output", rid, attempt: attempt ?? 0, ttft_ms: 1 });
  };
  const cancel = ({ rid }: Posted): void => {
    const control = encodeControl({ type: "cancel", rid, attempt: firstAttempt });
    client.publish(controlSubject("local", router.inst), control);
  };
  return { ...pool, workers: started, post, firstOutput, cancel };
}

/** Lets requests through one at a time, by their first outputs; answers in which order. */
async function orderOf(pool: Awaited<ReturnType<typeof startQueue>>, posted: readonly Posted[]) {
  const seen = new Set<string>();
  for (let turn = 0; turn < posted.length; turn++) {
    const next = posted.find(({ rid, outcome }) => outcome === "1" && !seen.has(rid));
    if (!next) break;
    seen.add(next.rid);
    pool.firstOutput(next.rid);
    await pool.clock.runFor(10);
  }
  return [...seen].map((rid) => posted.findIndex((one) => one.rid === rid));
}

it("lets nothing wait unless a threshold is set", async () => {
  const { clock, post } = await startQueue({ router_queue_threshold: null }, 1);
  const posted = Array.from({ length: 20 }, (_, family) => post(promptOf(family, 4)));
  await clock.runFor(50);
  expect(posted.map(({ outcome }) => outcome)).toEqual(Array(20).fill("1"));
});

it("holds requests back until a first output makes room, saying meanwhile that they are queued", async () => {
  const pool = await startQueue({}, 1);
  const { clock, client, post, router, workers } = pool;
  const frames: string[] = [];
  client.subscribe(`${client.inboxPrefix}.s`, ({ payload }) => {
    frames.push(new TextDecoder().decode(payload));
  });
  const first = post(promptOf(1, 4));
  const second = post(promptOf(2, 4));
  await clock.runFor(2000);
  expect([first.outcome, second.outcome]).toEqual(["1", "waiting"]);
  expect(workers[0]?.taken).toHaveLength(1);
  expect(frames.filter((frame) => frame.includes("queued")).length).toBeGreaterThan(5);
  pool.firstOutput(first.rid);
  await clock.runFor(5);
  expect(second.outcome).toBe("1");
  expect(router.stats.bookings).toBe(2);
});

it("is woken by the end of a request, a new worker, and a lost worker's bookings", async () => {
  const { clock, post, worker, workers } = await startQueue({}, 1);
  const [first, second, third, fourth] = [1, 2, 3, 4].map((family) => post(promptOf(family, 4)));
  await clock.runFor(20);
  workers[0]?.finish(first?.rid ?? "");
  await clock.runFor(5);
  expect([second, third].map((one) => one?.outcome)).toEqual(["1", "waiting"]);
  const added = worker("2");
  await clock.runFor(50);
  expect([third, fourth].map((one) => one?.outcome)).toEqual(["2", "waiting"]);
  added.announcer.goodbye();
  workers[0]?.finish(second?.rid ?? "");
  await clock.runFor(50);
  expect(fourth?.outcome).toBe("1");
});

it("goes by the threshold in batches of the worker", async () => {
  const { clock, post } = await startQueue({ router_queue_threshold: 1 }, 1);
  const batch = 8192;
  const posted = [batch, 16, 16].map((tokens, family) => post(promptOf(family, tokens / 16)));
  await clock.runFor(20);
  expect(posted.map(({ outcome }) => outcome)).toEqual(["1", "1", "waiting"]);
});

it("lets nobody overtake, not even for a worker that is idle", async () => {
  const pool = await startQueue({}, 2);
  const { clock, post } = pool;
  const pinned = { routing: { backend_instance_id: "1" } };
  const first = post(promptOf(1, 4), pinned);
  const waits = post(promptOf(2, 4), pinned);
  await clock.runFor(20);
  const behind = post(promptOf(3, 4));
  await clock.runFor(20);
  expect([waits.outcome, behind.outcome]).toEqual(["waiting", "waiting"]);
  pool.firstOutput(first.rid);
  await clock.runFor(20);
  expect([waits.outcome, behind.outcome]).toEqual(["1", "2"]);
});

it("lets a higher priority pass at once when there is room for it", async () => {
  const pool = await startQueue({}, 2);
  const { clock, post } = pool;
  const pinned = { backend_instance_id: "1" };
  const first = post(promptOf(1, 4), { routing: pinned });
  const waits = post(promptOf(2, 4), { routing: pinned });
  await clock.runFor(20);
  const urgent = post(promptOf(3, 4), { routing: { strict_priority: 1 } });
  const stuck = post(promptOf(4, 4), { routing: { ...pinned, strict_priority: 1 } });
  await clock.runFor(20);
  expect([waits, urgent, stuck].map(({ outcome }) => outcome)).toEqual(["waiting", "2", "waiting"]);
  pool.firstOutput(first.rid);
  await clock.runFor(20);
  expect([waits, stuck].map(({ outcome }) => outcome)).toEqual(["waiting", "1"]);
  pool.firstOutput(stuck.rid);
  await clock.runFor(20);
  expect(waits.outcome).toBe("1");
});

it("answers at once who has no worker to wait for", async () => {
  const { clock, post } = await startQueue({}, 1);
  post(promptOf(1, 4));
  post(promptOf(2, 4));
  const lost = post(promptOf(3, 4), { routing: { backend_instance_id: "77" } });
  await clock.runFor(20);
  expect(lost.outcome).toBe("no_endpoints");
});

it("follows strict priority, then the order that it was given", async () => {
  const bodies: readonly RequestBody[] = [
    {},
    {},
    { routing: { priority_jump: 5 } },
    { routing: { strict_priority: 1 } },
    { routing: { strict_priority: 2 } },
  ];
  const blocks = [1, 30, 20, 30, 30];
  for (const queueOrder of ["fcfs", "lcfs", "wspt", "aged"] as const) {
    const pool = await startQueue({}, 1, { queueOrder });
    const posted = bodies.map((body, family) =>
      pool.post(promptOf(family, blocks[family] ?? 1), body),
    );
    await pool.clock.runFor(20);
    expect(await orderOf(pool, posted)).toEqual([0, 4, 3, 2, 1]);
  }
});

it("takes the policy of the config unless it is given an order", async () => {
  const arrivals = async (settings: object, change: Partial<LocalRouterOptions> = {}) => {
    const pool = await startQueue(settings, 1, change);
    const posted: Posted[] = [];
    for (const [family, blocks] of [1, 200, 100, 50].entries()) {
      posted.push(pool.post(promptOf(family, blocks)));
      await pool.clock.runFor(10);
    }
    return orderOf(pool, posted);
  };
  expect(await arrivals({})).toEqual([0, 1, 2, 3]);
  expect(await arrivals({ router_queue_policy: "lcfs" })).toEqual([0, 3, 2, 1]);
  expect(await arrivals({ router_queue_policy: "wspt" })).toEqual([0, 3, 2, 1]);
  expect(await arrivals({}, { queueOrder: "aged" })).toEqual([0, 3, 2, 1]);
});

it("orders by what is uncached at the best worker, not by the prompt's length", async () => {
  const pool = await startQueue({ router_queue_policy: "wspt" }, 1);
  pool.workers[0]?.cache(promptOf(7, 90));
  await pool.clock.runFor(50);
  const posted = [promptOf(1, 4), promptOf(2, 50), promptOf(7, 100)].map((prompt) =>
    pool.post(prompt),
  );
  await pool.clock.runFor(20);
  expect(await orderOf(pool, posted)).toEqual([0, 2, 1]);
});

it("matches afresh what leaves the queue", async () => {
  const pool = await startQueue({}, 2);
  const { clock, post, workers } = pool;
  const running = [1, 2].map((family) => post(promptOf(family, 2)));
  await clock.runFor(20);
  const waits = post(promptOf(3, 40));
  await clock.runFor(20);
  const cachedOn = workers.find(({ inst }) => inst === running[1]?.outcome);
  cachedOn?.cache(promptOf(3, 40));
  await clock.runFor(20);
  for (const { rid } of running) pool.firstOutput(rid);
  await clock.runFor(20);
  expect(waits.receipt).toMatchObject({
    inst: cachedOn?.inst,
    decisions: [{ overlap_blocks: 40 }],
  });
});

it("refuses who may not wait, and what would fill the queue beyond its depth", async () => {
  const depth = [{ missing_cache_tokens_floor: 0, max_queue_depth: 100 }];
  const pool = await startQueue({ router_queue_by_incoming_missing_isl: depth }, 1);
  const { clock, post, metrics } = pool;
  post(promptOf(1, 4));
  const impatient = post(promptOf(2, 4), { routing: { do_not_queue: true } });
  const fits = post(promptOf(3, 6));
  const tooMuch = post(promptOf(4, 1));
  await clock.runFor(20);
  expect(impatient.receipt).toMatchObject({ code: "do_not_queue" });
  expect(fits.outcome).toBe("waiting");
  expect(tooMuch.receipt).toMatchObject({
    code: "queue_rejected",
    details: { reason: "raw_isl_token_limit" },
  });
  const text = await metrics.text();
  for (const reason of ["do_not_queue", "raw_isl_token_limit"]) {
    expect(text).toMatch(
      new RegExp(`queue_backpressure_total\\{model="m".*reason="${reason}"\\} 1`),
    );
  }
});

it("lets a request that may not wait pass while there is room", async () => {
  const { clock, post } = await startQueue({}, 1);
  const posted = post(promptOf(1, 4), { routing: { do_not_queue: true } });
  await clock.runFor(20);
  expect(posted.outcome).toBe("1");
});

it("drops a cancelled request at once, and the next one moves up", async () => {
  const pool = await startQueue({}, 1);
  const { clock, post, router, workers } = pool;
  const pinned = { routing: { backend_instance_id: "2" } };
  pool.worker("2");
  await clock.runFor(100);
  const posted = [
    post(promptOf(1, 4), { routing: { backend_instance_id: "1" } }),
    post(promptOf(2, 4), pinned),
    post(promptOf(3, 4), pinned),
    post(promptOf(4, 4), { routing: { backend_instance_id: "1" } }),
  ];
  await clock.runFor(20);
  workers[0]?.finish(posted[0]?.rid ?? "");
  await clock.runFor(20);
  expect(posted.map(({ outcome }) => outcome)).toEqual(["1", "2", "waiting", "waiting"]);
  if (posted[2]) pool.cancel(posted[2]);
  await clock.runFor(5);
  expect(posted.map(({ outcome }) => outcome)).toEqual(["1", "2", "cancelled", "1"]);
  expect(router.stats).toMatchObject({ openRequests: 2, bookings: 2 });
  expect(workers[0]?.taken).toHaveLength(2);
});

it("ends a wait at the request's deadline", async () => {
  const { clock, post, router, metrics } = await startQueue({}, 1);
  post(promptOf(1, 4));
  const waits = post(promptOf(2, 4), {}, { deadlineMs: 5_000 });
  await clock.runFor(4_900);
  expect(waits.outcome).toBe("waiting");
  await clock.runFor(200);
  expect(waits.outcome).toBe("deadline_exceeded");
  expect(router.stats.openRequests).toBe(1);
  expect(await metrics.text()).toMatch(/queue_pending_requests\{.*\} 0/);
});

it("keeps the turn of a request whose worker refused it", async () => {
  const pool = await startQueue({}, 2);
  const { clock, post, workers } = pool;
  const running = [1, 2].map((family) => post(promptOf(family, 4)));
  await clock.runFor(20);
  const waiting = [3, 4].map((family) => post(promptOf(family, 4)));
  await clock.runFor(20);
  const [first] = running;
  const refusing = workers.find(({ inst }) => inst === first?.outcome);
  if (refusing) refusing.state.manner = "overloaded";
  pool.firstOutput(first?.rid ?? "");
  await clock.runFor(20);
  const other = running[1]?.outcome;
  expect(waiting.map(({ outcome }) => outcome)).toEqual([other, other]);
  expect(refusing?.taken).toHaveLength(3);
});

it("counts waiting requests, their tokens and their waits", async () => {
  const pool = await startQueue({}, 1);
  const { clock, post, metrics, workers, question } = pool;
  workers[0]?.cache(promptOf(2, 3));
  await clock.runFor(50);
  const first = post(promptOf(1, 4));
  post(promptOf(2, 4));
  await clock.runFor(1500);
  const labels = '{model="m",worker_type="decode",policy_class="default"}';
  const text = await metrics.text();
  expect(text).toContain(`dynamo_frontend_router_queue_pending_requests${labels} 1`);
  expect(text).toContain(`dynamo_frontend_router_queue_pending_isl_tokens${labels} 64`);
  expect(text).toContain(`dynamo_frontend_router_queue_pending_cached_tokens${labels} 48`);
  const loads = await question("route", { method: "potential_loads", token_ids: [1] });
  expect(loads).toMatchObject({ pending_count: 1, pending_isl_tokens: 64 });
  pool.firstOutput(first.rid);
  await clock.runFor(20);
  const after = await metrics.text();
  expect(after).toContain(`dynamo_frontend_router_queue_pending_requests${labels} 0`);
  expect(after).toContain(`dynamo_frontend_router_queue_wait_seconds_count${labels} 1`);
  const sum = /queue_wait_seconds_sum\{.*\} ([\d.]+)/.exec(after)?.[1];
  expect(Number(sum)).toBeCloseTo(1.5, 0);
});

it("asks the head again after a minute, were every sign of room lost", async () => {
  const pool = await startQueue({ router_queue_threshold: 0.001 }, 1);
  const { clock, post } = pool;
  const [worker] = pool.workers;
  const first = post(promptOf(1, 4));
  const waits = post(promptOf(2, 4));
  await clock.runFor(1000);
  // Larger batches make room, and nobody says so.
  if (worker) worker.state.card = { maxNumBatchedTokens: 1_000_000 };
  for (let secs = 1; secs < 58; secs++) {
    const requests = [{ rid: first.rid, attempt: firstAttempt }];
    worker?.tell({ type: "active", inst: "1", requests });
    await clock.runFor(1000);
  }
  expect(waits.outcome).toBe("waiting");
  await clock.runFor(3000);
  expect(waits.outcome).toBe("1");
});

it("ends every request once and leaves nothing behind, in any course of events", async () => {
  const pool = await startQueue({ router_track_output_blocks: true }, 3, { queueOrder: "aged" });
  const { clock, random, post, router, workers, metrics } = pool;
  const posted: Posted[] = [];
  const ended = new Set<string>();
  for (let step = 0; step < 400; step++) {
    const pick = randomInt(random, 0, 9);
    if (pick < 4) {
      const routing = {
        strict_priority: randomInt(random, 0, 1),
        priority_jump: randomInt(random, 0, 3),
        ...(pick === 0 ? { backend_instance_id: String(randomInt(random, 1, 3)) } : {}),
      };
      posted.push(post(promptOf(randomInt(random, 1, 9), randomInt(random, 1, 40)), { routing }));
    }
    const running = posted.filter((one) => /^\d$/.test(one.outcome) && !ended.has(one.rid));
    const one = running[randomInt(random, 0, Math.max(running.length - 1, 0))];
    if (pick >= 4 && pick < 7 && one) pool.firstOutput(one.rid);
    if (pick >= 7 && one) {
      ended.add(one.rid);
      workers[Number(one.outcome) - 1]?.finish(one.rid);
    }
    const waiting = posted.filter(({ outcome }) => outcome === "waiting");
    if (pick === 9 && waiting[0]) pool.cancel(waiting[0]);
    await clock.runFor(randomInt(random, 0, 5));
  }
  for (let round = 0; round < 1000 && ended.size < posted.length; round++) {
    for (const one of posted) {
      if (one.outcome === "waiting" || ended.has(one.rid)) continue;
      ended.add(one.rid);
      workers[Number(one.outcome) - 1]?.finish(one.rid);
    }
    await clock.runFor(5);
  }
  const outcomes = new Set(posted.map(({ outcome }) => outcome));
  expect([...outcomes].sort()).toEqual(["1", "2", "3", "cancelled"]);
  expect(router.stats).toMatchObject({ openRequests: 0, bookings: 0, bookedBlocks: 0 });
  expect(await metrics.text()).toMatch(/queue_pending_requests\{.*\} 0/);
});

it("books no caller's own dispatch while it would have to wait", async () => {
  const pool = await startQueue({}, 1);
  const { clock, post, question, router } = pool;
  const ask = () => question("route", { method: "new", request_id: "r", token_ids: [1, 2] });
  const first = post(promptOf(1, 4));
  await clock.runFor(20);
  expect(await ask()).toMatchObject({ error: { code: "do_not_queue" } });
  pool.firstOutput(first.rid);
  await clock.runFor(20);
  expect(await ask()).toMatchObject({ worker_id: "1" });
  const waits = post(promptOf(2, 4));
  await clock.runFor(20);
  expect(waits.outcome).toBe("waiting");
  await question("route", { method: "mark_prefill", request_id: "r" });
  await clock.runFor(20);
  expect(waits.outcome).toBe("1");
  expect(router.stats.bookings).toBe(3);
});
