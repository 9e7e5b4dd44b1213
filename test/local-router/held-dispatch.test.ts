import { expect, it } from "vitest";
import { randomHex128, randomInt } from "../../src/base/random.ts";
import { heldRecheckMs } from "../../src/local-router/held-dispatch.ts";
import { decodeReceipt } from "../../src/protocol/receipts.ts";
import { encodeDispatch } from "../../src/protocol/request-frame.ts";
import type { Dispatch } from "../../src/protocol/requests.ts";
import { encodeControl } from "../../src/protocol/stream-control.ts";
import { controlSubject, generateSubject } from "../../src/protocol/subjects.ts";
import { blockSize, configOf, promptOf, startPool } from "./pool-rig.ts";

const firstAttempt = 1 << 20;
/** A pass of 1,000 tokens takes 110 ms, and context costs nothing. */
const card = {
  role: "prefill",
  maxNumBatchedTokens: 1000,
  perfModel: {
    kind: "coefficients",
    prefill: { pass_ms: 10, ms_per_token: 0.1, ms_per_token_context: 0 },
    decode: { step_ms: 1, ms_per_active_kv_token: 0, ms_per_sequence: 0 },
  },
} as const;
/** Of 62 blocks. */
const promptMs = 10 + 62 * blockSize * 0.1;
const laxMs = 60_000;

interface Posted {
  readonly rid: string;
  /** The worker's instance, a refusal's code, or `waiting`. */
  outcome: string;
}

async function startHolding(workerCount: number, settings: object = {}) {
  const config = configOf({ router_cost_mode: "latency", ...settings });
  const pool = startPool(41, { config, role: "prefill" });
  const { clock, client, random, router } = pool;
  const start = (inst: string) => pool.worker(inst, { card });
  const workers = Array.from({ length: workerCount }, (_, at) => start(String(at + 1)));
  await clock.runFor(100);
  let family = 0;
  const post = (ttftTarget?: number, blocks = 62, deadlineMs = 600_000): Posted => {
    const stream = { subject: `${client.inboxPrefix}.s`, format: "json", key: 0, acks: false };
    const rid = randomHex128(random);
    const dispatch = {
      envelope: {
        ...{ rid, attempt: firstAttempt, first: 0, phase: "prefill", deadlineMs },
        ...{ stream, notify: [], avoid: [], decisions: [] },
      },
      body: ttftTarget === undefined ? {} : { router: { ttft_target: ttftTarget, best_fit: true } },
      prompt: { type: "tokens", tokens: promptOf(++family, blocks) },
    } as Dispatch;
    const posted: Posted = { rid, outcome: "waiting" };
    const subject = generateSubject("local", router.inst);
    void client
      .request(subject, encodeDispatch(dispatch), { timeoutMs: 600_000 })
      .then(({ payload }) => {
        const receipt = decodeReceipt(payload);
        posted.outcome = receipt.type === "accepted" ? receipt.inst : receipt.code;
      });
    return posted;
  };
  const workerOf = ({ outcome }: Posted) => workers.find(({ inst }) => inst === outcome);
  const firstOutput = (one: Posted): void => {
    const worker = workerOf(one);
    const attempt = worker?.taken.find(({ envelope }) => envelope.rid === one.rid)?.envelope
      .attempt;
    worker?.tell({ type: "first_output", rid: one.rid, attempt: attempt ?? 0, ttft_ms: 1 });
  };
  const cancel = ({ rid }: Posted): void => {
    const control = encodeControl({ type: "cancel", rid, attempt: firstAttempt });
    client.publish(controlSubject("local", router.inst), control);
  };
  const finish = (one: Posted): void => workerOf(one)?.finish(one.rid);
  return { ...pool, workers, start, post, firstOutput, cancel, finish };
}

type Holding = Awaited<ReturnType<typeof startHolding>>;

const outcomes = (posted: readonly Posted[]): string[] => posted.map(({ outcome }) => outcome);

async function expectNothingLeft({ router, metrics, clock }: Holding): Promise<void> {
  await clock.runFor(100);
  const nothing = { openRequests: 0, bookings: 0, bookedBlocks: 0, latencyRequests: 0 };
  expect(router.stats).toMatchObject(nothing);
  expect(await metrics.text()).toMatch(/tiergrid_held_requests(\{.*\})? 0/);
}

