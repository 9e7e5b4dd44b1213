/**
 * The fast core: the sources of `assembly/` as one WebAssembly module, which `npm run build` and
 * `npm ci` write to `dist/core.wasm`. Each instance has its own memory; instances share nothing.
 *
 * A TypeScript implementation of everything the module does serves where it is missing.
 */
import { readFile } from "node:fs/promises";
import { TiergridError } from "./errors.ts";

export const coreChoices = ["auto", "wasm", "ts"] as const;
/** `auto`: the module, or TypeScript where it cannot be had. */
export type CoreChoice = (typeof coreChoices)[number];

export interface FastCore {
  instantiate(): CoreExports;
}

export interface CoreLoad {
  /** `undefined` = TypeScript. */
  readonly core: FastCore | undefined;
  /** Why `auto` does without the module. */
  readonly fallback: string | undefined;
}

/** Addresses and sizes are in bytes; any call may grow the memory, which detaches its views. */
export interface CoreExports {
  readonly memory: { readonly buffer: ArrayBuffer };
  /** Address of a zeroed region, a multiple of 16; 0 when memory is at its limit. */
  allocate(bytes: number): number;
  seedHashes(lo: number, hi: number): void;
  hashWindows(
    input: number,
    count: number,
    windowBytes: number,
    strideBytes: number,
    local: number,
  ): void;
  chainHashes(from: number, to: number): void;

  seedRandom(lo: number, hi: number): void;
  /** Makes the index of the instance, once. */
  openIndex(opaque: boolean, holdersMax: number, blocksMax: number, setWordsMax: number): void;
  /** What one holder has; the address is its handle until `closeBook`. */
  openBook(slot: number, live: number, expected: number): number;
  closeBook(book: number): void;
  clearBook(book: number, expected: number): void;
  showBook(book: number): void;
  blocksOf(book: number): number;
  digestLo(book: number): number;
  digestHi(book: number): number;
  isSlow(book: number): number;
  eventArea(bytes: number): number;
  storeEvent(book: number, tier: number, hasParent: number, count: number): number;
  removeEvent(book: number, tier: number, count: number): number;
  restoreEvent(count: number, books: number, slots: number): number;
  match(sequence: number, blocks: number, depths: number): number;
  readRuns(sequence: number, blocks: number): void;
  depthInRuns(book: number, tiers: number): number;
  beginExport(): void;
  exportBook(book: number): void;
  exportBlocks(place: number, places: number, rowsMax: number): number;
  exportNames(book: number, place: number, places: number, rowsMax: number): number;
  rowsAt(): number;
  rowBytes(): number;
  rowsNext(): number;
  maintain(slots: number): number;
  pairCount(): number;
  duplicateCount(): number;
  hasSlowTiers(): number;
  blockCount(): number;
  interned(): number;
  longestProbe(): number;
  usedBytes(): number;
}

const warmBytes = 64 * 1024;
const warmRounds = 12;
/** From `src/base` and from `dist/base` alike. */
const modulePath: URL = new URL("../../dist/core.wasm", import.meta.url);

/** Loads the module. Throws `config_invalid` when `wasm` is asked for and cannot be had. */
export async function loadFastCore(choice: CoreChoice, path: URL = modulePath): Promise<CoreLoad> {
  if (choice === "ts") return { core: undefined, fallback: undefined };
  try {
    const module = await engine.WebAssembly.compile(await readFile(path));
    const instantiate = (): CoreExports => new engine.WebAssembly.Instance(module).exports;
    warm(instantiate());
    return { core: { instantiate }, fallback: undefined };
  } catch (thrown) {
    const fallback = thrown instanceof Error ? thrown.message : String(thrown);
    if (choice === "auto") return { core: undefined, fallback };
    const message = `TIERGRID_CORE=wasm: ${fallback}; \`npm run build\` makes the module`;
    throw new TiergridError("config_invalid", message);
  }
}

/**
 * Hashes zeros until the engine has optimized the loops of every instance, so that no prompt pays for
 * it. A machine that refuses memory for an instance does so here.
 */
function warm(wasm: CoreExports): void {
  const input = wasm.allocate(warmBytes);
  const output = wasm.allocate(warmBytes / 8);
  for (let round = 0; round < warmRounds; round++) {
    for (const windowBytes of [64, 256]) {
      wasm.hashWindows(input, warmBytes / windowBytes, windowBytes, windowBytes, output);
    }
    wasm.chainHashes(output + 8, output + warmBytes / 8);
  }
}

/** What of the global `WebAssembly` is used; the Node types declare it as types only. */
const engine = globalThis as unknown as {
  readonly WebAssembly: {
    compile(bytes: Uint8Array): Promise<object>;
    readonly Instance: new (module: object) => { readonly exports: CoreExports };
  };
};
