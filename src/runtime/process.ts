/**
 * The life of a process: the first SIGTERM or SIGINT drains it and exits 0, the second ends it with
 * 1 at once. A rejection that nobody caught is logged and counted and the process goes on; after an
 * exception that nobody caught its state is unknown, so it exits with 1.
 */
import { setFlagsFromString } from "node:v8";
import { toTiergridError } from "../base/errors.ts";
import type { Log } from "./log.ts";

/** The part of `process` that is used, so that tests pass an event emitter. */
export interface ProcessHost {
  on(event: string, listener: (cause: unknown) => void): unknown;
  off(event: string, listener: (cause: unknown) => void): unknown;
  exit(code: number): void;
}

export interface ShellOptions {
  readonly host: ProcessHost;
  readonly log: Log;
  /** Ends the work under way; called at most once. */
  readonly drain: (signal: string) => Promise<void>;
  /** Called for every error that nobody caught, e.g. to count it. */
  readonly onUnhandled?: () => void;
  /** Called just before the exit, e.g. to flush the log. */
  readonly onExit?: () => void;
}

/** The heap may grow to four times what lives, V8's own most, before it is marked. */
const heapGrowthPercent = 300;

/**
 * Makes marking the heap rarer. V8 counts the memory of received messages as heap, so prompts that pass
 * through a small heap would have all of it marked about every second.
 */
export function letHeapGrow(): void {
  setFlagsFromString(`--heap-growing-percent=${heapGrowthPercent}`);
}

/** Installs the handlers; returns the function that removes them. */
export function runUntilSignal(options: ShellOptions): () => void {
  const { host, log } = options;
  let draining = false;
  const exit = (code: number): void => {
    options.onExit?.();
    host.exit(code);
  };
  const onSignal = (signal: string): void => {
    if (draining) {
      log.warn("second signal, exiting at once", { signal });
      exit(1);
      return;
    }
    draining = true;
    log.info("draining", { signal });
    drained(options, signal).then(exit, () => exit(1));
  };
  const onRejection = (cause: unknown): void => {
    options.onUnhandled?.();
    log.error("unhandled rejection", causeFields(cause));
  };
  const onException = (cause: unknown): void => {
    options.onUnhandled?.();
    log.error("uncaught exception, exiting", causeFields(cause));
    exit(1);
  };
  const listeners: [string, (cause: unknown) => void][] = [
    ["SIGTERM", () => onSignal("SIGTERM")],
    ["SIGINT", () => onSignal("SIGINT")],
    ["unhandledRejection", onRejection],
    ["uncaughtException", onException],
  ];
  for (const [event, listener] of listeners) host.on(event, listener);
  return () => {
    for (const [event, listener] of listeners) host.off(event, listener);
  };
}

/** Drains; answers the exit code. */
async function drained({ drain, log }: ShellOptions, signal: string): Promise<number> {
  try {
    await drain(signal);
    log.info("drained");
    return 0;
  } catch (cause) {
    log.error("drain failed", causeFields(cause));
    return 1;
  }
}

function causeFields(cause: unknown): { error_type: string; error: string; stack: string } {
  const { code, message } = toTiergridError(cause);
  const stack = cause instanceof Error ? (cause.stack ?? "") : "";
  return { error_type: code, error: message, stack };
}
