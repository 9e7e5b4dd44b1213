/**
 * Layouts of pools to compare, from a file in the form of `schemas/replay-pools.schema.json`:
 *
 *   engines   tp2: {gpus, kv_tokens, perf_model ...}      what a worker is made of
 *   classes   [{share, ttft_base_ms, ttft_ms_per_token, itl_ms}]
 *   layouts   [{name, pools: [{namespace, engine, workers}], selectors: [{type, grid ...}]}]
 *
 * All layouts have the same number of GPUs, or a comparison would say nothing. Everything wrong is
 * reported at once.
 */
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { Ajv2020, type ErrorObject } from "ajv/dist/2020.js";
import { TiergridError } from "../../base/errors.ts";
import { didYouMean } from "../../base/nearest-name.ts";
import { type PerfModel, readPerfModel } from "../../core/perf-model.ts";
import type { Role } from "../../core/sla-grid.ts";
import type { MockEngineConfig } from "../../worker/mock-engine-config.ts";
import { readMockEngineConfig } from "../../worker/mock-engine-config.ts";
import type { SloClass } from "../attainment.ts";

export interface PoolsFile {
  readonly name: string;
  readonly role: Role;
  /** GPUs of every layout. */
  readonly gpus: number;
  /** Of the local choice where no target is to be fitted. */
  readonly prefillExternality: number;
  readonly classes: readonly PoolsClass[];
  readonly drift: ClassDrift | undefined;
  readonly layouts: readonly PoolsLayout[];
}

/** A class's promise; without `itlMs` only the first token counts. */
export interface PoolsClass extends SloClass {
  readonly itlMs: number | undefined;
}

/** Other shares of the classes once `after` of the requests have come. */
export interface ClassDrift {
  readonly after: number;
  readonly shares: readonly number[];
}

export interface PoolsLayout {
  readonly name: string;
  readonly pools: readonly LayoutPool[];
  readonly selectors: readonly Selector[];
}

export interface LayoutPool {
  readonly namespace: string;
  readonly label: string;
  readonly workers: number;
  /** Of one worker. */
  readonly gpus: number;
  readonly costPerSecond: number;
  readonly engine: MockEngineConfig;
  readonly profile: PerfModel | undefined;
}

export type SelectorType =
  | "single"
  | "random"
  | "least-utilised"
  | "least-latency"
  | "grid"
  | "checked"
  | "live";

/** How a request's pool is chosen, and what goes wrong on the way. */
export interface Selector {
  readonly name: string;
  readonly type: SelectorType;
  /** Path of a pool config, or how to build one; undefined = pool 0 is everybody's prior. */
  readonly grid: string | BuiltGrid | undefined;
  /** Share of the cells that get a random pool. */
  readonly wrongCells: number;
  /** The cheapest pool in place of the dearest, and so on. */
  readonly inverted: boolean;
  /** Every worker may use every block that is cached anywhere: a bound, not a choice. */
  readonly sharedCache: boolean;
  /** The best fit as it was published, without what came after it. */
  readonly plainFit: boolean;
  /** A round of quotes takes so long. */
  readonly quoteMs: number;
  /** Share of the quotes that miss their deadline. */
  readonly quoteLoss: number;
}

/** A grid by the worst corner of each cell, from the idle engines' latencies times `headroom`. */
export interface BuiltGrid {
  readonly tokenEdges: readonly number[];
  /** Undefined: every request has cells of its own, whose target is exactly its. */
  readonly targetEdgesMs: readonly number[] | undefined;
  readonly headroom: number;
  /** Sequences that decode together when a decode pool's latency is taken. */
  readonly designSequences: number;
}

const fileBytesMax = 1024 * 1024;
const schemaUrl = new URL("../../../schemas/replay-pools.schema.json", import.meta.url);

