/**
 * How long an engine computes: the time of one pass's prefill work and of one decode step, in ms.
 * Three kinds, one interface; times are float64 and never rounded.
 *
 *   polynomial    fitted to one GPU generation; ignores attention and batch size
 *   coefficients  linear in tokens, attention work, active KV tokens and sequences
 *   table         a measured profile, interpolated linearly (prefill) and bilinearly (decode)
 */
import { TiergridError } from "../base/errors.ts";

/** What one pass decodes. */
export interface DecodeWork {
  /** Sequences that emit a token. */
  readonly sequences: number;
  /** Active blocks x block size, counted after the pass's allocations. */
  readonly activeKvTokens: number;
  /** All blocks x block size. */
  readonly capacityKvTokens: number;
  /** Sum of the lengths of the emitting sequences. */
  readonly contextTokens: number;
}

export interface PerfModel {
  /** `attention` is the sum over prompts of n_i * (context_i + n_i / 2); 0 ms for 0 tokens. */
  prefillMs(tokens: number, attention: number): number;
  /** At least 1 ms, so that two tokens of a stream never share an instant; 0 ms for 0 sequences. */
  decodeMs(work: DecodeWork): number;
}

export interface PerfCoefficients {
  readonly prefill: {
    readonly passMs: number;
    readonly msPerToken: number;
    readonly msPerTokenContext: number;
  };
  readonly decode: {
    readonly stepMs: number;
    readonly msPerActiveKvToken: number;
    readonly msPerSequence: number;
  };
}

/** A measured profile; `decodeItlMs[i][j]` belongs to KV point i and context point j. */
export interface PerfTable {
  readonly prefillIsl: readonly number[];
  readonly prefillTtftMs: readonly number[];
  readonly decodeActiveKvTokens: readonly number[];
  readonly decodeContextLength: readonly number[];
  readonly decodeItlMs: readonly (readonly number[])[];
  /** First decode axis: physical KV tokens, or the sum of the sequences' lengths. */
  readonly kvAxis: "physical" | "logical";
}

const decodeFloorMs = 1;

export const polynomialPerf: PerfModel = {
  prefillMs: (n) => (n === 0 ? 0 : 4.209989e-7 * n * n + 1.518344e-2 * n + 16.50142),
  decodeMs(work) {
    if (work.sequences === 0) return 0;
    const u = Math.min(1, work.activeKvTokens / work.capacityKvTokens);
    return Math.max(decodeFloorMs, -25.74 * u * u + 54.01 * u + 5.74);
  },
};

export function coefficientsPerf({ prefill, decode }: PerfCoefficients): PerfModel {
  return {
    prefillMs: (n, attention) =>
      n === 0 ? 0 : prefill.passMs + prefill.msPerToken * n + prefill.msPerTokenContext * attention,
    decodeMs(work) {
      if (work.sequences === 0) return 0;
      const kvMs = decode.msPerActiveKvToken * work.activeKvTokens;
      return Math.max(decodeFloorMs, decode.stepMs + kvMs + decode.msPerSequence * work.sequences);
    },
  };
}

export function tablePerf(table: PerfTable): PerfModel {
  return {
    prefillMs(n) {
      if (n === 0) return 0;
      return Math.max(0, onLine(at(table.prefillIsl, n), table.prefillTtftMs));
    },
    decodeMs(work) {
      if (work.sequences === 0) return 0;
      const kv = table.kvAxis === "physical" ? work.activeKvTokens : work.contextTokens;
      const row = at(table.decodeActiveKvTokens, kv);
      const mean = Math.floor(work.contextTokens / work.sequences);
      const column = at(table.decodeContextLength, mean);
      const low = onLine(column, table.decodeItlMs[row.index]!);
      const high = onLine(column, table.decodeItlMs[row.index + 1]!);
      return Math.max(decodeFloorMs, low + (high - low) * row.share);
    },
  };
}

/** `perf` on an engine whose clock runs faster: what an engine with a speed-up announces. */
export function spedUpPerf(
  perf: PerfModel,
  speedupRatio: number,
  decodeSpeedupRatio: number,
): PerfModel {
  const decodeRatio = speedupRatio * decodeSpeedupRatio;
  return {
    prefillMs: (tokens, attention) => perf.prefillMs(tokens, attention) / speedupRatio,
    decodeMs: (work) => perf.decodeMs(work) / decodeRatio,
  };
}

/**
 * Reads the JSON form of a perf model; throws `config_invalid` naming what is wrong. An object may
 * have `speedup_ratio` and `decode_speedup_ratio`, as mock engines do.
 */
export function readPerfModel(json: unknown): PerfModel {
  if (json === "polynomial") return polynomialPerf;
  const fields = asFields(json, "perf_model");
  const speedupRatio = readRatio(fields, "speedup_ratio");
  const decodeSpeedupRatio = readRatio(fields, "decode_speedup_ratio");
  const perf = readKind(fields);
  if (speedupRatio === 1 && decodeSpeedupRatio === 1) return perf;
  return spedUpPerf(perf, speedupRatio, decodeSpeedupRatio);
}

