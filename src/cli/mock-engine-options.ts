/** From the options of `tiergrid worker mock` to the mock engine's own option names. */
import type { FlagValue, Given } from "../base/flags.ts";
import { readableMockTokenRange } from "../protocol/mock-tokens.ts";
import { mockEngineFlags, type workerMockFlags } from "./flags-worker.ts";

/** The shipped mock model can only write its own tokens. */
const readable = {
  token_id_min: readableMockTokenRange.idMin,
  token_id_count: readableMockTokenRange.idCount,
};

/**
 * The engine's options by their snake_case names: what the file gives, then what environment and
 * flags give. The role is the worker's.
 */
export function mockEngineOptionsOf(
  given: Pick<Given<typeof workerMockFlags>, "options" | "environment" | "flags">,
  file: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  const typed: Record<string, FlagValue> = {};
  for (const source of [given.environment, given.flags]) {
    for (const [name, value] of Object.entries(source)) {
      if (Object.hasOwn(mockEngineFlags, name)) typed[snakeCase(name)] = value;
    }
  }
  return { ...readable, ...file, worker_type: given.options.role, ...typed };
}

function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
