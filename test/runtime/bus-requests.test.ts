import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import type { TiergridError } from "../../src/base/errors.ts";
import { mulberry32 } from "../../src/base/random.ts";
import type { Asker, AskOptions, BusMessage } from "../../src/runtime/bus.ts";
import {
  checkMessage,
  RequestBook,
  requestOver,
  requestsInFlightMax,
  subscriptionsMax,
} from "../../src/runtime/bus-requests.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { heldMessagesMax } from "../../src/runtime/memory-delivery.ts";
import { codeOf, rejection } from "./bus-conformance.ts";

const none = new Uint8Array(0);

const overBook =
  (book: RequestBook, send: (reply: string) => void = () => {}) =>
  ({ timeoutMs }: AskOptions, asker: Asker): (() => void) =>
    book.ask(timeoutMs, send, asker);

it("takes requests up to the maximum in flight and refuses one more", async () => {
  const clock = new ManualClock();
  const book = new RequestBook(clock, "_R.ob.x.rq");
  const asked = Array.from({ length: requestsInFlightMax }, () =>
    rejection(requestOver(overBook(book), { timeoutMs: 1000 })),
  );
  expect(book.size).toBe(requestsInFlightMax);
  const more = requestOver(overBook(book), { timeoutMs: 1000 });
  expect(await rejection(more)).toBe("bus_overloaded");
  book.failAll("disconnected", "gone");
  expect(new Set(await Promise.all(asked))).toEqual(new Set(["disconnected"]));
  expect(book.size).toBe(0);
  expect(clock.pending()).toBe(0);
});

it("ends a request once: a late reply and a late abort do nothing", async () => {
  const clock = new ManualClock();
  const book = new RequestBook(clock, "_R.ob.x.rq");
  const abort = new AbortController();
  let subject = "";
  const send = (reply: string): void => {
    subject = reply;
  };
  const options = { timeoutMs: 1000, signal: abort.signal };
  const asked = requestOver(overBook(book, send), options);
  const reply = { subject, payload: none, reply: undefined, headers: undefined };
  book.settle(reply);
  book.settle(reply);
  abort.abort();
  clock.advanceTo(2000);
  expect(await asked).toBe(reply);
  expect(clock.pending()).toBe(0);
});

it("tells an asker nothing who gave the request up, and waits as long as he wants", () => {
  const clock = new ManualClock();
  const book = new RequestBook(clock, "_R.ob.x.rq");
  const heard: unknown[] = [];
  const asker = {
    onReply: (reply: BusMessage) => heard.push(reply),
    onError: (error: TiergridError) => heard.push(error.code),
  };
  const giveUp = book.ask(undefined, () => {}, asker);
  clock.advanceTo(1e9);
  expect([book.size, clock.pending(), heard]).toEqual([1, 0, []]);
  giveUp();
  giveUp();
  book.failAll("disconnected", "gone");
  expect([book.size, heard]).toEqual([0, []]);
  book.ask(undefined, () => {}, asker);
  book.failAll("disconnected", "gone");
  expect([book.size, heard]).toEqual([0, ["disconnected"]]);
});

it("leaves nothing behind when sending throws", async () => {
  const clock = new ManualClock();
  const book = new RequestBook(clock, "_R.ob.x.rq");
  const send = (): never => {
    throw new Error("refused");
  };
  const failing = requestOver(overBook(book, send), { timeoutMs: 1000 });
  await expect(failing).rejects.toThrow("refused");
  expect([book.size, clock.pending()]).toEqual([0, 0]);
});

it("takes headers up to 4,096 bytes on the wire", () => {
  const check = (bytes: number) => () =>
    checkMessage("tg.a", none, { headers: new Map([["A", "v".repeat(bytes - 17)]]) }, 1e6);
  expect(codeOf(check(4096))).toBeUndefined();
  expect(codeOf(check(4097))).toBe("invalid_request");
});

it("takes subscriptions up to the maximum of a connection", () => {
  const network = createMemoryNetwork({ clock: new ManualClock(), random: mulberry32(1) });
  const bus = network.connect({ role: "ob" });
  // One is the connection's own, for replies.
  for (let index = 1; index < subscriptionsMax; index++) bus.subscribe(`tg.a.${index}`, () => {});
  expect(codeOf(() => bus.subscribe("tg.a.more", () => {}))).toBe("bus_overloaded");
});

it("holds messages for a frozen connection up to the maximum and loses later ones", () => {
  const clock = new ManualClock();
  const network = createMemoryNetwork({ clock, random: mulberry32(1) });
  const [near, far] = [network.connect({ role: "fe" }), network.connect({ role: "wk" })];
  let heard = 0;
  far.subscribe("tg.a", () => void heard++);
  network.faults.freeze(far);
  for (let index = 0; index <= heldMessagesMax; index++) near.publish("tg.a", none);
  clock.advanceTo(0);
  network.faults.thaw(far);
  clock.advanceTo(0);
  expect(heard).toBe(heldMessagesMax);
  expect(network.faults.counts).toMatchObject({ held: heldMessagesMax, lost: 1 });
});
