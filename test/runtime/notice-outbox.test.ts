import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { decodeNotices, noticesPerMessageMax } from "../../src/protocol/notices.ts";
import { NoticeOutbox } from "../../src/runtime/notice-outbox.ts";

function outboxWithLog() {
  const clock = new ManualClock();
  const messages: string[] = [];
  const outbox = new NoticeOutbox(clock, (subject, payload) => {
    const notices = decodeNotices(payload);
    messages.push(`${subject} ${notices.map((told) => "rid" in told && told.rid).join(",")}`);
  });
  const add = (rid: string, ...subjects: string[]): void =>
    outbox.add(subjects, { type: "first_output", rid, attempt: 1, ttft_ms: 1 });
  return { clock, messages, outbox, add };
}

it("sends the notices of one step as one message to each dispatcher, in order", () => {
  const { clock, messages, outbox, add } = outboxWithLog();
  add("a", "near", "far");
  add("b", "near");
  add("c");
  expect(messages).toEqual([]);
  outbox.flush();
  expect(messages).toEqual(["near a,b", "far a"]);
  clock.advanceTo(10);
  expect(messages).toHaveLength(2);
});

it("sends what nobody flushed when the loop turn ends", () => {
  const { clock, messages, add } = outboxWithLog();
  add("a", "near");
  clock.advanceTo(0);
  expect(messages).toEqual(["near a"]);
});

it("sends a full message at once and begins another", () => {
  const { messages, outbox, add } = outboxWithLog();
  for (let n = 0; n < noticesPerMessageMax; n++) add("a", "near");
  expect(messages).toHaveLength(1);
  add("b", "near");
  outbox.flush();
  expect(messages[1]).toBe("near b");
});

it("reads as many notices as a message may hold, and refuses one more", () => {
  const notice = { type: "queued", rid: "a", attempt: 1, position: 0 };
  const encoded = (count: number) => Buffer.from(JSON.stringify(Array(count).fill(notice)));
  expect(decodeNotices(encoded(noticesPerMessageMax))).toHaveLength(noticesPerMessageMax);
  expect(() => decodeNotices(encoded(noticesPerMessageMax + 1))).toThrow(/at most 256/);
  expect(decodeNotices(Buffer.from(JSON.stringify(notice)))).toEqual([notice]);
  expect(() => decodeNotices(Buffer.from('[{"type":"queued"}]'))).toThrow(/rid and attempt/);
  expect(() => decodeNotices(Buffer.from("[7]"))).toThrow(/JSON object/);
});