function readRatio(fields: Readonly<Record<string, unknown>>, name: string): number {
  const value = fields[name] ?? 1;
  if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
  throw invalid(`perf_model ${name}: expected a number > 0, got ${show(value)}`);
}

function readKind(fields: Readonly<Record<string, unknown>>): PerfModel {
  switch (fields["kind"]) {
    case "polynomial":
      return polynomialPerf;
    case "coefficients":
      return coefficientsPerf(readCoefficients(fields));
    case "table":
      return tablePerf(readPerfTable(fields));
    default:
      throw invalid(
        `perf_model.kind: expected polynomial, coefficients or table, got ${show(fields)}`,
      );
  }
}

/** Reads a profile with the profiler's five array names; throws `config_invalid`. */
export function readPerfTable(json: unknown): PerfTable {
  const fields = asFields(json, "profile");
  const prefillIsl = readAxis(fields, "prefill_isl");
  const decodeActiveKvTokens = readAxis(fields, "decode_active_kv_tokens");
  const decodeContextLength = readAxis(fields, "decode_context_length");
  const prefillTtftMs = readNumbers(fields["prefill_ttft_ms"], "prefill_ttft_ms");
  if (prefillTtftMs.length !== prefillIsl.length) {
    throw invalid(`prefill_ttft_ms: expected ${prefillIsl.length} values`);
  }
  const rows = fields["decode_itl"];
  if (!Array.isArray(rows) || rows.length !== decodeActiveKvTokens.length) {
    throw invalid(`decode_itl: expected ${decodeActiveKvTokens.length} rows`);
  }
  const decodeItlMs = rows.map((row, index) => {
    const values = readNumbers(row, `decode_itl[${index}]`);
    if (values.length === decodeContextLength.length) return values;
    throw invalid(`decode_itl[${index}]: expected ${decodeContextLength.length} values`);
  });
  const kvAxis = fields["kv_axis"] ?? "physical";
  if (kvAxis !== "physical" && kvAxis !== "logical") {
    throw invalid(`kv_axis: expected physical or logical, got ${show(kvAxis)}`);
  }
  return {
    prefillIsl,
    prefillTtftMs,
    decodeActiveKvTokens,
    decodeContextLength,
    decodeItlMs,
    kvAxis,
  };
}

/** A point between two neighbours of an axis; the last intervals extend outward. */
interface AxisPoint {
  readonly index: number;
  readonly share: number;
}

function at(axis: readonly number[], value: number): AxisPoint {
  let index = 0;
  while (index < axis.length - 2 && axis[index + 1]! <= value) index++;
  const low = axis[index]!;
  return { index, share: (value - low) / (axis[index + 1]! - low) };
}

function onLine(point: AxisPoint, values: readonly number[]): number {
  const low = values[point.index]!;
  return low + (values[point.index + 1]! - low) * point.share;
}

function readCoefficients(fields: Readonly<Record<string, unknown>>): PerfCoefficients {
  const prefill = asFields(fields["prefill"], "perf_model.prefill");
  const decode = asFields(fields["decode"], "perf_model.decode");
  return {
    prefill: {
      passMs: readCoefficient(prefill, "pass_ms"),
      msPerToken: readCoefficient(prefill, "ms_per_token"),
      msPerTokenContext: readCoefficient(prefill, "ms_per_token_context"),
    },
    decode: {
      stepMs: readCoefficient(decode, "step_ms"),
      msPerActiveKvToken: readCoefficient(decode, "ms_per_active_kv_token"),
      msPerSequence: readCoefficient(decode, "ms_per_sequence"),
    },
  };
}

function readCoefficient(fields: Readonly<Record<string, unknown>>, name: string): number {
  const value = fields[name];
  if (typeof value === "number" && Number.isFinite(value) && value >= 0) return value;
  throw invalid(`perf_model ${name}: expected a number >= 0, got ${show(value)}`);
}

function readAxis(fields: Readonly<Record<string, unknown>>, name: string): number[] {
  const values = readNumbers(fields[name], name);
  const rising = values.every((value, slot) => slot === 0 || value > values[slot - 1]!);
  if (values.length >= 2 && rising) return values;
  throw invalid(`${name}: expected at least two strictly increasing numbers, got ${show(values)}`);
}

function readNumbers(json: unknown, name: string): number[] {
  if (Array.isArray(json) && json.every((value) => Number.isFinite(value))) return json;
  throw invalid(`${name}: expected an array of numbers, got ${show(json)}`);
}

function asFields(json: unknown, name: string): Readonly<Record<string, unknown>> {
  if (typeof json === "object" && json !== null && !Array.isArray(json)) {
    return json as Record<string, unknown>;
  }
  throw invalid(`${name}: expected an object, got ${show(json)}`);
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? "nothing").slice(0, 80);
}

function invalid(message: string): TiergridError {
  return new TiergridError("config_invalid", message);
}
