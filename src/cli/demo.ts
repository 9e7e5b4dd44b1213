import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import type { demoFlags } from "./flags-demo.ts";

/** Runs the command until it ends by itself or by a signal; returns the exit code. */
export async function run(_given: Given<typeof demoFlags>): Promise<number> {
  throw new TiergridError("not_implemented", "this command is not part of this build");
}
