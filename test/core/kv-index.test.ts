import { testKvIndex } from "./kv-index-conformance.ts";
import { fuzzKvIndex } from "./kv-index-fuzz.ts";

testKvIndex("columns");
fuzzKvIndex("columns");