it("sends a tight prompt before a lax one that came earlier, each shortly before its turn", async () => {
  const pool = await startHolding(1);
  const { clock, post } = pool;
  const posted = [post(laxMs), post(laxMs), post(2_000)];
  await clock.runFor(promptMs - 30);
  expect(outcomes(posted)).toEqual(["1", "waiting", "waiting"]);
  await clock.runFor(20);
  expect(outcomes(posted)).toEqual(["1", "waiting", "1"]);
  await clock.runFor(promptMs);
  expect(outcomes(posted)).toEqual(["1", "1", "1"]);
  for (const one of posted) pool.finish(one);
  await expectNothingLeft(pool);
});

it("sends the next one at once when a first token comes early", async () => {
  const pool = await startHolding(1);
  const posted = [pool.post(laxMs), pool.post(laxMs)];
  await pool.clock.runFor(20);
  expect(outcomes(posted)).toEqual(["1", "waiting"]);
  for (const one of posted) pool.firstOutput(one);
  await pool.clock.runFor(5);
  expect(outcomes(posted)).toEqual(["1", "1"]);
});

it("holds nothing behind a worker whose first token is overdue, and goes on when it comes", async () => {
  const pool = await startHolding(1);
  const posted = [pool.post(laxMs), pool.post(laxMs, 310), pool.post(laxMs)];
  await pool.clock.runFor(8_000);
  // The second, of five passes, was sent before the first was overdue.
  expect(outcomes(posted)).toEqual(["1", "1", "waiting"]);
  for (const one of posted.slice(0, 2)) pool.firstOutput(one);
  await pool.clock.runFor(5);
  expect(outcomes(posted)).toEqual(["1", "1", "1"]);
});

it("holds nothing back without a target, or when the config says so", async () => {
  for (const [settings, target] of [
    [{}, undefined],
    [{ router_fit_holds: false }, laxMs],
    [{ router_fit_keeps_promises: false }, laxMs],
  ] as const) {
    const pool = await startHolding(1, settings);
    const posted = [pool.post(target), pool.post(target), pool.post(target)];
    await pool.clock.runFor(20);
    expect(outcomes(posted)).toEqual(["1", "1", "1"]);
    await pool.router.close();
  }
});

it("forgets a held prompt that is cancelled or whose deadline passes", async () => {
  const pool = await startHolding(1);
  const { clock, post, workers } = pool;
  const first = post(laxMs);
  const posted = [post(laxMs), post(laxMs, 62, 50), post(laxMs)];
  await clock.runFor(20);
  for (const one of posted.slice(0, 1)) pool.cancel(one);
  await clock.runFor(60);
  expect(outcomes(posted)).toEqual(["cancelled", "deadline_exceeded", "waiting"]);
  await clock.runFor(promptMs);
  expect(outcomes(posted)[2]).toBe("1");
  expect(workers[0]?.taken.map(({ envelope }) => envelope.rid)).toEqual([
    first.rid,
    posted[2]?.rid,
  ]);
  for (const one of [first, ...posted]) pool.finish(one);
  await expectNothingLeft(pool);
});

it("chooses anew when the worker of a held prompt leaves", async () => {
  const pool = await startHolding(1);
  const { clock, post, workers } = pool;
  const posted = [post(laxMs), post(laxMs), post(laxMs)];
  await clock.runFor(20);
  workers.push(pool.start("2"));
  await clock.runFor(20);
  workers[0]?.announcer.goodbye();
  await clock.runFor(heldRecheckMs);
  expect(outcomes(posted)).toEqual(["1", "2", "2"]);
  for (const one of posted) pool.finish(one);
  await expectNothingLeft(pool);
});

it("lets the next one go when the attempt at the worker fails", async () => {
  const pool = await startHolding(1);
  const { clock, post, workers } = pool;
  const posted = [post(laxMs), post(laxMs)];
  await clock.runFor(20);
  const [worker] = workers;
  if (worker) worker.state.manner = "overloaded";
  await clock.runFor(promptMs);
  expect(outcomes(posted)).toEqual(["1", "overloaded"]);
  for (const one of posted) pool.finish(one);
  await expectNothingLeft(pool);
});

it("sends all that it holds when it drains", async () => {
  const pool = await startHolding(2);
  const { clock, post, router, settled } = pool;
  const posted = Array.from({ length: 8 }, () => post(laxMs));
  await clock.runFor(20);
  expect(outcomes(posted)).toContain("waiting");
  await settled(router.drain(100));
  expect(outcomes(posted)).not.toContain("waiting");
  for (const one of posted) pool.finish(one);
  await expectNothingLeft(pool);
});