interface RawFile {
  readonly name?: string;
  readonly role: Role;
  readonly prefill_externality: number;
  readonly engines: Readonly<Record<string, RawEngine>>;
  readonly classes: readonly {
    readonly share: number;
    readonly ttft_base_ms: number;
    readonly ttft_ms_per_token: number;
    readonly itl_ms?: number;
  }[];
  readonly drift?: ClassDrift;
  readonly layouts: readonly {
    readonly name: string;
    readonly pools: readonly RawPool[];
    readonly selectors: readonly RawSelector[];
  }[];
}

interface RawEngine extends Readonly<Record<string, unknown>> {
  readonly gpus: number;
  readonly kv_tokens: number;
  readonly profile?: unknown;
}

interface RawPool {
  readonly namespace: string;
  readonly label?: string;
  readonly engine: string;
  readonly workers: number;
  readonly cost_per_second: number;
}

interface RawSelector {
  readonly name?: string;
  readonly type: SelectorType;
  readonly grid?: string | RawGrid;
  readonly wrong_cells: number;
  readonly inverted: boolean;
  readonly shared_cache: boolean;
  readonly plain_fit: boolean;
  readonly quote_ms: number;
  readonly quote_loss: number;
}

interface RawGrid {
  readonly token_edges: readonly number[];
  readonly target_edges_ms?: readonly number[];
  readonly headroom: number;
  readonly design_sequences: number;
}

