import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { mulberry32, randomHex128 } from "../../src/base/random.ts";
import { attemptNumber, type Envelope } from "../../src/protocol/requests.ts";
import { readBundle } from "../../src/protocol/stream-bundle.ts";
import type { StreamFrame } from "../../src/protocol/stream-frames.ts";
import { createMemoryNetwork } from "../../src/runtime/memory-bus.ts";
import { createStreamSender, type SenderStream } from "../../src/runtime/stream-sender.ts";

function start() {
  const clock = new ManualClock();
  const random = mulberry32(1);
  const network = createMemoryNetwork({ clock, random });
  const [worker, owner] = [network.connect({ role: "wk" }), network.connect({ role: "fe" })];
  const messages: string[][] = [];
  const subject = `${owner.inboxPrefix}.s`;
  owner.subscribe(subject, ({ payload }) => {
    const types: string[] = [];
    readBundle(payload, (_key: number, frame: StreamFrame) => types.push(frame.type));
    messages.push(types);
  });
  const sender = createStreamSender({
    bus: worker,
    clock,
    inst: "w1",
    epoch: "1",
    onCancel: () => {},
  });
  const open = (key: number): SenderStream => {
    const envelope: Envelope = {
      rid: randomHex128(random),
      attempt: attemptNumber({ call: 1, global: 0, local: 0 }),
      first: 0,
      phase: "aggregated",
      deadlineMs: 60_000,
      stream: { subject, format: "bundle", key, acks: true },
      notify: [],
      avoid: [],
      decisions: [],
    };
    return sender.open(envelope, { workerId: "w1", dpRank: 0 }) as SenderStream;
  };
  return { clock, sender, open, messages };
}

it("sends what is accepted in a turn when the turn ends, in one message", async () => {
  const { clock, sender, open, messages } = start();
  open(1);
  open(2);
  await clock.runFor(0);
  expect(messages).toEqual([["accepted", "accepted"]]);
  sender.close();
  expect(clock.pending()).toBe(0);
});

it("sends an acceptance with the step that ends before its turn does", async () => {
  const { clock, sender, open, messages } = start();
  const running = open(1);
  await clock.runFor(1);
  messages.length = 0;
  open(2);
  running.push({ tokenIds: [7] });
  sender.flush();
  await clock.runFor(1);
  expect(messages.map((types) => types.sort())).toEqual([["accepted", "tokens"]]);
  sender.close();
});

it("sends a step that nobody ends after 2 ms", async () => {
  const { clock, sender, open, messages } = start();
  const running = open(1);
  await clock.runFor(10);
  messages.length = 0;
  running.push({ tokenIds: [7] });
  await clock.runFor(1);
  expect(messages).toEqual([]);
  await clock.runFor(1);
  expect(messages).toEqual([["tokens"]]);
  sender.close();
});
