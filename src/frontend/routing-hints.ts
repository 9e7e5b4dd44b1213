/**
 * What a caller says about routing, from the body's `nvext` and from headers; headers win, except
 * for SLA targets (`core/sla-targets.ts`). Values are checked here because headers have no schema.
 */
import { readSlaTargets } from "../core/sla-targets.ts";
import type { RoutingHints, SlaHints } from "../protocol/requests.ts";
import type { Fault } from "./error-body.ts";

/** A worker id as a client writes it. */
export type WorkerPin = string | number;

/** The `nvext` object of a request body, as the schema lets it through. */
export interface Nvext {
  readonly router?: unknown;
  readonly agent_hints?: {
    readonly priority?: number | null;
    readonly strict_priority?: number | null;
    readonly osl?: number | null;
  } | null;
  readonly annotations?: readonly string[] | null;
  readonly backend_instance_id?: WorkerPin | null;
  readonly prefill_worker_id?: WorkerPin | null;
  readonly decode_worker_id?: WorkerPin | null;
  readonly token_data?: readonly number[] | null;
  readonly extra_fields?: readonly string[] | null;
  readonly greed_sampling?: boolean | null;
  readonly use_raw_prompt?: boolean | null;
  readonly max_thinking_tokens?: number | null;
  readonly agent_context?: Readonly<Record<string, unknown>> | null;
}

export type HeaderReader = (name: string) => string | undefined;

/** What the caller left out is absent, in the hints too: every router on the way reads them. */
export interface CallerHints {
  readonly targets: SlaHints | undefined;
  readonly routing: RoutingHints | undefined;
  /** Lower than the default deadline, or undefined. */
  readonly timeoutMs: number | undefined;
}

export const timeoutHeader = "x-request-timeout-ms";

const u32Max = 0xffff_ffff;
const i32Min = -0x8000_0000;
const i32Max = 0x7fff_ffff;
const u64Digits = /^\d{1,20}$/;
const u64Max = 0xffff_ffff_ffff_ffffn;

/** Hints of a body that may still be invalid; adds to `faults` what it cannot read. */
export function readHints(body: unknown, header: HeaderReader, faults: Fault[]): CallerHints {
  const read = readSlaTargets(body, header);
  if (!read.ok) {
    for (const { where, reason, message } of read.faults) {
      faults.push({ pointer: pointerOf(where), reason, message });
    }
  }
  const routing = readRouting(nvextOf(body), header, faults);
  const timeoutMs = readInteger(header, timeoutHeader, 1, u32Max, faults);
  return {
    targets: read.ok ? withoutAbsent<SlaHints>(read.router) : undefined,
    routing,
    timeoutMs,
  };
}

function readRouting(
  nvext: Nvext,
  header: HeaderReader,
  faults: Fault[],
): RoutingHints | undefined {
  const hints = nvext.agent_hints ?? {};
  const worker = readWorkerId(header, "x-worker-instance-id", faults);
  const prefillWorker = readWorkerId(header, "x-prefill-instance-id", faults);
  const integer = (names: readonly string[], min: number, max: number): number | undefined =>
    names.map((name) => readInteger(header, name, min, max, faults)).find((v) => v !== undefined);
  const priority =
    integer(["x-dynamo-request-priority"], i32Min, i32Max) ?? hints.priority ?? undefined;
  const strict = ["x-dynamo-request-strict-priority"];
  return withoutAbsent<RoutingHints>({
    backend_instance_id: worker ?? nvext.backend_instance_id,
    prefill_worker_id: prefillWorker ?? nvext.prefill_worker_id,
    decode_worker_id: worker ?? nvext.decode_worker_id,
    dp_rank: integer(["x-dp-rank", "x-data-parallel-rank"], 0, u32Max),
    prefill_dp_rank: integer(["x-prefill-dp-rank"], 0, u32Max),
    expected_output_tokens: hints.osl,
    priority,
    // One step of priority is one second's head start in a local queue.
    priority_jump: priority,
    strict_priority: integer(strict, 0, u32Max) ?? hints.strict_priority,
  });
}

function nvextOf(body: unknown): Nvext {
  const nvext = isObject(body) ? body["nvext"] : undefined;
  if (!isObject(nvext)) return {};
  // A field of a wrong type is reported by the schema, and the request goes nowhere.
  return isObject(nvext["agent_hints"]) ? nvext : { ...nvext, agent_hints: null };
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function readInteger(
  header: HeaderReader,
  name: string,
  min: number,
  max: number,
  faults: Fault[],
): number | undefined {
  const text = header(name)?.trim();
  if (text === undefined) return undefined;
  const value = /^[+-]?\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  faults.push(malformed(name, `an integer from ${min} to ${max}`));
  return undefined;
}

function readWorkerId(header: HeaderReader, name: string, faults: Fault[]): WorkerPin | undefined {
  const text = header(name)?.trim();
  if (text === undefined) return undefined;
  if (u64Digits.test(text) && BigInt(text) <= u64Max) return text;
  faults.push(malformed(name, "a decimal worker id below 2^64"));
  return undefined;
}

function malformed(name: string, expected: string): Fault {
  return { pointer: name, reason: "malformed", message: `must be ${expected}` };
}

/** `nvext.router.ttft_target` as a JSON pointer; header names stay. */
function pointerOf(where: string): string {
  return /^(?:nvext|extra_args)\b/.test(where) ? `/${where.replaceAll(".", "/")}` : where;
}

/** The fields that say something; undefined when none does. */
function withoutAbsent<Hints extends object>(
  hints: {
    readonly [Name in keyof Hints]?: Hints[Name] | undefined;
  },
): Hints | undefined {
  const given = Object.entries(hints).filter(([, value]) => value !== undefined && value !== null);
  return given.length === 0 ? undefined : (Object.fromEntries(given) as Hints);
}
