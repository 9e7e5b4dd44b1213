import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import type { globalFlags } from "./flags-global.ts";

/** Runs the command until it ends by itself or by a signal; returns the exit code. */
export async function run(_given: Given<typeof globalFlags>): Promise<number> {
  throw new TiergridError("not_implemented", "this command is not part of this build");
}
