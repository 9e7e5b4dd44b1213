import { EventEmitter } from "node:events";
import { expect, it } from "vitest";
import { type Log, silentLog } from "../../src/runtime/log.ts";
import { runUntilSignal } from "../../src/runtime/process.ts";

class Host extends EventEmitter {
  readonly codes: number[] = [];
  exit(code: number): void {
    this.codes.push(code);
  }
}

function shell(drain: () => Promise<void>) {
  const host = new Host();
  const seen: string[] = [];
  const log: Log = { ...silentLog, error: (message) => void seen.push(message) };
  const onUnhandled = () => void seen.push("counted");
  const onExit = () => void seen.push("flushed");
  const remove = runUntilSignal({ host, log, drain, onUnhandled, onExit });
  return { host, seen, remove };
}

it("drains once on the first signal and exits 0", async () => {
  let drains = 0;
  const { host, seen } = shell(async () => {
    drains += 1;
  });
  host.emit("SIGTERM");
  await new Promise((resolve) => setImmediate(resolve));
  expect(drains).toBe(1);
  expect(host.codes).toEqual([0]);
  expect(seen).toEqual(["flushed"]);
});

it("exits 1 at once on the second signal, even while draining hangs", () => {
  let drains = 0;
  const { host } = shell(() => {
    drains += 1;
    return new Promise(() => {});
  });
  host.emit("SIGINT");
  expect(host.codes).toEqual([]);
  host.emit("SIGTERM");
  expect(host.codes).toEqual([1]);
  expect(drains).toBe(1);
});

it("exits 1 when draining fails, also when it throws", async () => {
  const { host, seen } = shell(() => {
    throw new Error("no");
  });
  host.emit("SIGTERM");
  await new Promise((resolve) => setImmediate(resolve));
  expect(host.codes).toEqual([1]);
  expect(seen).toEqual(["drain failed", "flushed"]);
});

it("logs and counts an unhandled rejection and goes on", () => {
  const { host, seen } = shell(async () => {});
  host.emit("unhandledRejection", "odd");
  expect(seen).toEqual(["counted", "unhandled rejection"]);
  expect(host.codes).toEqual([]);
});

it("exits 1 after an uncaught exception, and leaves no listener when removed", () => {
  const { host, seen, remove } = shell(async () => {});
  host.emit("uncaughtException", new Error("x"));
  expect(seen).toEqual(["counted", "uncaught exception, exiting", "flushed"]);
  expect(host.codes).toEqual([1]);
  remove();
  expect(host.eventNames()).toEqual([]);
});
