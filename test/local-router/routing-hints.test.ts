import { expect, it } from "vitest";
import type { Receipt } from "../../src/protocol/requests.ts";
import { promptOf, startPool } from "./pool-rig.ts";

const instOf = (receipt: Receipt): string => {
  if (receipt.type === "refused") throw new Error(`${receipt.code}: ${receipt.message}`);
  return receipt.inst;
};

it("gives a request only to workers that have every taint it requires", async () => {
  const { send, worker, clock } = startPool(1);
  worker("1");
  worker("2", { card: { taints: ["h100", "lora"] } });
  await clock.runFor(100);
  for (let round = 0; round < 5; round++) {
    const routing = { routing_constraints: { required_taints: ["lora", "h100"] } } as object;
    expect(instOf(await send(promptOf(round, 2), { routing }).receipt)).toBe("2");
  }
  const routing = { routing_constraints: { required_taints: ["b200"] } } as object;
  expect(await send(promptOf(9, 2), { routing }).receipt).toMatchObject({ code: "no_endpoints" });
});

it("pulls a request towards workers with the taints it prefers, and pushes with negative weights", async () => {
  const { send, worker, clock } = startPool(2);
  worker("1");
  worker("2", { card: { taints: ["spot"] } });
  await clock.runFor(100);
  const pull = { routing_constraints: { preferred_taints: { spot: 1, absent: 5 } } } as object;
  expect(instOf(await send(promptOf(1, 4), { routing: pull }).receipt)).toBe("2");
  const push = { routing_constraints: { preferred_taints: { spot: -1 } } } as object;
  expect(instOf(await send(promptOf(2, 1), { routing: push }).receipt)).toBe("1");
});

it.each([
  ["routing.routing_constraints", { routing_constraints: ["spot"] }],
  [
    "routing.routing_constraints.required_taints",
    { routing_constraints: { required_taints: [1] } },
  ],
  [
    "routing.routing_constraints.preferred_taints",
    { routing_constraints: { preferred_taints: { spot: "much" } } },
  ],
])("refuses a wrong %s and names it", async (field, routing) => {
  const { send, worker, clock } = startPool(3);
  worker("1");
  await clock.runFor(100);
  const receipt = await send(promptOf(1, 2), { routing: routing as object }).receipt;
  expect(receipt).toMatchObject({ code: "invalid_request", details: { field } });
});

it("hashes the expanded prompt of mm_routing_info, and runs the one that was sent", async () => {
  const { send, worker, clock } = startPool(4);
  const worker1 = worker("1");
  worker("2").cache(promptOf(7, 20));
  await clock.runFor(100);
  const mm_routing_info = { routing_token_ids: Array.from(promptOf(7, 20)) };
  const { rid, receipt } = send(promptOf(1, 2), { mm_routing_info });
  expect(await receipt).toMatchObject({
    inst: "2",
    decisions: [{ worker_id: "2", overlap_blocks: 20, isl_blocks: 20 }],
  });
  expect(rid).not.toBe("");
  expect(worker1.taken).toEqual([]);
});

it("tells prompts with equal tokens apart by the objects in their blocks", async () => {
  const { question, worker, clock } = startPool(5);
  worker("1").cache(promptOf(7, 4));
  await clock.runFor(100);
  const ask = (block_mm_infos: unknown) =>
    question("get_overlap_scores", { token_ids: Array.from(promptOf(7, 4)), block_mm_infos });
  expect(await ask(null)).toMatchObject({ num_blocks: 4, workers: [{ device_blocks: 4 }] });
  const third = [
    null,
    null,
    { mm_objects: [{ mm_hash: "14643705804678351452", offsets: [[0, 4]] }] },
  ];
  expect(await ask(third)).toMatchObject({ workers: [{ device_blocks: 2 }] });
  expect(await ask([{ mm_objects: [{ mm_hash: -1 }] }])).toMatchObject({
    error: { code: "invalid_request" },
  });
});
