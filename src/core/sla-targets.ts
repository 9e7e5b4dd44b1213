/**
 * Latency targets of a request, from whoever names them. Each target is resolved on its own; the
 * first source that holds a value wins, every source present is checked, all faults are told:
 *
 *   1  body nvext.router   ┐
 *   2  body extra_args     ├─ `readSlaTargets` (frontend) ──▶ request.router on the bus
 *   3  headers             ┘                                        │
 *   4  command line default  ── `resolveSlaTargets` (router) ◀──────┘
 *   5  axis midpoint         ── `selectPool`, when the target is null
 *
 * 0 and negative targets are targets; null and absent are not. All values are milliseconds.
 */
import type { SlaHints } from "../protocol/requests.ts";
import type { SlaTarget } from "./sla-grid.ts";

export interface SlaFault {
  /** `nvext.router.ttft_target`, `extra_args`, or a header's name. */
  readonly where: string;
  readonly reason: "wrong-type" | "not-finite" | "malformed" | "not-positive";
  readonly message: string;
}

/** `router` of a request on the bus, every field written. */
export type WireTargets = Required<Omit<SlaHints, "best_fit">>;

export interface SlaDefaults {
  readonly ttftTargetMs: number | null;
  readonly itlTargetMs: number | null;
}

export type TargetsRead =
  | { readonly ok: true; readonly router: WireTargets }
  | { readonly ok: false; readonly faults: readonly SlaFault[] };

export type TargetsResolved =
  | { readonly ok: true; readonly ttft: SlaTarget; readonly itl: SlaTarget }
  | { readonly ok: false; readonly faults: readonly SlaFault[] };

/** Frontend part: targets of a JSON body and its headers, as they travel on the bus. */
export function readSlaTargets(
  body: unknown,
  header: (name: string) => string | undefined,
): TargetsRead {
  const faults: SlaFault[] = [];
  const nvext = readObject(body, "nvext", "nvext", faults);
  const router = readObject(nvext, "router", "nvext.router", faults);
  const extraArgs = readObject(body, "extra_args", "extra_args", faults);
  const resolve = (kind: TargetKind): SlaTarget => {
    const { field } = kind;
    const candidates: SlaTarget[] = [
      { source: "nvext.router", valueMs: readNumber(router, field, "nvext.router", faults) },
      { source: "extra_args", valueMs: readNumber(extraArgs, field, "extra_args", faults) },
    ];
    for (const { name, perSecond } of kind.headers) {
      const valueMs = readHeader(header(name), name, perSecond, faults);
      candidates.push({ source: name, valueMs });
    }
    return firstGiven(candidates);
  };
  const ttft = resolve(ttftKind);
  const itl = resolve(itlKind);
  if (faults.length > 0) return { ok: false, faults };
  return {
    ok: true,
    router: {
      ttft_target: ttft.valueMs,
      itl_target: itl.valueMs,
      ttft_source: ttft.valueMs === null ? null : ttft.source,
      itl_source: itl.valueMs === null ? null : itl.source,
    },
  };
}

/**
 * Router part: targets of a request on the bus, then the defaults. A null `valueMs` with source
 * `midpoint` leaves the value to the grid's axis. Other processes write on the bus, so types and
 * finiteness (msgpack carries NaN) are checked here too.
 */
export function resolveSlaTargets(
  request: { readonly router?: unknown; readonly extra_args?: unknown },
  defaults: SlaDefaults,
): TargetsResolved {
  const faults: SlaFault[] = [];
  const router = readObject(request, "router", "router", faults);
  const extraArgs = readObject(request, "extra_args", "extra_args", faults);
  const resolve = (kind: TargetKind, defaultMs: number | null): SlaTarget =>
    firstGiven([
      {
        source: knownSource(kind, router?.[kind.sourceField]),
        valueMs: readNumber(router, kind.field, "router", faults),
      },
      { source: "extra_args", valueMs: readNumber(extraArgs, kind.field, "extra_args", faults) },
      { source: "default", valueMs: defaultMs },
    ]);
  const ttft = resolve(ttftKind, defaults.ttftTargetMs);
  const itl = resolve(itlKind, defaults.itlTargetMs);
  return faults.length > 0 ? { ok: false, faults } : { ok: true, ttft, itl };
}

