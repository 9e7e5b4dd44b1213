/** What the module exports; every address and size is in bytes. */
export { chainHashes, hashWindows, seedHashes } from "./block-hashes.ts";
export { allocate } from "./regions.ts";
