/** The core that the benches measure: `TIERGRID_CORE` chooses it, as it does for the router. */
import { coreChoices, type FastCore, loadFastCore } from "../src/base/fast-core.ts";

/** `undefined` = TypeScript. */
export async function benchCore(): Promise<FastCore | undefined> {
  const given = process.env["TIERGRID_CORE"] ?? "auto";
  const choice = coreChoices.find((one) => one === given);
  if (choice === undefined) throw new Error(`TIERGRID_CORE: one of ${coreChoices}, got ${given}`);
  const { core, fallback } = await loadFastCore(choice);
  if (fallback !== undefined) console.error(`no fast core, TypeScript serves: ${fallback}`);
  return core;
}
