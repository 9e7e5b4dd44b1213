/**
 * A `Dispatch` as a frame of version 2, which our own processes send; messages in other forms are read
 * by `request-json.ts`. Little endian:
 *
 *   header 64 bytes | decisions | lines | rest | words
 *
 *    0 magic u16 "TG"   2 version u8 (2)      3 kind u8 (1 tokens, 2 hashes)   4 islTokens u32
 *    8 attempt u32     12 first u32          16 deadlineMs f64                24 streamKey u32
 *   28 linesBytes u32  32 count u32          36 blockSize u16 (0 of tokens)   38 flags u16
 *   40 restBytes u32   44 decisionsBytes u16
 *   46 phase u8 (0 aggregated, 1 prefill, 2 decode)                           48 rid, 16 bytes
 *
 *   flags       1 the stream is read in bundles, 2 it is acknowledged, 4 progress, 8 acceptNotice
 *   decisions   items of a JSON array, the first router's first
 *   lines       notify …, stream subject, promptFrom or nothing, avoid as JSON or nothing, routed:
 *               the body's fields that routers act on (`RoutedBody`), as JSON
 *   rest        the body's other fields, as JSON
 *   words       count x u32 tokens, or x (lo u32, hi u32) hashes
 *
 * A router reads neither decisions nor rest. Its own decision and notice subject go where the one
 * part ends and the other begins, and it copies what lies around them:
 *
 *   came   header  d1               n1 \n subject \n … | rest | words
 *   sent   header' d1 , d2 spaces   n2 \n n1 \n subject \n … | rest | words
 *
 * Invariants: the length matches exactly; unknown flags pass and are ignored; what we write has its
 * words at a multiple of 4, to which spaces behind a decision and behind the JSON bring them.
 */
import type { Random } from "../base/random.ts";
import { frameLayout, isFrame, wordsEach, wordsOf } from "./frame-layout.ts";
import { checkRequestBody } from "./request-body.ts";
import {
  attemptOf,
  avoidOf,
  deadlineOf,
  decisionsOf,
  inboxOf,
  notifyOf,
  phaseOf,
} from "./request-envelope.ts";
import {
  checkSource,
  type DispatchMessage,
  decodeJsonDispatch,
  fail,
  parseJson,
  promptOf,
  textOf,
} from "./request-json.ts";
import {
  type Dispatch,
  type HopDecision,
  islTokensOf,
  type Phase,
  type Prompt,
  type RequestBody,
  type RoutedBody,
  type RoutedDispatch,
  type RoutedEnvelope,
} from "./requests.ts";

const { magic, kindTokens, kindHashes } = frameLayout;
const version = 2;
const headerBytes = 64;
const flagBits = { bundle: 1, acks: 2, progress: 4, acceptNotice: 8 } as const;
const phases: readonly Phase[] = ["aggregated", "prefill", "decode"];
const ridAt = 48;
const decisionsBytesMax = 0xffff;
const routedFields: ReadonlySet<string> = new Set<keyof RoutedBody>([
  "request_id",
  "routing",
  "router",
  "router_config_override",
  "annotations",
  "extra_args",
  "dp_rank",
  "mm_routing_info",
]);
/** Lines behind those of `notify`. */
const linesAfterNotify = 4;
const newline = 0x0a;

/** The frame; nothing of `dispatch` is kept. */
export function encodeDispatch({ envelope, body, prompt }: Dispatch): Uint8Array {
  const decisions = itemsText(envelope.decisions);
  const { routed, rest } = bodyTexts(body);
  const lines = linesText(envelope, routed);
  const decisionsBytes = checkDecisionsBytes(Buffer.byteLength(decisions));
  const linesBytes = Buffer.byteLength(lines);
  const restAt = headerBytes + decisionsBytes + linesBytes;
  const restEnd = restAt + Buffer.byteLength(rest);
  const wordsAt = padded(restEnd);
  const words = prompt.type === "tokens" ? prompt.tokens : prompt.localHashes;
  const bytes = Buffer.allocUnsafe(wordsAt + 4 * words.length);
  writeFixed(bytes, envelope);
  writePrompt(bytes, prompt);
  bytes.writeUInt32LE(linesBytes, 28);
  bytes.writeUInt32LE(wordsAt - restAt, 40);
  bytes.writeUInt16LE(decisionsBytes, 44);
  bytes.write(decisions + lines + rest + spaces(wordsAt - restEnd), headerBytes);
  bytes.set(new Uint8Array(words.buffer, words.byteOffset, 4 * words.length), wordsAt);
  return bytes;
}

