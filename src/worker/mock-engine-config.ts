/**
 * Options of the mock engine under the names of the reference, and their checked, frozen form.
 * Everything wrong is reported at once; an unknown name is an error that lists the valid ones.
 */
import { TiergridError } from "../base/errors.ts";
import type { PerfModel } from "../core/perf-model.ts";
import { polynomialPerf, readPerfModel, readPerfTable, tablePerf } from "../core/perf-model.ts";

export interface MockEngineConfig {
  readonly numGpuBlocks: number;
  readonly blockSize: number;
  /** `Infinity` = no limit, here and in the next three. */
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly maxModelLen: number;
  readonly maxWaitingSeqs: number;
  readonly enablePrefixCaching: boolean;
  readonly enableChunkedPrefill: boolean;
  readonly watermark: number;
  readonly preemptionMode: "lifo" | "fifo";
  readonly cacheOutputBlocks: boolean;
  readonly speedupRatio: number;
  readonly decodeSpeedupRatio: number;
  readonly workerType: "aggregated" | "prefill" | "decode";
  readonly engineType: "vllm" | "trtllm";
  readonly dpSize: number;
  readonly startupTimeMs: number;
  readonly perf: PerfModel;
  /** `perf` with the speed-ups, as `readPerfModel` takes it. */
  readonly perfModel: unknown;
  readonly kvBytesPerToken: number;
  /** 0 = transfers take no time. */
  readonly kvTransferGbPerSecond: number;
  readonly kvTransferTimingMode: "full_prompt" | "destination_missing";
  readonly handoffSessionTimeoutMs: number;
  readonly tokenIdMin: number;
  readonly tokenIdCount: number;
}

interface Check {
  readonly expected: string;
  readonly accepts: (value: unknown) => boolean;
}

interface Option extends Check {
  readonly default: unknown;
  readonly help: string;
}

const blocksMax = 2 ** 26;
const seqsWaitingMax = 2 ** 20;

/** Every option, by the name it has in a config file. Ports belong to transports we do not serve. */
export const mockEngineOptions = {
  num_gpu_blocks: option(16_384, integer(1, blocksMax), "pool size in blocks"),
  block_size: option(64, integer(1, 2 ** 16), "tokens per block"),
  max_num_seqs: option(256, orNull(integer(1)), "running requests; null = no limit"),
  max_num_batched_tokens: option(8192, orNull(integer(1)), "tokens of a pass; null = no limit"),
  max_model_len: option(null, orNull(integer(1)), "prompt + output tokens of a request"),
  max_waiting_seqs: option(
    65_536,
    integer(1, seqsWaitingMax),
    "waiting requests; more: overloaded",
  ),
  enable_prefix_caching: option(true, flag(), "reuse blocks under their hash"),
  enable_chunked_prefill: option(true, flag(), "split a prompt over passes"),
  watermark: option(0.01, number(0, 1), "share of the pool kept free at admission"),
  preemption_mode: option("lifo", oneOf("lifo", "fifo"), "victim: newest or oldest running"),
  cache_output_blocks: option(true, flag(), "full blocks with output tokens enter the cache"),
  speedup_ratio: option(1, positive(), "divides every duration"),
  decode_speedup_ratio: option(1, positive(), "further divides decode time"),
  worker_type: option("aggregated", oneOf("aggregated", "prefill", "decode"), "role"),
  is_prefill: option(false, flag(), "older form of worker_type prefill"),
  is_decode: option(false, flag(), "older form of worker_type decode"),
  engine_type: option("vllm", oneOf("vllm", "trtllm"), "admission rule; trtllm never preempts"),
  dp_size: option(1, integer(1, 1024), "independent data-parallel ranks"),
  startup_time: option(null, orNull(number(0)), "seconds before the worker registers"),
  perf_model: option("polynomial", anything(), "polynomial, coefficients or table"),
  planner_profile_data: option(null, anything(), "a profile as JSON object; wins over perf_model"),
  kv_bytes_per_token: option(null, orNull(number(0)), "2 * layers * KV heads * head dim * bytes"),
  kv_transfer_bandwidth: option(64, orNull(number(0)), "GB/s (1e9 bytes); 0 = no delay"),
  kv_transfer_timing_mode: option(
    "full_prompt",
    oneOf("full_prompt", "destination_missing"),
    "what a handoff transfers",
  ),
  handoff_session_timeout_ms: option(
    300_000,
    integer(1),
    "longest time a prefill holds its blocks",
  ),
  enable_local_indexer: option(true, oneOf(true), "the worker always indexes its own events"),
  zmq_kv_events_port: option(null, oneOf(null), "not served; events leave through the worker"),
  zmq_replay_port: option(null, oneOf(null), "not served"),
  bootstrap_port: option(null, oneOf(null), "not served; handoff is sequential"),
  token_id_min: option(1000, integer(0, 2 ** 31), "lowest output token id"),
  token_id_count: option(30_000, integer(1, 2 ** 31), "number of output token ids"),
} as const satisfies Record<string, Option>;

type OptionName = keyof typeof mockEngineOptions;

