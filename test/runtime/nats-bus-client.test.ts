import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import { lookForSilence } from "../../src/runtime/nats-bus-client.ts";

/** A server that says something at `talksMs` and answers pings while `answers`. */
function rig(talksMs: readonly number[]) {
  const clock = new ManualClock();
  const server = { heard: false, answers: true };
  const pingsMs: number[] = [];
  const staleMs: number[] = [];
  for (const atMs of talksMs) {
    clock.after(atMs, () => {
      server.heard = true;
    });
  }
  const stop = lookForSilence({
    clock,
    takeHeard: () => {
      const { heard } = server;
      server.heard = false;
      return heard;
    },
    ping: () => {
      pingsMs.push(clock.nowMs());
      server.heard = server.answers;
    },
    stale: () => {
      staleMs.push(clock.nowMs());
      stop();
    },
  });
  return { clock, server, pingsMs, staleMs, stop };
}

it("pings a server only when nothing came for half a second", () => {
  const { clock, pingsMs, staleMs } = rig([100, 600, 1_100, 2_400]);
  clock.advanceTo(2_600);
  expect(pingsMs).toEqual([2_000]);
  clock.advanceTo(60_000);
  expect(staleMs).toEqual([]);
});

it("finds a server that hangs 1 to 1.5 s after its last word, half a second after a ping", () => {
  for (const lastMs of [510, 750, 990]) {
    const { clock, server, pingsMs, staleMs } = rig([lastMs]);
    server.answers = false;
    // The first look, before anything was said, pings too.
    clock.advanceTo(60_000);
    expect(pingsMs).toEqual([500, 1_500]);
    expect(staleMs).toEqual([2_000]);
    expect(clock.pending()).toBe(0);
  }
});
