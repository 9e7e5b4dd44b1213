import { expect, it } from "vitest";
import {
  DecisionRing,
  decisionsKeptMax,
  type PoolDecision,
} from "../../src/global-router/pool-decision.ts";

const decision = (id: string) => ({ id }) as PoolDecision;

it("keeps the last decisions and forgets the oldest first", () => {
  const ring = new DecisionRing();
  for (let count = 0; count < decisionsKeptMax; count++) ring.add(decision(`d${count}`));
  expect(ring.size).toBe(decisionsKeptMax);
  expect(ring.get("d0")?.id).toBe("d0");
  ring.add(decision("next"));
  expect(ring.size).toBe(decisionsKeptMax);
  expect(ring.get("d0")).toBeUndefined();
  expect(ring.get("d1")?.id).toBe("d1");
  expect(ring.get("next")?.id).toBe("next");
});
