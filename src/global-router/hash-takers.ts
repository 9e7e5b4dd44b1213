/** Which local routers take a prompt as hashes, as their heartbeats say. */
import type { Prompt } from "../protocol/requests.ts";
import type { InstanceCard } from "../runtime/instance-card.ts";
import type { LivePool } from "./pool-health.ts";

/** Block size of the hashes that every one of these routers takes; undefined when they differ. */
export function commonHashes(routers: readonly InstanceCard[]): number | undefined {
  const blockSize = routers[0]?.promptHashes;
  return routers.every(({ promptHashes }) => promptHashes === blockSize) ? blockSize : undefined;
}

/** False for hashes that this router, which may have joined after they were made, does not take. */
export function takesPrompt(
  { routers }: Pick<LivePool, "routers">,
  inst: string,
  prompt: Prompt | undefined,
): boolean {
  if (prompt?.type !== "hashes") return true;
  const router = routers.find(({ card }) => card.inst === inst);
  return router?.card.promptHashes === prompt.blockSize;
}