/** Checks and freezes `options`; throws one `config_invalid` with everything that is wrong. */
export function readMockEngineConfig(options: Readonly<Record<string, unknown>>): MockEngineConfig {
  const faults: string[] = [];
  for (const name of Object.keys(options)) {
    if (Object.hasOwn(mockEngineOptions, name)) continue;
    faults.push(`${name}: unknown; valid are ${Object.keys(mockEngineOptions).join(", ")}`);
  }
  const values = new Map<string, unknown>();
  for (const [name, row] of Object.entries<Option>(mockEngineOptions)) {
    const value = options[name] ?? (options[name] === null ? null : row.default);
    values.set(name, value);
    if (row.accepts(value)) continue;
    faults.push(`${name}: expected ${row.expected}, got ${JSON.stringify(value)}`);
  }
  const workerType = workerTypeOf(options, faults);
  const perf = perfOf(values, faults);
  if (faults.length > 0) {
    throw new TiergridError("config_invalid", `mock engine: ${faults.join("; ")}`, { faults });
  }
  return Object.freeze(freeze(values, workerType, perf));
}

function freeze(
  values: ReadonlyMap<string, unknown>,
  workerType: MockEngineConfig["workerType"],
  perf: PerfModel,
): MockEngineConfig {
  const value = <T>(name: OptionName): T => values.get(name) as T;
  const limit = (name: OptionName): number => value(name) ?? Number.POSITIVE_INFINITY;
  return {
    numGpuBlocks: value("num_gpu_blocks"),
    blockSize: value("block_size"),
    maxNumSeqs: limit("max_num_seqs"),
    maxNumBatchedTokens: limit("max_num_batched_tokens"),
    maxModelLen: limit("max_model_len"),
    maxWaitingSeqs: value("max_waiting_seqs"),
    enablePrefixCaching: value("enable_prefix_caching"),
    enableChunkedPrefill: value("enable_chunked_prefill"),
    watermark: value("watermark"),
    preemptionMode: value("preemption_mode"),
    cacheOutputBlocks: value("cache_output_blocks"),
    speedupRatio: value("speedup_ratio"),
    decodeSpeedupRatio: value("decode_speedup_ratio"),
    workerType,
    engineType: value("engine_type"),
    dpSize: value("dp_size"),
    startupTimeMs: (value<number | null>("startup_time") ?? 0) * 1000,
    perf,
    perfModel: perfModelOf(values),
    kvBytesPerToken: value("kv_bytes_per_token") ?? 0,
    kvTransferGbPerSecond: value("kv_transfer_bandwidth") ?? 0,
    kvTransferTimingMode: value("kv_transfer_timing_mode"),
    handoffSessionTimeoutMs: value("handoff_session_timeout_ms"),
    tokenIdMin: value("token_id_min"),
    tokenIdCount: value("token_id_count"),
  };
}

function workerTypeOf(
  options: Readonly<Record<string, unknown>>,
  faults: string[],
): MockEngineConfig["workerType"] {
  const older: MockEngineConfig["workerType"][] = [];
  if (options["is_prefill"] === true) older.push("prefill");
  if (options["is_decode"] === true) older.push("decode");
  const named = options["worker_type"] as MockEngineConfig["workerType"] | undefined;
  if (older.length > 1) faults.push("is_prefill, is_decode: expected at most one to be true");
  const chosen = named ?? older[0] ?? "aggregated";
  if (older[0] !== undefined && older[0] !== chosen) {
    faults.push(`worker_type: ${chosen} contradicts is_${older[0]}`);
  }
  return chosen;
}

function perfOf(values: ReadonlyMap<string, unknown>, faults: string[]): PerfModel {
  try {
    const profile = values.get("planner_profile_data");
    return profile === null
      ? readPerfModel(values.get("perf_model"))
      : tablePerf(readPerfTable(profile));
  } catch (thrown) {
    faults.push(thrown instanceof TiergridError ? thrown.message : String(thrown));
    return polynomialPerf;
  }
}

/** What the engine announces of its speed. */
function perfModelOf(values: ReadonlyMap<string, unknown>): unknown {
  const profile = values.get("planner_profile_data");
  const named = values.get("perf_model");
  const kind = named === "polynomial" ? { kind: named } : named;
  const ratios = ["speedup_ratio", "decode_speedup_ratio"].flatMap((name) =>
    values.get(name) === 1 ? [] : [[name, values.get(name)]],
  );
  return {
    ...((profile === null ? kind : { ...(profile as object), kind: "table" }) as object),
    ...Object.fromEntries(ratios),
  };
}

function option(value: unknown, check: Check, help: string): Option {
  return { ...check, default: value, help };
}

function integer(min: number, max = Number.MAX_SAFE_INTEGER): Check {
  const expected =
    max === Number.MAX_SAFE_INTEGER ? `an integer >= ${min}` : `an integer in [${min}, ${max}]`;
  return {
    expected,
    accepts: (value) => Number.isSafeInteger(value) && Number(value) >= min && Number(value) <= max,
  };
}

/** A number in [min, below). */
function number(min: number, below = Number.POSITIVE_INFINITY): Check {
  return {
    expected: Number.isFinite(below) ? `a number in [${min}, ${below})` : `a number >= ${min}`,
    accepts: (value) => typeof value === "number" && value >= min && value < below,
  };
}

function positive(): Check {
  return {
    expected: "a number > 0",
    accepts: (value) => typeof value === "number" && value > 0 && Number.isFinite(value),
  };
}

function flag(): Check {
  return { expected: "true or false", accepts: (value) => typeof value === "boolean" };
}

function oneOf(...names: readonly (string | boolean | null)[]): Check {
  return { expected: names.join(" or "), accepts: (value) => names.some((name) => name === value) };
}

function orNull(check: Check): Check {
  return {
    expected: `${check.expected} or null`,
    accepts: (value) => value === null || check.accepts(value),
  };
}

function anything(): Check {
  return { expected: "any value", accepts: () => true };
}
