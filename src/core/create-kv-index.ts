/** Makes the KV index of a pool in the implementation that the options choose. */
import { ColumnIndex } from "./column-index.ts";
import type { KvIndex, KvIndexOptions } from "./kv-index.ts";

/** An empty index. */
export function createKvIndex(options: KvIndexOptions): KvIndex {
  return options.core ? options.core(options) : new ColumnIndex(options);
}
