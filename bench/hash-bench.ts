/** H1, H2: block hashes of a prompt, bit-exact, ours against one native call per block. */
import { mulberry32, randomU32 } from "../src/base/random.ts";
import { createBlockHasher } from "../src/protocol/block-hashes.ts";
import { nativeBlockHashes } from "./baselines/native-block-hash.ts";
import { benchCore } from "./bench-core.ts";
import { type BenchRow, medianRatio } from "./bench-row.ts";

const promptTokens = 32_768;

export async function run(options: { quick: boolean; seed: number }): Promise<BenchRow[]> {
  const hasher = createBlockHasher(await benchCore());
  const random = mulberry32(options.seed);
  const tokens = Uint32Array.from({ length: promptTokens }, () => randomU32(random) % 128_000);
  const prompts = options.quick ? 4 : 20;
  let sink = 0;
  const row = (id: string, blockSize: number, target: string): BenchRow => {
    const rate = (hash: () => void): number => {
      const start = performance.now();
      for (let prompt = 0; prompt < prompts; prompt++) hash();
      return (prompts * promptTokens) / (performance.now() - start) / 1000;
    };
    const pair = medianRatio(
      () => rate(() => (sink += nativeBlockHashes(tokens, blockSize).length)),
      () => rate(() => (sink += hasher.hashBlocks(tokens, blockSize).blocks)),
      true,
    );
    return { id, unit: "Mtok/s", ...pair, target, note: `32k tokens, block ${blockSize}` };
  };
  const rows = [row("H1", 16, ">= 25x (floor 12x)"), row("H2", 64, ">= 10x (floor 5x)")];
  if (sink === 0) throw new Error("nothing was hashed");
  return rows;
}

/** What `bench:hash --json` prints. */
export function figures(rows: readonly BenchRow[]): object {
  const ratio = (id: string): number => rows.find((row) => row.id === id)?.ratio ?? Number.NaN;
  return { bs16_ratio: ratio("H1"), bs64_ratio: ratio("H2") };
}
