import { loadFastCore } from "../../src/base/fast-core.ts";
import { wasmIndexCore } from "../../src/core/wasm-index.ts";
import { testKvIndex } from "./kv-index-conformance.ts";
import { fuzzKvIndex } from "./kv-index-fuzz.ts";

const { core } = await loadFastCore("wasm");
if (!core) throw new Error("the fast core is not built");

testKvIndex("columns");
fuzzKvIndex("columns");
testKvIndex("fast core", wasmIndexCore(core));
fuzzKvIndex("fast core", wasmIndexCore(core));