/** Without the brackets. */
function itemsText(decisions: readonly HopDecision[]): string {
  return decisions.length === 0 ? "" : JSON.stringify(decisions).slice(1, -1);
}

/** The body's fields in two JSON objects. */
function bodyTexts(body: RequestBody): { readonly routed: string; readonly rest: string } {
  const routed: Record<string, unknown> = {};
  const rest: Record<string, unknown> = {};
  for (const name in body) (routedFields.has(name) ? routed : rest)[name] = body[name];
  return { routed: JSON.stringify(routed), rest: JSON.stringify(rest) };
}

/** The envelope's fields of the header. */
function writeFixed(bytes: Buffer, envelope: RoutedEnvelope): void {
  bytes.writeUInt16LE(magic, 0);
  bytes[2] = version;
  bytes.writeUInt32LE(envelope.attempt, 8);
  bytes.writeUInt32LE(envelope.first, 12);
  bytes.writeDoubleLE(envelope.deadlineMs, 16);
  bytes.writeUInt32LE(envelope.stream.key, 24);
  bytes.writeUInt16LE(flagsOf(envelope), 38);
  bytes[46] = phases.indexOf(envelope.phase);
  bytes[47] = 0;
  const ridBytes = bytes.write(envelope.rid, ridAt, "hex");
  if (ridBytes !== headerBytes - ridAt)
    fail(`one with a rid of 32 hex digits, got ${envelope.rid}`);
}

function writePrompt(bytes: Buffer, prompt: Prompt): void {
  const isTokens = prompt.type === "tokens";
  bytes[3] = isTokens ? kindTokens : kindHashes;
  bytes.writeUInt32LE(islTokensOf(prompt), 4);
  bytes.writeUInt32LE(isTokens ? prompt.tokens.length : prompt.localHashes.length / 2, 32);
  bytes.writeUInt16LE(isTokens ? 0 : prompt.blockSize, 36);
}

function linesText(envelope: RoutedEnvelope, routed: string): string {
  const { notify, stream, promptFrom = "", avoid } = envelope;
  const avoidText = avoid.length === 0 ? "" : JSON.stringify(avoid);
  return [...notify, stream.subject, promptFrom, avoidText, routed].join("\n");
}

function flagsOf({ stream, progress, acceptNotice }: RoutedEnvelope): number {
  return (
    (stream.format === "bundle" ? flagBits.bundle : 0) |
    (stream.acks ? flagBits.acks : 0) |
    (progress ? flagBits.progress : 0) |
    (acceptNotice ? flagBits.acceptNotice : 0)
  );
}

/**
 * Reads a dispatch in any form; a plain client's missing `rid` is drawn from `random`. The prompt is a
 * copy, or a view of the payload where it is aligned. Throws `invalid_request` saying what was
 * expected.
 */
export function decodeDispatch(message: DispatchMessage, random: Random): Dispatch {
  if (!isOurs(message.payload)) return decodeJsonDispatch(message, random);
  const { dispatch, frame } = readFrame(message.payload);
  const rest = textOf(frame.bytes.subarray(frame.restAt, frame.wordsAt));
  // Into objects just made: spreads of objects this large take several times as long.
  const envelope = Object.assign(dispatch.envelope, { decisions: decisionsIn(frame) });
  return { envelope, body: Object.assign(bodyOf(rest), dispatch.body), prompt: dispatch.prompt };
}

