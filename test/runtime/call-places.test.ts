import { expect, it } from "vitest";
import { decodeControl } from "../../src/protocol/stream-control.ts";
import type { AcceptedFrame } from "../../src/protocol/stream-frames.ts";
import { CallPlaces } from "../../src/runtime/call-places.ts";
import type { OwnerShared } from "../../src/runtime/owner-request.ts";

const rid = "0123456789abcdef0123456789abcdef";

function places(): { places: CallPlaces; sent: string[] } {
  const sent: string[] = [];
  const send = (subject: string, payload: Uint8Array): void => {
    const control = decodeControl(payload);
    sent.push(`${subject} ${control.type} ${control.type === "cancel" ? control.attempt : ""}`);
  };
  const made = new CallPlaces({ send } as OwnerShared, rid);
  made.reset("router");
  return { places: made, sent };
}

const accepted = (attempt: number, inst: string): AcceptedFrame => ({
  ...{ type: "accepted", attempt, inst, control: inst, epoch: "1" },
  ...{ notify: [], workerId: inst, dpRank: 0, decisions: [] },
});

it("leaves an attempt whose worker is unknown to the router that made a newer one", () => {
  const { places: known, sent } = places();
  known.announced(accepted(8, "w8"));
  known.cancel(7);
  expect(sent).toEqual([]);
  known.cancel(8);
  expect(sent).toEqual(["w8 cancel 8"]);
});

it("stops the whole call at every worker that is known, else at the router", () => {
  const { places: unknown, sent: toRouter } = places();
  unknown.cancelAll(7);
  expect(toRouter).toEqual(["router cancel 7"]);
  const { places: known, sent } = places();
  known.promised(7, { inst: "w7", control: "w7" });
  known.announced(accepted(8, "w8"));
  known.cancelAll(8);
  expect(sent).toEqual(["w7 cancel 7", "w8 cancel 8"]);
});
