/**
 * Request traces in the JSONL form of Mooncake: one object per line, with the arrival, the lengths
 * and one id per 512 prompt tokens. Equal leading ids are a shared prefix; an id never has two
 * different predecessors.
 *
 *   {"timestamp": 27000, "input_length": 1100, "output_length": 52, "hash_ids": [0, 14, 15]}
 */
import { TiergridError } from "../base/errors.ts";

/** Prompt tokens one id stands for; the last id of a row may cover fewer. */
export const traceBlockTokens = 512;
export const traceRequestsMax = 1_000_000;
export const traceInputTokensMax = 4_194_304;
const problemsMax = 20;

export interface TraceRequest {
  /** Arrival, milliseconds from the start of the trace. */
  readonly arrivalMs: number;
  readonly inputTokens: number;
  /** At least 1. */
  readonly outputTokens: number;
  /** `ceil(inputTokens / 512)` ids below 2^53. */
  readonly hashIds: readonly number[];
  /** The conversation a turn belongs to; turns follow each other in file order. */
  readonly sessionId?: string;
  /** Closed loop: the turn starts this long, in ms, after the end of the one before it. */
  readonly delayMs?: number;
}

/** Parses a whole file; throws `config_invalid` naming the first lines that are wrong and why. */
export function parseMooncakeTrace(text: string): TraceRequest[] {
  const requests: TraceRequest[] = [];
  const problems: string[] = [];
  let lineNumber = 0;
  for (const line of linesOf(text)) {
    lineNumber += 1;
    if (line.trim() === "") continue;
    if (requests.length >= traceRequestsMax) {
      problems.push(`line ${lineNumber}: more than ${traceRequestsMax} requests`);
      break;
    }
    const request = readLine(line);
    if (typeof request !== "string") requests.push(request);
    else if (problems.push(`line ${lineNumber}: ${request}`) >= problemsMax) break;
  }
  if (problems.length > 0) {
    throw new TiergridError("config_invalid", problems.join("\n"), { problems });
  }
  return requests;
}

/** The inverse: one line per request, no spaces, LF after every line. */
export function formatMooncakeTrace(requests: readonly TraceRequest[]): string {
  const lines = requests.map((request) =>
    JSON.stringify({
      timestamp: request.arrivalMs,
      input_length: request.inputTokens,
      output_length: request.outputTokens,
      hash_ids: request.hashIds,
      session_id: request.sessionId,
      delay: request.delayMs,
    }),
  );
  return lines.map((line) => `${line}\n`).join("");
}

function* linesOf(text: string): Generator<string> {
  let start = 0;
  while (start < text.length) {
    const end = text.indexOf("\n", start);
    yield text.slice(start, end < 0 ? text.length : end);
    if (end < 0) return;
    start = end + 1;
  }
}

/** The request of one line, or what is wrong with it. */
function readLine(line: string): TraceRequest | string {
  const row = parseObject(line);
  if (row === undefined) return `expected a JSON object, got ${quoted(line)}`;
  const turn = readTurn(row);
  if (typeof turn === "string") return turn;
  // A turn that waits for the one before it needs no time of its own.
  const arrivalMs =
    row["timestamp"] ?? row["created_time"] ?? (turn.delayMs === undefined ? turn.delayMs : 0);
  if (typeof arrivalMs !== "number" || !(arrivalMs >= 0)) {
    return `timestamp: expected milliseconds, at least 0, got ${quoted(arrivalMs)}`;
  }
  const inputTokens = row["input_length"];
  if (!isCount(inputTokens) || inputTokens < 1 || inputTokens > traceInputTokensMax) {
    const expected = `an integer from 1 to ${traceInputTokensMax}`;
    return `input_length: expected ${expected}, got ${quoted(inputTokens)}`;
  }
  const outputTokens = row["output_length"];
  if (!isCount(outputTokens)) {
    return `output_length: expected an integer, at least 0, got ${quoted(outputTokens)}`;
  }
  const hashIds = row["hash_ids"];
  if (!Array.isArray(hashIds) || !hashIds.every(isCount)) {
    return `hash_ids: expected integers, at least 0, got ${quoted(hashIds)}`;
  }
  const blocks = Math.ceil(inputTokens / traceBlockTokens);
  if (hashIds.length !== blocks) {
    const reason = `one per ${traceBlockTokens} of ${inputTokens} tokens`;
    return `hash_ids: expected ${blocks} ids (${reason}), got ${hashIds.length}`;
  }
  return { arrivalMs, inputTokens, outputTokens: Math.max(1, outputTokens), hashIds, ...turn };
}

/** The session fields of a row, those that it has. */
function readTurn(
  row: Record<string, unknown>,
): Pick<TraceRequest, "sessionId" | "delayMs"> | string {
  const sessionId = row["session_id"] ?? undefined;
  if (sessionId === undefined) return {};
  if (typeof sessionId !== "string" && !isCount(sessionId)) {
    return `session_id: expected text or an integer, got ${quoted(sessionId)}`;
  }
  const delayMs = row["delay"] ?? row["delay_ms"] ?? undefined;
  if (delayMs === undefined) return { sessionId: String(sessionId) };
  if (typeof delayMs !== "number" || !(delayMs >= 0 && Number.isFinite(delayMs))) {
    return `delay: expected milliseconds, at least 0, got ${quoted(delayMs)}`;
  }
  return { sessionId: String(sessionId), delayMs };
}

function parseObject(line: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(line);
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    return isObject ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function quoted(value: unknown): string {
  return (JSON.stringify(value) ?? "nothing").slice(0, 80);
}
