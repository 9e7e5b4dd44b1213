import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import type { workerMockFlags } from "./flags-worker.ts";

/** Runs the command until it ends by itself or by a signal; returns the exit code. */
export async function run(_given: Given<typeof workerMockFlags>): Promise<number> {
  throw new TiergridError("not_implemented", "this command is not part of this build");
}
