import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { decodeNotices } from "../../src/protocol/notice-frame.ts";
import { noticesPerMessageMax } from "../../src/protocol/notices.ts";
import { laterMs, NoticeOutbox } from "../../src/runtime/notice-outbox.ts";

function outboxWithLog() {
  const clock = new ManualClock();
  const messages: string[] = [];
  const outbox = new NoticeOutbox(clock, (subject, payload) => {
    const notices = decodeNotices(payload);
    messages.push(`${subject} ${notices.map((told) => "rid" in told && told.rid[0]).join(",")}`);
  });
  const noticeOf = (digit: string) =>
    ({ type: "first_output", rid: digit.repeat(32), attempt: 1, ttft_ms: 1 }) as const;
  const tell = (digit: string, ...notify: string[]): void => outbox.tell(notify, noticeOf(digit));
  const tellLater = (digit: string, ...notify: string[]): void =>
    outbox.tellLater(notify, noticeOf(digit));
  return { clock, messages, outbox, tell, tellLater };
}

it("sends the notices of one step as one message to the nearest dispatcher, in order", () => {
  const { clock, messages, outbox, tell } = outboxWithLog();
  tell("a", "near");
  tell("b", "near");
  tell("c");
  expect(messages).toEqual([]);
  outbox.flush();
  expect(messages).toEqual(["near a,b"]);
  clock.advanceTo(1_000);
  expect(messages).toHaveLength(1);
  expect(clock.pending()).toBe(0);
});

it("gathers for 250 ms what the others are told", () => {
  const { clock, messages, outbox, tell, tellLater } = outboxWithLog();
  tell("a", "near", "far");
  outbox.flush();
  clock.advanceTo(60);
  tellLater("b", "far", "farther");
  clock.advanceTo(laterMs - 1);
  expect(messages).toEqual(["near a"]);
  clock.advanceTo(laterMs);
  expect(messages).toEqual(["near a", "far a,b", "farther b"]);
});

it("sends what waits along with what is due", () => {
  const { clock, messages, outbox, tell, tellLater } = outboxWithLog();
  tellLater("a", "near");
  tell("b", "near");
  outbox.flush();
  clock.advanceTo(laterMs);
  expect(messages).toEqual(["near a,b"]);
});

it("sends what nobody flushed when the loop turn ends, and everything when it is closed", () => {
  const { clock, messages, outbox, tell, tellLater } = outboxWithLog();
  tell("a", "near");
  clock.advanceTo(0);
  expect(messages).toEqual(["near a"]);
  tell("b", "near", "far");
  tellLater("c", "farther");
  outbox.flushAll();
  expect(messages.slice(1)).toEqual(["near b", "far b", "farther c"]);
  expect(clock.pending()).toBe(0);
});

it("sends a full message at once and begins another", () => {
  const { messages, outbox, tell, tellLater } = outboxWithLog();
  for (let n = 0; n < noticesPerMessageMax; n++) {
    tell("a", "near");
    tellLater("a", "far");
  }
  expect(messages).toHaveLength(2);
  tell("b", "near", "far");
  outbox.flushAll();
  expect(messages.slice(2)).toEqual(["near b", "far b"]);
});

it("sends what waits alone when one message cannot hold both", () => {
  const { messages, outbox, tell, tellLater } = outboxWithLog();
  for (let n = 1; n < noticesPerMessageMax; n++) tellLater("a", "near");
  tell("b", "near");
  tell("c", "near");
  outbox.flushAll();
  expect(messages.map((message) => message.split(",").length)).toEqual([2, 255]);
});