it("quotes what the wait adds, and the plan of a quote is the plan of the request", async () => {
  const pool = await startHolding(1);
  const { clock, post, question } = pool;
  post(laxMs, 310);
  post(laxMs, 310);
  await clock.runFor(1);
  const quoted = async (ttft_target_ms: number) => {
    const asked = { token_ids: [...promptOf(99, 10)], quote: { ttft_target_ms } };
    const answer: { quote: { predicted_ttft_ms: number } } = await question(
      "best_worker_id",
      asked,
    );
    return answer.quote.predicted_ttft_ms;
  };
  const passMs = 110;
  // Behind the prompt that runs, before the one that is held; after both it has time for.
  const lastMs = 10 + 96;
  const restMs = 4 * passMs + lastMs + 10 + 16;
  expect(await quoted(20_000)).toBeGreaterThan(restMs - 10);
  expect(await quoted(20_000)).toBeLessThan(restMs + 1);
  expect(await quoted(laxMs + 1_000)).toBeGreaterThan(2 * restMs - 100);
});

it("ends every prompt once and leaves nothing behind, in any course of events", async () => {
  const pool = await startHolding(3);
  const { clock, random, post, workers } = pool;
  const posted: Posted[] = [];
  const ended = new Set<Posted>();
  const isRunning = (one: Posted): boolean => /^\d$/.test(one.outcome) && !ended.has(one);
  for (let step = 0; step < 400; step++) {
    const pick = randomInt(random, 0, 9);
    const target = [undefined, 150, 600, laxMs][randomInt(random, 0, 3)];
    if (pick < 4) posted.push(post(target, randomInt(random, 1, 200)));
    const running = posted.filter(isRunning);
    const one = running[randomInt(random, 0, Math.max(running.length - 1, 0))];
    if (pick >= 4 && pick < 7 && one) pool.firstOutput(one);
    if (pick >= 7 && one) {
      ended.add(one);
      pool.finish(one);
    }
    const waiting = posted.filter(({ outcome }) => outcome === "waiting");
    if (pick === 9 && waiting[0]) pool.cancel(waiting[0]);
    if (step === 250) workers[2]?.announcer.goodbye();
    await clock.runFor(randomInt(random, 0, 60));
  }
  for (let round = 0; round < 2000 && ended.size < posted.length; round++) {
    for (const one of posted) {
      if (one.outcome === "waiting" || ended.has(one)) continue;
      ended.add(one);
      pool.finish(one);
    }
    await clock.runFor(50);
  }
  expect(new Set(outcomes(posted))).toEqual(new Set(["1", "2", "3", "cancelled"]));
  await expectNothingLeft(pool);
});

/** What a prompt with a target would have to wait for there. */
async function ttftMsOf({ question }: Holding, workerId: string): Promise<number> {
  const router = { ttft_target: 400, best_fit: true };
  const body = { token_ids: [...promptOf(99, 62)], router };
  const { candidates }: Explained = await question("explain", body);
  return (
    candidates.find(({ worker_id }) => worker_id === workerId)?.terms.predicted_ttft_ms ??
    Number.NaN
  );
}

interface Explained {
  readonly candidates: readonly {
    readonly worker_id: string;
    readonly terms: { readonly predicted_ttft_ms: number; readonly held_ms: number };
  }[];
}

it("gives a stalled worker no tight prompt until its first token has come", async () => {
  for (const settings of [{}, { router_fit_holds: false }]) {
    const pool = await startHolding(2, settings);
    const { clock, post } = pool;
    const [first, second] = [post(laxMs), post(laxMs)];
    await clock.runFor(promptMs);
    const [stalled, quick] = first.outcome === "1" ? [first, second] : [second, first];
    expect(outcomes([stalled, quick])).toEqual(["1", "2"]);
    pool.firstOutput(quick);
    await clock.runFor(700);
    expect(await ttftMsOf(pool, "1")).toBeGreaterThan(700);
    for (let round = 0; round < 5; round++) {
      const one = post(400);
      await clock.runFor(promptMs);
      expect(one.outcome).toBe("2");
      pool.firstOutput(one);
      await clock.runFor(1);
    }
    pool.firstOutput(stalled);
    await clock.runFor(1);
    expect(await ttftMsOf(pool, "1")).toBeLessThan(700);
    await pool.router.close();
  }
});