/** A frame of ours, and where its parts begin; a view of the payload. */
export interface PassedFrame {
  readonly bytes: Buffer;
  readonly linesAt: number;
  readonly restAt: number;
  readonly wordsAt: number;
}

/** What a hop acts on, and the frame that it passes on. */
export interface ReadDispatch {
  readonly dispatch: RoutedDispatch;
  readonly frame: PassedFrame;
}

/** `decodeDispatch`, for a hop that passes the request on: decisions and the rest stay unread. */
export function readDispatch(message: DispatchMessage, random: Random): ReadDispatch {
  if (isOurs(message.payload)) return readFrame(message.payload);
  return readFrame(encodeDispatch(decodeJsonDispatch(message, random)));
}

/** True for what is not for `decodeJsonDispatch`; throws for a frame of an unknown version. */
function isOurs(payload: Uint8Array): boolean {
  if (!isFrame(payload) || payload[2] === frameLayout.version) return false;
  const versions = `${frameLayout.version} or ${version}`;
  if (payload[2] !== version) fail(`frame version ${versions}, got ${payload[2]}`);
  return true;
}

function readFrame(payload: Uint8Array): ReadDispatch {
  const bytes = Buffer.isBuffer(payload)
    ? payload
    : Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength);
  if (bytes.length < headerBytes)
    fail(`a frame header of ${headerBytes} bytes, got ${bytes.length}`);
  const kind = bytes[3];
  if (kind !== kindTokens && kind !== kindHashes) {
    return fail(`frame kind ${kindTokens} (tokens) or ${kindHashes} (hashes), got ${kind}`);
  }
  const count = bytes.readUInt32LE(32);
  const linesAt = headerBytes + bytes.readUInt16LE(44);
  const restAt = linesAt + bytes.readUInt32LE(28);
  const wordsAt = restAt + bytes.readUInt32LE(40);
  const each = 4 * wordsEach(kind);
  if (bytes.length !== wordsAt + each * count) {
    const what = kind === kindTokens ? "tokens" : "hashes";
    fail(`${wordsAt} bytes and ${count} ${what} of ${each}, got ${bytes.length} bytes`);
  }
  const islTokens = bytes.readUInt32LE(4);
  const blockSize = bytes.readUInt16LE(36);
  const prompt = promptOf({ kind, islTokens, blockSize, words: wordsOf(bytes, wordsAt) });
  const lines = textOf(bytes.subarray(linesAt, restAt)).split("\n");
  if (lines.length < linesAfterNotify) {
    fail(`a frame with ${linesAfterNotify} lines or more, got ${lines.length}`);
  }
  const body = bodyOf(lines.pop() ?? "");
  const envelope = envelopeOf(bytes, lines);
  checkSource(prompt, envelope);
  return { dispatch: { envelope, body, prompt }, frame: { bytes, linesAt, restAt, wordsAt } };
}

/** `lines` without the last. */
function envelopeOf(bytes: Buffer, lines: string[]): RoutedEnvelope {
  const flags = bytes.readUInt16LE(38);
  const avoid = lines.pop();
  const promptFrom = lines.pop();
  const subject = lines.pop();
  return {
    rid: bytes.toString("hex", ridAt, headerBytes),
    attempt: attemptOf(bytes.readUInt32LE(8)),
    first: bytes.readUInt32LE(12),
    phase: phaseOf(phases[bytes.readUInt8(46)] ?? bytes.readUInt8(46)),
    deadlineMs: deadlineOf(bytes.readDoubleLE(16)),
    stream: {
      subject: inboxOf("stream.subject", subject),
      format: flags & flagBits.bundle ? "bundle" : "json",
      key: bytes.readUInt32LE(24),
      acks: (flags & flagBits.acks) !== 0,
    },
    promptFrom: promptFrom ? inboxOf("prompt_from", promptFrom) : undefined,
    notify: lines.length === 0 ? noNames : notifyOf(lines),
    progress: (flags & flagBits.progress) !== 0,
    acceptNotice: (flags & flagBits.acceptNotice) !== 0,
    avoid: avoid ? avoidOf(jsonOf(avoid)) : noNames,
  };
}

