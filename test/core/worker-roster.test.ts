import { expect, it } from "vitest";
import type { WorkerConstraints, WorkerProfile } from "../../src/core/worker-roster.ts";
import { WorkerRoster } from "../../src/core/worker-roster.ts";
import golden from "../golden/selection.json" with { type: "json" };

const idle = {
  prefillTokens: new Float64Array(256),
  activeBlocks: new Float64Array(256),
  activeRequests: new Int32Array(256),
};

function profile(workerId: string, taints: readonly string[] = []): WorkerProfile {
  return { workerId, taints: new Set(taints), totalKvBlocks: 100 };
}

function select(roster: WorkerRoster, constraints: WorkerConstraints): readonly string[] | string {
  const candidates = new Int32Array(256);
  const found = roster.eligible(constraints, idle, candidates);
  if (typeof found === "string") return found;
  const slots = [...candidates.subarray(0, found)];
  return slots.map((slot) => `${roster.workerAt(slot)!.workerId}:${roster.dpRankAt(slot)}`);
}

interface GoldenWorker {
  readonly worker_id: string;
  readonly dp_start?: number;
  readonly dp_size?: number;
  readonly taints?: readonly string[];
  readonly busy_ranks?: readonly number[];
}

interface GoldenEligibility {
  readonly name: string;
  readonly workers: readonly GoldenWorker[];
  readonly allowed_worker_ids?: readonly string[];
  readonly pinned?: { readonly worker_id: string; readonly dp_rank?: number };
  readonly dp_rank?: number;
  readonly required_taints?: readonly string[];
  readonly expected: { readonly candidates?: readonly string[]; readonly error?: string };
}

for (const scenario of golden.eligibility as readonly GoldenEligibility[]) {
  it(`filters as the vectors say: ${scenario.name}`, () => {
    const roster = new WorkerRoster({
      activeDecodeBlocks: null,
      activePrefillTokens: 10,
      activePrefillTokensFrac: null,
    });
    let slot = 0;
    for (const { worker_id, dp_start = 0, dp_size = 1, ...worker } of scenario.workers) {
      for (let rank = dp_start; rank < dp_start + dp_size; rank++, slot++) {
        roster.set(slot, profile(worker_id, worker.taints), rank);
        if (worker.busy_ranks?.includes(rank)) roster.report(slot, { activePrefillTokens: 11 });
      }
    }
    const { allowed_worker_ids: allowed, pinned } = scenario;
    const selected = select(roster, {
      allowedWorkerIds: allowed && new Set(allowed),
      pinnedWorkerId: pinned?.worker_id,
      dpRank: pinned?.dp_rank ?? scenario.dp_rank,
      requiredTaints: scenario.required_taints,
    });
    expect(selected).toEqual(scenario.expected.candidates ?? scenario.expected.error);
  });
}

interface GoldenRank {
  readonly active_prefill_tokens?: number;
  readonly active_decode_blocks?: number;
  readonly kv_used_blocks?: number;
  readonly total_kv_blocks?: number;
  readonly max_num_batched_tokens?: number;
}

for (const scenario of golden.busy) {
  it(`judges busy as the vectors say: ${scenario.name}`, () => {
    const thresholds = scenario.thresholds as Readonly<Record<string, number>>;
    const roster = new WorkerRoster({
      activeDecodeBlocks: thresholds["active_decode_blocks_threshold"] ?? null,
      activePrefillTokens: thresholds["active_prefill_tokens_threshold"] ?? null,
      activePrefillTokensFrac: thresholds["active_prefill_tokens_threshold_frac"] ?? null,
    });
    const ranks = scenario.ranks as Readonly<Record<string, GoldenRank>>;
    for (let rank = 0; rank < scenario.dp_size; rank++) {
      const report = ranks[String(rank)];
      const worker: WorkerProfile = {
        workerId: "1",
        taints: new Set(),
        totalKvBlocks: report?.total_kv_blocks,
        maxNumBatchedTokens: report?.max_num_batched_tokens,
      };
      roster.set(rank, worker, rank);
      roster.report(rank, {
        kvUsedBlocks: report?.kv_used_blocks,
        activeDecodeBlocks: report?.active_decode_blocks,
        activePrefillTokens: report?.active_prefill_tokens,
      });
      expect(roster.isBusy(rank, idle)).toBe(scenario.expected_rank_busy[rank]);
    }
    const pinned = select(roster, { pinnedWorkerId: "1" });
    expect(pinned === "pinned_worker_overloaded").toBe(scenario.expected_worker_busy);
  });
}

it("orders candidates by the numeric worker id, then the rank", () => {
  const roster = new WorkerRoster();
  const holders = [
    ["10", 0],
    ["9", 1],
    ["18446744073709551615", 0],
    ["9", 0],
    ["2", 5],
  ] as const;
  for (const [slot, [workerId, rank]] of holders.entries()) {
    roster.set(slot * 40, profile(workerId), rank);
  }
  const all = ["2:5", "9:0", "9:1", "10:0", "18446744073709551615:0"];
  expect(select(roster, {})).toEqual(all);
  roster.remove(40);
  roster.remove(41);
  expect(select(roster, {})).toEqual(["2:5", "9:0", "10:0", "18446744073709551615:0"]);
});

it("applies changed thresholds at once and forgets reports with the holder", () => {
  const roster = new WorkerRoster();
  roster.set(0, profile("1"), 0);
  roster.report(0, { kvUsedBlocks: 60 });
  roster.report(0, { activePrefillTokens: 5 });
  expect(roster.isBusy(0, idle)).toBe(false);
  const off = { activePrefillTokens: null, activePrefillTokensFrac: null };
  roster.setThresholds({ ...off, activeDecodeBlocks: 0.5 });
  expect(roster.isBusy(0, idle)).toBe(true);
  roster.set(0, profile("1"), 0);
  expect(roster.isBusy(0, idle)).toBe(false);
  expect(roster.count).toBe(1);
});

it("judges what is booked without waiting for a report", () => {
  const off = { activeDecodeBlocks: null, activePrefillTokensFrac: null };
  const roster = new WorkerRoster({ ...off, activePrefillTokens: 10 });
  roster.set(0, profile("1"), 0);
  expect(roster.isBusy(0, { ...idle, prefillTokens: Float64Array.of(11) })).toBe(true);
});
