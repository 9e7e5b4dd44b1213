/** The load in a process of its own, as `runLoad` does it in this one. */
import { fork } from "node:child_process";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { LoadOptions } from "./demo-load.ts";
import type { LoadMessage, LoadPlan } from "./load-process.ts";

const source = new URL("./load-process.ts", import.meta.url);
/** In a build both files end in `.js`. */
const program = import.meta.url.endsWith(".ts")
  ? source
  : new URL(source.href.replace(/\.ts$/, ".js"));

/** Resolves when the last request has ended, or soon after `signal`. */
export async function forkLoad(options: Omit<LoadOptions, "clock">): Promise<void> {
  const { url, model, requests, seed, signal, onStart, onResult } = options;
  const plan: LoadPlan = { url, model, requests, seed };
  const child = fork(program, { serialization: "advanced" });
  const stop = (): void => {
    if (child.connected) child.send("stop");
  };
  let fault: TiergridError | undefined;
  child.on("message", (message: LoadMessage) => {
    if (message.type === "started") onStart();
    else if (message.type === "result") onResult(message.result);
    else fault = new TiergridError("internal_error", `load: ${message.message}`);
  });
  child.on("error", (thrown) => {
    fault ??= toTiergridError(thrown);
  });
  child.send(plan);
  if (signal.aborted) stop();
  signal.addEventListener("abort", stop, { once: true });
  const code = await new Promise<number | null>((resolve) => child.once("exit", resolve));
  signal.removeEventListener("abort", stop);
  if (fault) throw fault;
  if (code !== 0)
    throw new TiergridError("internal_error", `the load's process ended with ${code}`);
}