const noNames: readonly string[] = [];

/** Undefined for what is not JSON. */
function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** One of the two JSON objects that the body is. */
function bodyOf(text: string): RequestBody {
  const body = parseJson(text);
  if (body["token_ids"] !== undefined) fail("packed tokens or token_ids, got both");
  if (body["tiergrid"] !== undefined) fail("a frame with one envelope, got another as tiergrid");
  checkRequestBody(body);
  return body;
}

function decisionsIn({ bytes, linesAt }: PassedFrame): readonly HopDecision[] {
  if (linesAt === headerBytes) return [];
  return decisionsOf(jsonOf(`[${textOf(bytes.subarray(headerBytes, linesAt))}]`));
}

/** What a hop changes in a frame that it passes on. */
export interface PassedOn {
  readonly attempt: number;
  readonly phase: Phase;
  readonly deadlineMs: number;
  /** This hop wants `progress` notices. */
  readonly progress: boolean;
  /** This hop's decision, and where it hears notices. */
  readonly decision: HopDecision;
  readonly noticeSubject: string;
  /** Undefined = the fields as they came; what routers do not read stays in any case. */
  readonly body: RoutedBody | undefined;
}

/** The frame for the next hop. */
export function passFrame(frame: PassedFrame, hop: PassedOn): Uint8Array {
  const { bytes, linesAt, restAt } = frame;
  const decision = `${linesAt === headerBytes ? "" : ","}${JSON.stringify(hop.decision)}`;
  const notice = `${hop.noticeSubject}\n`;
  const decisionBytes = Buffer.byteLength(decision);
  const ownBytes = padded(decisionBytes + notice.length);
  const own = decision + spaces(ownBytes - decisionBytes - notice.length) + notice;
  const routed = hop.body && JSON.stringify(hop.body);
  const routedAt = routed === undefined ? restAt : bytes.lastIndexOf(newline, restAt - 1) + 1;
  const grownBytes =
    routed === undefined ? 0 : padded(Buffer.byteLength(routed) - (restAt - routedAt));
  const passed = Buffer.allocUnsafe(bytes.length + ownBytes + grownBytes);
  bytes.copy(passed, 0, 0, linesAt);
  passed.write(own, linesAt);
  if (routed === undefined) bytes.copy(passed, linesAt + ownBytes, linesAt);
  else {
    bytes.copy(passed, linesAt + ownBytes, linesAt, routedAt);
    passed.fill(space, routedAt + ownBytes, restAt + ownBytes + grownBytes);
    passed.write(routed, routedAt + ownBytes);
    bytes.copy(passed, restAt + ownBytes + grownBytes, restAt);
  }
  passed.writeUInt32LE(hop.attempt, 8);
  passed.writeDoubleLE(hop.deadlineMs, 16);
  passed.writeUInt32LE(restAt - linesAt + notice.length + grownBytes, 28);
  const flags = bytes.readUInt16LE(38) & ~flagBits.progress;
  passed.writeUInt16LE(flags | (hop.progress ? flagBits.progress : 0), 38);
  const decisionsBytes = linesAt - headerBytes + ownBytes - notice.length;
  passed.writeUInt16LE(checkDecisionsBytes(decisionsBytes), 44);
  passed[46] = phases.indexOf(hop.phase);
  return passed;
}

function checkDecisionsBytes(bytes: number): number {
  if (bytes <= decisionsBytesMax) return bytes;
  const field = "tiergrid.decisions";
  return fail(`${field} must be at most ${decisionsBytesMax} bytes, got ${bytes}`, field);
}

const space = 0x20;
const padded = (bytes: number): number => 4 * Math.ceil(bytes / 4);
const spaces = (count: number): string => "   ".slice(0, count);