interface TargetHeader {
  readonly name: string;
  /** True for tokens per second, which become 1000 / value milliseconds per token. */
  readonly perSecond: boolean;
}

interface TargetKind {
  readonly field: "ttft_target" | "itl_target";
  readonly sourceField: "ttft_source" | "itl_source";
  readonly headers: readonly TargetHeader[];
}

const ttftKind: TargetKind = {
  field: "ttft_target",
  sourceField: "ttft_source",
  headers: [
    { name: "x-slo-ttft-ms", perSecond: false },
    { name: "x-sgl-ttft-slo-ms", perSecond: false },
  ],
};

const itlKind: TargetKind = {
  field: "itl_target",
  sourceField: "itl_source",
  headers: [
    { name: "x-slo-tpot-ms", perSecond: false },
    { name: "x-sgl-tps-slo", perSecond: true },
  ],
};

const decimalNumber = /^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$/;

/** Header text shown in a message; longer ones are cut. */
const shownCharsMax = 40;

function firstGiven(candidates: readonly SlaTarget[]): SlaTarget {
  const given = candidates.find(({ valueMs }) => valueMs !== null);
  return given ?? { valueMs: null, source: "midpoint" };
}

/** The source a frontend wrote, held to the known names since it becomes a metric label. */
function knownSource(kind: TargetKind, source: unknown): string {
  const known = source === "extra_args" || kind.headers.some(({ name }) => name === source);
  return known ? (source as string) : "nvext.router";
}

function readObject(
  parent: unknown,
  key: string,
  where: string,
  faults: SlaFault[],
): Readonly<Record<string, unknown>> | undefined {
  if (!isObject(parent)) return undefined;
  const value = Object.hasOwn(parent, key) ? parent[key] : undefined;
  if (value === undefined || value === null) return undefined;
  if (isObject(value)) return value;
  faults.push({
    where,
    reason: "wrong-type",
    message: `${where} must be an object, got ${typeName(value)}`,
  });
  return undefined;
}

function readNumber(
  parent: Readonly<Record<string, unknown>> | undefined,
  key: string,
  parentWhere: string,
  faults: SlaFault[],
): number | null {
  const value = parent && Object.hasOwn(parent, key) ? parent[key] : undefined;
  if (value === undefined || value === null) return null;
  const where = `${parentWhere}.${key}`;
  if (typeof value !== "number") {
    const message = `${where} must be a number of milliseconds, got ${typeName(value)}`;
    faults.push({ where, reason: "wrong-type", message });
    return null;
  }
  if (!Number.isFinite(value)) {
    faults.push({ where, reason: "not-finite", message: `${where} must be finite, got ${value}` });
    return null;
  }
  return value + 0; // -0 becomes 0.
}

function readHeader(
  text: string | undefined,
  where: string,
  perSecond: boolean,
  faults: SlaFault[],
): number | null {
  if (text === undefined) return null;
  const refuse = (reason: SlaFault["reason"], expected: string): null => {
    const shown = JSON.stringify(text.slice(0, shownCharsMax));
    faults.push({ where, reason, message: `${where} must be ${expected}, got ${shown}` });
    return null;
  };
  const trimmed = text.trim();
  if (!decimalNumber.test(trimmed)) return refuse("malformed", "one decimal number");
  const value = Number(trimmed) + 0;
  if (!Number.isFinite(value)) return refuse("not-finite", "finite");
  if (!perSecond) return value;
  if (value <= 0) return refuse("not-positive", "above 0 tokens per second");
  const itlMs = 1000 / value;
  return Number.isFinite(itlMs) ? itlMs : refuse("not-finite", "a rate whose inverse is finite");
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function typeName(value: unknown): string {
  return Array.isArray(value) ? "array" : typeof value;
}
