import fc from "fast-check";
import { expect, it } from "vitest";
import type { PoolConfig } from "../../src/config/pool-config.ts";
import {
  type GridHost,
  GridVersions,
  gridEventsMax,
  isOnTrial,
  versionsMax,
} from "../../src/global-router/grid-versions.ts";
import type { ActiveConfig } from "../../src/global-router/pool-health.ts";

/** Configs are told apart by their version only. */
const configOf = (version: string): PoolConfig => ({ version }) as unknown as PoolConfig;

function rig() {
  let live: string[] = [];
  const host: GridHost = {
    wallMs: () => 1_700_000_000_000,
    activate: (config, beside) => {
      live = [config.version, ...(beside ? [beside.config.version] : [])];
      return { config, roles: new Map() };
    },
    keepOnly: (active: ActiveConfig) => {
      live = [active.config.version];
    },
  };
  const first = { config: configOf("A"), warnings: 0, by: "start" } as const;
  const versions = new GridVersions(host, first);
  const offer = (version: string, percent = 0, by: "file" | "http" = "file") =>
    versions.offer({ config: configOf(version), warnings: 0, by, percent });
  return { versions, offer, live: () => live, inForce: () => versions.inForce.kept.version };
}

/** FNV-1a and Murmur3's finaliser in plain arithmetic, as an oracle. */
function shareOf(rid: string): number {
  const mask = 0xffffffffn;
  let hash = 0x811c9dc5n;
  for (const char of rid) hash = ((hash ^ BigInt(char.charCodeAt(0))) * 0x01000193n) & mask;
  hash = ((hash ^ (hash >> 16n)) * 0x85ebca6bn) & mask;
  hash = ((hash ^ (hash >> 13n)) * 0xc2b2ae35n) & mask;
  hash ^= hash >> 16n;
  return (Number(hash) / 2 ** 32) * 100;
}

const rids = (count: number): string[] =>
  Array.from({ length: count }, (_, at) => at.toString(16).padStart(32, "0"));

it("puts on trial exactly the requests whose hash is below the percentage", () => {
  const anyRid = fc.string({ maxLength: 64, unit: "grapheme-ascii" });
  fc.assert(
    fc.property(anyRid, fc.double({ min: 0, max: 100, noNaN: true }), (rid, percent) => {
      expect(isOnTrial(rid, percent)).toBe(shareOf(rid) < percent);
    }),
    { seed: 3, numRuns: 1000 },
  );
  for (const rid of rids(1000)) {
    expect(isOnTrial(rid, 0)).toBe(false);
    expect(isOnTrial(rid, 100)).toBe(true);
  }
});

it("gives a trial its share of requests, and keeps those it had when the share rises", () => {
  const all = rids(20_000);
  const { versions, offer } = rig();
  expect(offer("B", 5)).toBe("applied");
  const onTrial = (): string[] =>
    all.filter((rid) => versions.activeFor(rid).config.version === "B");
  const five = onTrial();
  expect(five.length / all.length).toBeCloseTo(0.05, 2);
  expect(five).toEqual(all.filter((rid) => shareOf(rid) < 5));
  versions.canary(20, "http");
  const twenty = new Set(onTrial());
  expect(twenty.size / all.length).toBeCloseTo(0.2, 1);
  expect(five.every((rid) => twenty.has(rid))).toBe(true);
});

it("swaps at once without a percentage, and keeps the pools of both while one is on trial", () => {
  const { versions, offer, live, inForce } = rig();
  offer("B");
  expect([inForce(), live()]).toEqual(["B", ["B"]]);
  offer("C", 10);
  expect([inForce(), live()]).toEqual(["B", ["C", "B"]]);
  offer("D", 10);
  expect([inForce(), live()]).toEqual(["B", ["D", "B"]]);
  const { active, cells } = versions.trial!;
  versions.promote("http");
  expect([inForce(), live()]).toEqual(["D", ["D"]]);
  expect(versions.inForce.active).toBe(active);
  expect(versions.inForce.cells).toBe(cells);
  expect(versions.trial).toBeUndefined();
  expect(() => versions.promote("http")).toThrow("no version is on trial");
});

it("goes back step by step, to a named version, and out of a trial", () => {
  const { versions, offer, inForce, live } = rig();
  for (const version of ["B", "C", "D"]) offer(version);
  versions.rollback("http");
  expect(inForce()).toBe("C");
  versions.rollback("http");
  expect(inForce()).toBe("B");
  versions.rollback("http", "D");
  expect(inForce()).toBe("D");
  versions.rollback("http");
  expect(inForce()).toBe("B");
  versions.rollback("http");
  expect(inForce()).toBe("A");
  expect(() => versions.rollback("http")).toThrow("no version before");
  expect(() => versions.rollback("http", "A")).toThrow("in force");
  expect(() => versions.rollback("http", "none")).toThrow("not kept");
  versions.canary(50, "http", "C");
  versions.rollback("http");
  expect([inForce(), live(), versions.trial]).toEqual(["A", ["A"], undefined]);
  expect(() => versions.canary(50, "http", "A")).toThrow("in force");
  expect(() => versions.canary(50, "http")).toThrow("no version is on trial");
});

it("lets a rollback last until the file says something else, or an operator asks for the file", () => {
  const { versions, offer, inForce } = rig();
  offer("B");
  versions.rollback("http");
  expect([offer("B"), inForce()]).toEqual(["unchanged", "A"]);
  expect([offer("B", 0, "http"), inForce()]).toEqual(["applied", "B"]);
  offer("C", 10);
  expect([offer("C", 10), versions.trial?.percent]).toEqual(["unchanged", 10]);
  expect([offer("B"), versions.trial]).toEqual(["applied", undefined]);
  expect([offer("B"), inForce()]).toEqual(["unchanged", "B"]);
});

it("keeps 32 versions, of those that get requests every one, and 128 events", () => {
  const { versions, offer, inForce } = rig();
  offer("T", 10);
  const trial = versions.trial;
  for (let at = 0; at < versionsMax - 2; at++) offer(`V${at}`);
  expect(trial?.kept.version).toBe("T");
  expect(versions.versions).toHaveLength(versionsMax);
  expect(versions.find("A")).toBeDefined();
  offer("W", 10);
  expect(versions.versions).toHaveLength(versionsMax);
  expect(versions.find("A")).toBeUndefined();
  const before = inForce();
  for (let at = 0; at < 200; at++) versions.canary(at % 100, "http");
  for (let at = 0; at < versionsMax; at++) versions.canary(1, "bus", at % 2 ? "W" : "V5");
  expect(inForce()).toBe(before);
  expect(versions.events).toHaveLength(gridEventsMax);
  for (let at = 0; at < versionsMax; at++) versions.rejected("file");
  expect(versions.events.filter(({ action }) => action === "rejected")).toHaveLength(1);
});

it("keeps the tally of a version that comes back", () => {
  const { versions, offer } = rig();
  versions.find("A")!.tally.requests = 7;
  offer("B");
  offer("A");
  expect(versions.inForce.kept.tally.requests).toBe(7);
  expect(versions.events.map(({ action, version, by }) => `${action} ${version} ${by}`)).toEqual([
    "applied A start",
    "applied B file",
    "applied A file",
  ]);
});
