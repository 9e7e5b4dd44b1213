/** The requests of a run: a recorded trace or a generated one, its arrivals, and its tokens. */
import { readFile, stat } from "node:fs/promises";
import { TiergridError } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import { defaultMockTokenRange, mockToken } from "../protocol/mock-tokens.ts";
import { parseAzureTrace } from "./azure-trace.ts";
import { parseMooncakeTrace, type TraceRequest, traceBlockTokens } from "./mooncake-trace.ts";

export const traceBytesMax = 256 * 1024 * 1024;
/** Seed of the token rule for prompts; outputs take the request's own seed. */
const promptSeed = 0;

/** True for the name of an Azure trace; all others are Mooncake traces. */
export function isAzureFile(path: string): boolean {
  return path.toLowerCase().endsWith(".csv");
}

/** Reads a trace file; throws `config_invalid` when it is missing, too large or wrong. */
export async function readTraceFile(path: string): Promise<TraceRequest[]> {
  const bytes = await stat(path).then(
    (found) => found.size,
    () => undefined,
  );
  if (bytes === undefined) throw new TiergridError("config_invalid", `no trace file at ${path}`);
  if (bytes > traceBytesMax) {
    const message = `${path}: a trace has at most ${traceBytesMax} bytes, this one has ${bytes}`;
    throw new TiergridError("config_invalid", message);
  }
  try {
    const text = await readFile(path, "utf8");
    return isAzureFile(path) ? parseAzureTrace(text) : parseMooncakeTrace(text);
  } catch (cause) {
    if (!(cause instanceof TiergridError)) throw cause;
    const message = cause.message.replace(/^/gm, `${path}: `);
    throw new TiergridError(cause.code, message, cause.details);
  }
}

/**
 * Time between the batches in which arrivals were recorded: the median gap between different ones
 * when most arrivals are not alone, else 0.
 */
export function recordedBatchMs(requests: readonly TraceRequest[]): number {
  const distinct = [...new Set(requests.map(({ arrivalMs }) => arrivalMs))].sort((a, b) => a - b);
  if (distinct.length < 2 || requests.length < 2 * distinct.length) return 0;
  const gaps = distinct.slice(1).map((arrivalMs, at) => arrivalMs - (distinct[at] ?? 0));
  return gaps.sort((a, b) => a - b)[gaps.length >> 1] ?? 0;
}

export interface ArrivalOptions {
  /** Each arrival moves by uniform(0, spreadMs); 0 keeps them. */
  readonly spreadMs: number;
  /** Divides all arrivals: 2 replays twice as fast. */
  readonly speed: number;
  readonly random: Random;
}

/**
 * Spreads arrivals that were recorded in batches, sorts them and applies the speed. One draw per
 * request, in file order. Replaying the batches as they are would measure burst handling.
 */
export function spreadArrivals(
  requests: readonly TraceRequest[],
  { spreadMs, speed, random }: ArrivalOptions,
): TraceRequest[] {
  const spread = requests.map((request) => {
    const arrivalMs = request.arrivalMs + (spreadMs > 0 ? random() * spreadMs : 0);
    return { ...request, arrivalMs };
  });
  spread.sort((a, b) => a.arrivalMs - b.arrivalMs);
  return spread.map((request) => ({ ...request, arrivalMs: request.arrivalMs / speed }));
}

/** The prompt's tokens: token t of id h is the mock token at position `h * 512 + t`. */
export function promptTokens({ hashIds, inputTokens }: TraceRequest): Uint32Array {
  const tokens = new Uint32Array(inputTokens);
  for (let at = 0; at < inputTokens; at++) {
    const id = hashIds[Math.floor(at / traceBlockTokens)] ?? 0;
    const position = id * traceBlockTokens + (at % traceBlockTokens);
    tokens[at] = mockToken(promptSeed, position, defaultMockTokenRange);
  }
  return tokens;
}
