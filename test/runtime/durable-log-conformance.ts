/** What every durable log promises, as tests: the one in process and JetStream both run them all. */
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { durableEventSubject } from "../../src/protocol/subjects.ts";
import {
  batchMessagesMax,
  type DurableConsumer,
  type DurableLog,
} from "../../src/runtime/durable-log.ts";
import { rejection } from "./bus-conformance.ts";

export interface DurableLogUnderTest {
  /** A log of component `component`; one component is one store. */
  connect(component: string): DurableLog;
  stop(): Promise<void>;
}

export const testNamespace = "test_ns";
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (payload: Uint8Array): string => new TextDecoder().decode(payload);

export function durableLogConformance(start: () => Promise<DurableLogUnderTest>): void {
  let store: DurableLogUnderTest;
  let log: DurableLog;
  let other: DurableLog;
  let component: string;
  let number = 0;
  const append = (payload: string): Promise<number> =>
    log.append(
      durableEventSubject({ namespace: testNamespace, component }, "1", 0),
      bytes(payload),
    );
  const read = async (consumer: DurableConsumer, acknowledge = true): Promise<string[]> => {
    const batch = await consumer.next(1);
    if (acknowledge) batch.acknowledge();
    return batch.messages.map(({ sequence, payload }) => `${sequence} ${text(payload)}`);
  };

  beforeAll(async () => {
    store = await start();
  });
  afterAll(() => store.stop());
  beforeEach(async () => {
    component = `c-${number++}`;
    log = store.connect(component);
    other = store.connect(component);
    await log.open();
    return async () => {
      await log.close();
      await other.close();
    };
  });

  it("answers the sequences of what it stored, and opens twice", async () => {
    await other.open();
    expect(await log.state()).toEqual({ firstSequence: 1, lastSequence: 0, messages: 0 });
    expect([await append("a"), await append("b")]).toEqual([1, 2]);
    expect(await other.state()).toEqual({ firstSequence: 1, lastSequence: 2, messages: 2 });
  });

  it("fails with not_found before it is opened", async () => {
    const fresh = store.connect("never-opened");
    const target = { namespace: testNamespace, component: "never-opened" };
    const appended = fresh.append(durableEventSubject(target, "1", 0), bytes("a"));
    expect(await rejection(appended)).toBe("not_found");
    expect(await rejection(fresh.state())).toBe("not_found");
    expect(await rejection(fresh.consumer("c", 1))).toBe("not_found");
    await fresh.close();
  });

  it("feeds a consumer in order from its first sequence, in bounded batches", async () => {
    for (let i = 1; i <= batchMessagesMax + 3; i++) await append(`m${i}`);
    const consumer = await log.consumer("router-1", 3);
    const first = await read(consumer);
    expect(first.length).toBe(batchMessagesMax);
    expect(first[0]).toBe("3 m3");
    expect(await read(consumer)).toEqual([`${batchMessagesMax + 3} m${batchMessagesMax + 3}`]);
    expect(await read(consumer)).toEqual([]);
    await append("late");
    expect(await read(consumer)).toEqual([`${batchMessagesMax + 4} late`]);
  });

  it("waits for a message", async () => {
    const consumer = await log.consumer("router-1", 1);
    const batch = consumer.next(5_000);
    await append("a");
    expect((await batch).messages.map(({ payload }) => text(payload))).toEqual(["a"]);
  });

  it("tells the newest acknowledged sequence of every consumer", async () => {
    for (const payload of ["a", "b", "c"]) await append(payload);
    const one = await log.consumer("router-1", 1);
    const two = await other.consumer("router-2", 2);
    expect(await read(one)).toEqual(["1 a", "2 b", "3 c"]);
    expect(await read(two, false)).toEqual(["2 b", "3 c"]);
    const acknowledged = async (): Promise<string[]> =>
      (await log.consumers()).map((view) => `${view.name} ${view.acknowledgedSequence}`).sort();
    await expect.poll(acknowledged).toEqual(["router-1 3", "router-2 1"]);
    await log.deleteConsumer("router-2");
    await log.deleteConsumer("router-2");
    expect(await acknowledged()).toEqual(["router-1 3"]);
    expect(await rejection(two.next(1))).toBe("not_found");
  });

  it("keeps a consumer's place for the next reader of its name", async () => {
    for (const payload of ["a", "b"]) await append(payload);
    const first = await log.consumer("router-1", 1);
    expect(await read(first)).toEqual(["1 a", "2 b"]);
    await append("c");
    expect(await read(await log.consumer("router-1", 1))).toEqual(["3 c"]);
  });

  it("purges up to a sequence; a consumer before it goes on behind it", async () => {
    for (const payload of ["a", "b", "c", "d"]) await append(payload);
    const consumer = await log.consumer("router-1", 1);
    await log.purgeThrough(3);
    expect(await log.state()).toEqual({ firstSequence: 4, lastSequence: 4, messages: 1 });
    expect(await read(consumer)).toEqual(["4 d"]);
    await log.purgeThrough(4);
    expect(await log.state()).toEqual({ firstSequence: 5, lastSequence: 4, messages: 0 });
    expect(await append("e")).toBe(5);
  });

  it("puts and gets objects whole, with their notes", async () => {
    expect(await log.getObject("radix-state")).toBeUndefined();
    expect(await log.noteOf("radix-state")).toBeUndefined();
    const large = new Uint8Array(700_000).map((_, i) => i * 7);
    await log.putObject("radix-state", [bytes("small")], "1");
    await log.putObject("radix-state", [large.subarray(0, 5), large.subarray(5)], "2");
    const found = await other.getObject("radix-state");
    expect(found?.note).toBe("2");
    expect(Buffer.compare(found?.bytes ?? new Uint8Array(0), large)).toBe(0);
    expect(await other.noteOf("radix-state")).toBe("2");
    await log.deleteObject("radix-state");
    await log.deleteObject("radix-state");
    expect(await other.getObject("radix-state")).toBeUndefined();
    expect(await other.noteOf("radix-state")).toBeUndefined();
  });

  it("resets messages and objects, and numbers on", async () => {
    await append("a");
    await log.putObject("radix-state", [bytes("x")], "1");
    await log.reset();
    expect(await log.getObject("radix-state")).toBeUndefined();
    expect(await log.state()).toEqual({ firstSequence: 2, lastSequence: 1, messages: 0 });
    expect(await append("b")).toBe(2);
  });

  it("gives a lock to one owner at a time", async () => {
    const held = await log.lock("purger", "1");
    expect(await held?.renew()).toBe(true);
    expect(await other.lock("purger", "2")).toBeUndefined();
    expect(await log.lock("purger", "1")).toBeUndefined();
    await held?.release();
    expect(await held?.renew()).toBe(false);
    const next = await other.lock("purger", "2");
    expect(next).toBeDefined();
    await held?.release();
    expect(await next?.renew()).toBe(true);
  });

  it("refuses calls after its close", async () => {
    await log.close();
    await log.close();
    expect(await rejection(log.state())).toBe("bus_closed");
  });
}
