/**
 * The program of the load's own process, so that clients and fleet do not wait for each other's turn
 * of the event loop. Gets a plan, says `started` and each result; any further message, or the end of
 * its parent, stops it.
 */
import { realClock } from "../base/clock.ts";
import { toTiergridError } from "../base/errors.ts";
import type { CompletionResult } from "./completion-client.ts";
import { type LoadOptions, runLoad } from "./demo-load.ts";

export type LoadPlan = Pick<LoadOptions, "url" | "model" | "requests" | "seed">;

export type LoadMessage =
  | { readonly type: "started" }
  | { readonly type: "result"; readonly result: CompletionResult }
  | { readonly type: "fault"; readonly message: string };

const stop = new AbortController();
const say = (message: LoadMessage): void => {
  // A parent that went away needs no answer; `disconnect` stops the load.
  if (process.connected) process.send?.(message, undefined, undefined, () => {});
};

// Ctrl-C reaches the whole process group; the parent says when to stop.
process.on("SIGINT", () => {});
process.once("disconnect", () => stop.abort());
process.once("message", (plan: LoadPlan) => {
  process.once("message", () => stop.abort());
  void run(plan);
});

async function run(plan: LoadPlan): Promise<void> {
  try {
    await runLoad({
      ...plan,
      clock: realClock,
      signal: stop.signal,
      onStart: () => say({ type: "started" }),
      onResult: (result) => say({ type: "result", result }),
    });
  } catch (thrown) {
    say({ type: "fault", message: toTiergridError(thrown).message });
  }
  process.removeAllListeners("SIGINT");
  if (process.connected) process.disconnect();
}
