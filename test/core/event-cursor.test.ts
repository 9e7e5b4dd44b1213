import fc from "fast-check";
import { expect, it } from "vitest";
import { mulberry32, randomInt } from "../../src/base/random.ts";
import {
  bufferMax,
  type CursorAction,
  EventCursor,
  type RecoveryResult,
} from "../../src/core/event-cursor.ts";
import type { KvEvent } from "../../src/protocol/kv-events.ts";
import vectors from "../golden/kv-recovery.json" with { type: "json" };

function eventOf(eventId: number, cleared = false): KvEvent {
  if (cleared) return { type: "cleared", eventId };
  return { type: "removed", eventId, tier: "device", hashes: new Uint32Array(0) };
}

function textOf(action: CursorAction): string {
  switch (action.type) {
    case "apply":
      return `apply:${action.event.eventId}`;
    case "replace":
      return `replace:${action.events.length}`;
    case "query":
      return action.start === undefined ? "query:full" : `query:${action.start}-`;
    case "clear":
    case "buffer":
    case "drop":
      return `${action.type}:${action.id}`;
    case "reset":
    case "ignore_result":
      return action.type;
  }
}

interface ScriptResult {
  kind: "tree_dump" | "events" | "too_new" | "failed";
  blocks?: number;
  last_event_id?: number | null;
  ids?: { id: number; cleared?: boolean }[];
  newest_available?: number;
}
interface ScriptStep {
  discovered?: boolean;
  live?: number;
  cleared?: boolean;
  source?: string;
  result?: ScriptResult;
  expected_actions: string[];
  expected_last_applied: number | null;
  expected_recovery_in_flight: boolean;
  expected_degraded?: boolean;
}

function resultOf(result: ScriptResult): RecoveryResult {
  switch (result.kind) {
    case "failed":
      return { type: "failed" };
    case "events":
      return { type: "events", events: result.ids!.map(({ id, cleared }) => eventOf(id, cleared)) };
    case "too_new": {
      const newestAvailable = result.newest_available!;
      return { type: "too_new", requestedStart: 0, requestedEnd: null, newestAvailable };
    }
    case "tree_dump": {
      const events = Array.from({ length: result.blocks! }, (_, id) => eventOf(id));
      return { type: "tree_dump", events, lastEventId: result.last_event_id ?? null };
    }
  }
}

function run(cursor: EventCursor, step: ScriptStep): CursorAction[] {
  if (step.discovered) return cursor.onDiscovered();
  if (step.result) return cursor.onResult(resultOf(step.result));
  return cursor.onEvent(eventOf(step.live!, step.cleared), step.source);
}

it.each(vectors.scripts as unknown as { name: string; steps: ScriptStep[] }[])(
  "$name",
  ({ steps }) => {
    const cursor = new EventCursor();
    for (const step of steps) {
      expect(run(cursor, step).map(textOf)).toEqual(step.expected_actions);
      expect(cursor.last).toBe(step.expected_last_applied);
      expect(cursor.recovering).toBe(step.expected_recovery_in_flight);
      expect(cursor.degraded).toBe(step.expected_degraded ?? false);
    }
  },
);

it("keeps as many events as the buffer holds, and asks for the one beyond", () => {
  const cursor = new EventCursor();
  cursor.onEvent(eventOf(0));
  for (let id = 1; id < bufferMax; id++) cursor.onEvent(eventOf(id));
  expect(cursor.buffered).toBe(bufferMax);
  expect(cursor.onEvent(eventOf(bufferMax)).map(textOf)).toEqual([`drop:${bufferMax}`]);
  const dump = cursor.onResult({ type: "tree_dump", events: [], lastEventId: 0 });
  expect(dump.map(textOf).at(-1)).toBe(`query:${bufferMax}-`);
  expect(cursor.last).toBe(bufferMax - 1);
});

it("a background restore ends the degraded state", () => {
  const cursor = new EventCursor();
  cursor.onDiscovered();
  cursor.onResult({ type: "failed" });
  expect(cursor.onRestoreDue().map(textOf)).toEqual(["query:full"]);
  cursor.onResult({ type: "tree_dump", events: [], lastEventId: 3 });
  expect(cursor.degraded).toBe(false);
  expect(cursor.onRestoreDue()).toEqual([]);
});

it("a dump that does not reach the gap does not ask for ever", () => {
  const cursor = new EventCursor();
  cursor.onDiscovered();
  cursor.onResult({ type: "tree_dump", events: [], lastEventId: 5 });
  cursor.onEvent(eventOf(8));
  const again = cursor.onResult({ type: "tree_dump", events: [], lastEventId: 5 });
  expect(again.map(textOf)).toEqual(["replace:0", "apply:8"]);
  expect(cursor.degraded).toBe(true);
});

/** A worker that answers from its whole history; the link drops, repeats and swaps events. */
it("ends with every event applied once and in order, whatever the link does", () => {
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const random = mulberry32(seed);
      const cursor = new EventCursor(8);
      let applied: number[] = [];
      let emitted = -1;
      let asked: { start: number | undefined; generation: number } | undefined;
      const take = (actions: readonly CursorAction[]): void => {
        for (const action of actions) {
          if (action.type === "apply") applied.push(action.event.eventId);
          if (action.type === "replace") applied = action.events.map((event) => event.eventId);
          if (action.type === "query") asked = action;
        }
      };
      const answer = (): void => {
        if (!asked) return;
        const { start, generation } = asked;
        asked = undefined;
        const all = Array.from({ length: emitted + 1 }, (_, id) => eventOf(id));
        const result: RecoveryResult =
          start === undefined || random() < 0.2
            ? { type: "tree_dump", events: all, lastEventId: emitted < 0 ? null : emitted }
            : { type: "events", events: all.slice(start) };
        take(cursor.onResult(result, generation));
      };
      take(cursor.onDiscovered());
      for (let step = 0; step < 120; step++) {
        if (random() < 0.7) emitted++;
        const id = randomInt(random, Math.max(0, emitted - 3), Math.max(0, emitted));
        if (emitted >= 0 && random() < 0.8) take(cursor.onEvent(eventOf(id)));
        if (random() < 0.3) answer();
      }
      emitted++;
      take(cursor.onEvent(eventOf(emitted)));
      while (asked) answer();
      expect(applied).toEqual(Array.from({ length: emitted + 1 }, (_, each) => each));
      expect(cursor.buffered).toBe(0);
    }),
    { numRuns: 300 },
  );
});
