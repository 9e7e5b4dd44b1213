/**
 * A trace as columns, prepared once for a block size and shared by every run over it.
 *
 *   place          0      1      2
 *   arrivalsMs  [  0,   270,     0 ]   at speed 1; of a turn that follows another not used
 *   delaysMs    [  0,     0,   800 ]   wait behind the end of the turn before, closed loop
 *   nextTurn    [  2,    -1,    -1 ]   the turn that follows this one's end
 *   sequences   [ ▪▪▪,   ▪,   ▪▪▪▪ ]   hash lanes of the full engine blocks of each prompt
 *
 * Engine block j of a prompt is sub-block `(j * b mod 512) / b` of id `floor(j * b / 512)`; ids are
 * chained by their prefix, so a sub-block's own number is its sequence hash.
 */
import { TiergridError } from "../../base/errors.ts";
import type { Random } from "../../base/random.ts";
import { type TraceRequest, traceBlockTokens } from "../mooncake-trace.ts";

export interface PreparedTrace {
  /** The requests in the order of the columns. */
  readonly requests: readonly TraceRequest[];
  readonly count: number;
  readonly blockSize: number;
  readonly arrivalsMs: Float64Array;
  readonly delaysMs: Float64Array;
  readonly nextTurn: Int32Array;
  readonly follows: Uint8Array;
  readonly inputTokens: Float64Array;
  readonly outputTokens: Float64Array;
  readonly sequences: readonly Uint32Array[];
}

export interface TracePreparation {
  /** Divides 512. */
  readonly blockSize: number;
  /** Each arrival moves by uniform(0, spreadMs), one draw per request in file order. */
  readonly spreadMs: number;
  readonly random: Random;
}

/** Spreads and sorts the arrivals and names the blocks; throws `config_invalid` for a block size. */
export function prepareTrace(
  requests: readonly TraceRequest[],
  { blockSize, spreadMs, random }: TracePreparation,
): PreparedTrace {
  if (traceBlockTokens % blockSize !== 0) {
    const message = `block size: expected a divisor of ${traceBlockTokens}, got ${blockSize}`;
    throw new TiergridError("config_invalid", message);
  }
  const spread = requests.map((request) => ({
    request,
    arrivalMs: request.arrivalMs + (spreadMs > 0 ? random() * spreadMs : 0),
  }));
  // A turn without a time of its own stays behind the turn that it follows.
  const order = spread.some(({ request }) => request.delayMs !== undefined)
    ? spread
    : spread.toSorted((a, b) => a.arrivalMs - b.arrivalMs);
  const sorted = order.map(({ request }) => request);
  return {
    requests: sorted,
    count: sorted.length,
    blockSize,
    arrivalsMs: Float64Array.from(order, ({ arrivalMs }) => arrivalMs),
    delaysMs: Float64Array.from(sorted, ({ delayMs }) => delayMs ?? 0),
    ...linkTurns(sorted),
    inputTokens: Float64Array.from(sorted, ({ inputTokens }) => inputTokens),
    outputTokens: Float64Array.from(sorted, ({ outputTokens }) => outputTokens),
    sequences: sorted.map((request) => sequenceOf(request, blockSize)),
  };
}

/** A row with a delay follows the row before it in its session, if there is one. */
function linkTurns(requests: readonly TraceRequest[]): Pick<PreparedTrace, "nextTurn" | "follows"> {
  const nextTurn = new Int32Array(requests.length).fill(-1);
  const follows = new Uint8Array(requests.length);
  const last = new Map<string, number>();
  requests.forEach(({ sessionId, delayMs }, place) => {
    if (sessionId === undefined) return;
    const before = last.get(sessionId);
    if (before !== undefined && delayMs !== undefined) {
      nextTurn[before] = place;
      follows[place] = 1;
    }
    last.set(sessionId, place);
  });
  return { nextTurn, follows };
}

function sequenceOf({ hashIds, inputTokens }: TraceRequest, blockSize: number): Uint32Array {
  const parts = traceBlockTokens / blockSize;
  const lanes = new Uint32Array(2 * Math.floor(inputTokens / blockSize));
  for (let block = 0; 2 * block < lanes.length; block++) {
    const id = hashIds[Math.floor(block / parts)] ?? 0;
    writeBlockHash(id * parts + (block % parts), lanes, 2 * block);
  }
  return lanes;
}

/** Writes 64 bits that no other number has, spread over both lanes. */
function writeBlockHash(number: number, lanes: Uint32Array, at: number): void {
  const low = mixed(number >>> 0);
  lanes[at] = low;
  lanes[at + 1] = mixed((low + Math.floor(number / 4_294_967_296)) >>> 0) ^ 0x9e3779b9;
}

/** A bijection of u32 (the finaliser of MurmurHash3). */
function mixed(word: number): number {
  let x = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}
