/**
 * JSON from a caller: bytes in, a value of bounded shape out. The body limit bounds the bytes; here
 * the depth, the keys and the names that could reach a prototype are bounded. A message never
 * repeats the body.
 */
import { TiergridError } from "../base/errors.ts";

const depthMax = 64;
const keysMax = 10_000;
const refusedKeys = new Set(["__proto__", "constructor", "prototype"]);

/** Parses UTF-8 JSON; throws `invalid_request` for broken or too intricate documents. */
export function parseBoundedJson(bytes: Uint8Array): unknown {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new TiergridError("invalid_request", "Validation: the body is not valid JSON");
  }
  checkShape(value, 1, { keys: 0 });
  return value;
}

/** Recursion is bounded by `depthMax`. */
function checkShape(value: unknown, depth: number, seen: { keys: number }): void {
  if (typeof value !== "object" || value === null) return;
  if (depth > depthMax) throw tooIntricate(`nested deeper than ${depthMax} levels`);
  if (Array.isArray(value)) {
    for (const item of value) {
      if (typeof item === "object") checkShape(item, depth + 1, seen);
    }
    return;
  }
  for (const [key, item] of Object.entries(value)) {
    if (refusedKeys.has(key)) throw tooIntricate(`using the reserved key ${key}`);
    seen.keys++;
    if (seen.keys > keysMax) throw tooIntricate(`holding more than ${keysMax} keys`);
    checkShape(item, depth + 1, seen);
  }
}

function tooIntricate(what: string): TiergridError {
  return new TiergridError("invalid_request", `Validation: the body is refused for ${what}`);
}