/** Reads the file at `path`; engines have blocks of `blockSize`. Throws `config_invalid`. */
export async function loadPoolsFile(path: string, blockSize: number): Promise<PoolsFile> {
  const text = await readFile(path, "utf8").catch(() => undefined);
  if (text === undefined || text.length > fileBytesMax) {
    throw new TiergridError("config_invalid", `--pools: no file of at most 1 MiB at ${path}`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (thrown) {
    throw new TiergridError("config_invalid", `--pools: ${path} is not JSON: ${String(thrown)}`);
  }
  return readPoolsFile(value, blockSize, dirname(path));
}

/** Checks a parsed file; paths of grids are relative to `folder`. Throws `config_invalid`. */
export function readPoolsFile(value: unknown, blockSize: number, folder = "."): PoolsFile {
  const ajv = new Ajv2020({ strict: true, allErrors: true, useDefaults: true });
  const validate = ajv.compile<RawFile>(JSON.parse(readFileSync(schemaUrl, "utf8")) as object);
  const copy: unknown = structuredClone(value);
  if (!validate(copy)) throw invalid((validate.errors ?? []).map(schemaFault));
  const faults = [...ruleFaults(copy), ...edgeFaults(copy)];
  if (faults.length > 0) throw invalid(faults);
  const [first] = copy.layouts;
  return {
    name: copy.name ?? "",
    role: copy.role,
    gpus: first ? gpusOf(copy, first.pools) : 0,
    prefillExternality: copy.prefill_externality,
    classes: copy.classes.map((row) => ({
      share: row.share,
      baseMs: row.ttft_base_ms,
      msPerInputToken: row.ttft_ms_per_token,
      itlMs: row.itl_ms,
    })),
    drift: copy.drift,
    layouts: copy.layouts.map(({ name, pools, selectors }) => ({
      name,
      pools: pools.map((pool) => poolOf(copy, pool, blockSize)),
      selectors: selectors.map((selector) => selectorOf(selector, folder)),
    })),
  };
}

function schemaFault({ instancePath, message, params }: ErrorObject): string {
  const key = params["additionalProperty"] ?? params["allowedValues"];
  return `${instancePath || "(file)"}: ${message}${key === undefined ? "" : `: ${String(key)}`}`;
}

function ruleFaults(file: RawFile): string[] {
  const faults: string[] = [];
  const { classes, drift } = file;
  faults.push(
    ...shareFaults(
      "/classes",
      classes.map(({ share }) => share),
    ),
  );
  if (drift) faults.push(...shareFaults("/drift", drift.shares));
  if (drift && drift.shares.length !== classes.length) {
    faults.push(`/drift: a share for each of ${classes.length} classes`);
  }
  if (file.role !== "prefill" && classes.some(({ itl_ms }) => itl_ms === undefined)) {
    faults.push(`/classes: each needs itl_ms in role ${file.role}`);
  }
  const names = Object.keys(file.engines);
  for (const [at, { name, pools }] of file.layouts.entries()) {
    for (const { engine } of pools) {
      if (Object.hasOwn(file.engines, engine)) continue;
      faults.push(`/layouts/${at}: no engine ${engine}${didYouMean(engine, names)}`);
    }
    const namespaces = new Set(pools.map(({ namespace }) => namespace));
    if (namespaces.size < pools.length) faults.push(`/layouts/${at}: a namespace occurs twice`);
    const [first] = file.layouts;
    const gpus = gpusOf(file, pools);
    const expected = first ? gpusOf(file, first.pools) : gpus;
    if (gpus !== expected) faults.push(`/layouts/${at}: ${name} has ${gpus} GPUs, not ${expected}`);
  }
  return faults;
}

function shareFaults(pointer: string, shares: readonly number[]): string[] {
  const sum = shares.reduce((total, share) => total + share, 0);
  return Math.abs(sum - 1) > 1e-9 ? [`${pointer}: shares sum to 1, not ${sum}`] : [];
}

function edgeFaults({ layouts }: RawFile): string[] {
  const rises = (edges: readonly number[]): boolean =>
    edges.every((edge, at) => at === 0 || edge > (edges[at - 1] ?? 0));
  return layouts.flatMap(({ selectors }, layout) =>
    selectors.flatMap(({ type, grid }, at) => {
      const pointer = `/layouts/${layout}/selectors/${at}`;
      if (grid === undefined) {
        return type === "grid" || type === "checked" ? [`${pointer}: ${type} needs a grid`] : [];
      }
      if (typeof grid === "string") return [];
      const lists = [grid.token_edges, grid.target_edges_ms ?? []];
      return lists.every(rises) ? [] : [`${pointer}/grid: edges must rise`];
    }),
  );
}

function gpusOf({ engines }: RawFile, pools: readonly RawPool[]): number {
  return pools.reduce(
    (sum, { engine, workers }) => sum + workers * (engines[engine]?.gpus ?? 0),
    0,
  );
}

function poolOf(file: RawFile, pool: RawPool, blockSize: number): LayoutPool {
  const { gpus, kv_tokens, profile, ...options } = file.engines[pool.engine] as RawEngine;
  const engine = readMockEngineConfig({
    watermark: 0,
    cache_output_blocks: false,
    ...options,
    block_size: blockSize,
    num_gpu_blocks: Math.max(1, Math.floor(kv_tokens / blockSize)),
    worker_type: file.role === "agg" ? "aggregated" : file.role,
  });
  return {
    namespace: pool.namespace,
    label: pool.label ?? pool.namespace,
    workers: pool.workers,
    gpus,
    costPerSecond: pool.cost_per_second,
    engine,
    profile: profile === undefined ? undefined : readPerfModel(profile),
  };
}

function selectorOf(raw: RawSelector, folder: string): Selector {
  const { name, type, grid, wrong_cells, quote_ms, quote_loss } = raw;
  return {
    name: name ?? type,
    type,
    grid: typeof grid === "string" ? resolve(folder, grid) : grid && builtGridOf(grid),
    wrongCells: wrong_cells,
    inverted: raw.inverted,
    sharedCache: raw.shared_cache,
    plainFit: raw.plain_fit,
    quoteMs: quote_ms,
    quoteLoss: quote_loss,
  };
}

function builtGridOf(raw: RawGrid): BuiltGrid {
  return {
    tokenEdges: raw.token_edges,
    targetEdgesMs: raw.target_edges_ms,
    headroom: raw.headroom,
    designSequences: raw.design_sequences,
  };
}

function invalid(faults: readonly string[]): TiergridError {
  const lines = faults.map((fault) => `\n  ${fault}`).join("");
  const message = `pools file has ${faults.length} error(s):${lines}`;
  return new TiergridError("config_invalid", message, { faults });
}
