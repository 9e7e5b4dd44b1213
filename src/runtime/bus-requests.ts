/**
 * What both buses do alike: the checks before a publish, the guarded call of a handler and the book
 * of requests in flight. Every entry of the book leaves it exactly once: by a reply, a failure, its
 * timeout, its asker giving up, or `failAll` when the connection goes.
 */
import type { CancelTimer, Clock } from "../base/clock.ts";
import { type ErrorCode, TiergridError } from "../base/errors.ts";
import { KeyedSlots } from "../core/keyed-slots.ts";
import { readReplies } from "../protocol/reply-bundle.ts";
import { checkPublishSubject } from "../protocol/subjects.ts";
import type {
  Asker,
  AskOptions,
  Bus,
  BusHandler,
  BusMessage,
  BusState,
  PublishOptions,
  RequestOptions,
} from "./bus.ts";

/** Above this many waiting bytes `data` is refused. */
export const outboundSoftBytes = 8 * 1024 * 1024;
/** Above this many waiting bytes everything is refused. */
export const outboundHardBytes = 32 * 1024 * 1024;
export const requestsInFlightMax = 65_536;
export const subscriptionsMax = 100_000;
const headerBytesMax = 4096;

/** `BusTotals` with the connection's own pen. */
export type MutableTotals = { -readonly [K in keyof Bus["totals"]]: Bus["totals"][K] };

export function emptyTotals(): MutableTotals {
  return {
    reconnects: 0,
    forcedCloses: 0,
    watchdogSwaps: 0,
    handlerErrors: 0,
    shedMessages: 0,
    outboundBytes: 0,
    messagesIn: 0,
    messagesOut: 0,
    bytesIn: 0,
    bytesOut: 0,
  };
}

/** Throws `invalid_request` or `payload_too_large`, before anything is written. */
export function checkMessage(
  subject: string,
  payload: Uint8Array,
  options: PublishOptions | undefined,
  maxPayloadBytes: number,
): void {
  checkPublishSubject(subject);
  if (options?.reply !== undefined) checkPublishSubject(options.reply);
  const headerBytes = options?.headers === undefined ? 0 : checkHeaders(options.headers);
  const bytes = payload.length + headerBytes;
  if (bytes <= maxPayloadBytes) return;
  const message = `a message has at most ${maxPayloadBytes} bytes, this one has ${bytes}`;
  throw new TiergridError("payload_too_large", message, { bytes, max: maxPayloadBytes });
}

/** Size on the wire; throws `invalid_request` for what could break out of its line. */
function checkHeaders(headers: ReadonlyMap<string, string>): number {
  let bytes = 12;
  for (const [name, value] of headers) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are the danger
    if (!/^[!-9;-~]+$/.test(name) || /[\u0000-\u001f\u007f]/.test(value)) {
      const what = JSON.stringify(`${name}: ${value}`.slice(0, 80));
      throw new TiergridError("invalid_request", `not a header: ${what}`);
    }
    bytes += name.length + Buffer.byteLength(value) + 4;
  }
  if (bytes > headerBytesMax) {
    const message = `headers have at most ${headerBytesMax} bytes, these have ${bytes}`;
    throw new TiergridError("invalid_request", message);
  }
  return bytes;
}

/** Throws `bus_overloaded` and counts when `outboundBytes` are too many for this traffic. */
export function checkRoom(
  totals: MutableTotals,
  outboundBytes: number,
  options: PublishOptions | undefined,
): void {
  const max = options?.traffic === "control" ? outboundHardBytes : outboundSoftBytes;
  if (outboundBytes <= max) return;
  totals.shedMessages += 1;
  const message = `${outboundBytes} bytes wait to be sent, at most ${max} may`;
  throw new TiergridError("bus_overloaded", message, { bytes: outboundBytes, max });
}

/** Told of every error a handler lets escape; its own errors are swallowed. */
export type HandlerErrorListener = (error: unknown, subject: string) => void;

/** Calls `handler`; a throw or a rejection ends in `failed`, never in the caller. */
export function callHandler(
  handler: BusHandler,
  message: BusMessage,
  failed: HandlerErrorListener,
): void {
  try {
    // A handler typed as `void` may return anything, for example what its last call returned.
    const outcome: unknown = handler(message);
    if (!(outcome instanceof Promise)) return;
    outcome.then(undefined, (error: unknown) => failed(error, message.subject));
  } catch (error) {
    failed(error, message.subject);
  }
}

/** Counts a handler's error and passes it on; total, because nothing above could catch it. */
export function handlerErrorCounter(
  totals: MutableTotals,
  listener: HandlerErrorListener | undefined,
): HandlerErrorListener {
  return (error, subject) => {
    totals.handlerErrors += 1;
    try {
      listener?.(error, subject);
    } catch {
      totals.handlerErrors += 1;
    }
  };
}

/** Calls every listener; what one throws is counted and stops nobody. */
export function tellState(
  listeners: ReadonlySet<(state: BusState) => void>,
  state: BusState,
  failed: HandlerErrorListener,
): void {
  for (const listener of [...listeners]) {
    try {
      listener(state);
    } catch (error) {
      failed(error, `state ${state}`);
    }
  }
}

interface OpenRequest {
  readonly asker: Asker;
  readonly cancelTimer: CancelTimer | undefined;
}

export class RequestBook {
  readonly #open = new KeyedSlots<OpenRequest>();
  readonly #clock: Clock;
  readonly #prefix: string;
  #next = 0;

  /** Replies arrive on `<prefix>.<number>`. */
  constructor(clock: Clock, prefix: string) {
    this.#clock = clock;
    this.#prefix = prefix;
  }

  get size(): number {
    return this.#open.size;
  }

  /** Sends through `send`, whose errors it throws; answers the function that gives the request up. */
  ask(timeoutMs: number | undefined, send: (reply: string) => void, asker: Asker): () => void {
    if (this.#open.size >= requestsInFlightMax) {
      const message = `${requestsInFlightMax} requests are in flight, none may be added`;
      throw new TiergridError("bus_overloaded", message);
    }
    const reply = `${this.#prefix}.${(this.#next++).toString(36)}`;
    const late = (): void => this.fail(reply, "request_timeout", `no reply within ${timeoutMs} ms`);
    const cancelTimer = timeoutMs === undefined ? undefined : this.#clock.after(timeoutMs, late);
    this.#open.set(reply, { asker, cancelTimer });
    try {
      send(reply);
    } catch (error) {
      this.#take(reply);
      throw error;
    }
    return () => void this.#take(reply);
  }

  /** A reply came; late and unknown ones are dropped. */
  settle(message: BusMessage): void {
    this.#take(message.subject)?.onReply(message);
  }

  fail(reply: string, code: ErrorCode, message: string): void {
    const asker = this.#take(reply);
    if (asker) asker.onError(new TiergridError(code, message));
  }

  failAll(code: ErrorCode, message: string): void {
    for (const reply of [...this.#open.keys()]) this.fail(reply, code, message);
  }

  #take(reply: string): Asker | undefined {
    const open = this.#open.get(reply);
    if (!open) return undefined;
    this.#open.delete(reply);
    open.cancelTimer?.();
    return open.asker;
  }
}

/** What replies of a connection need to find their requests. */
export interface ReplyDesk {
  readonly requests: RequestBook;
  readonly totals: MutableTotals;
  readonly failed: HandlerErrorListener;
}

/** Replies that travelled together; what is cut off is counted, and its requests time out. */
export function settleReplies(
  { requests, totals, failed }: ReplyDesk,
  replies: string,
  bytes: Uint8Array,
): void {
  try {
    readReplies(bytes, (id, payload) => {
      totals.messagesIn += 1;
      requests.settle({ subject: replies + id, payload, reply: undefined, headers: undefined });
    });
  } catch (error) {
    failed(error, replies);
  }
}

/** `Bus.request` over its `ask`. */
export function requestOver(
  ask: (options: AskOptions, asker: Asker) => () => void,
  { timeoutMs, headers, signal }: RequestOptions,
): Promise<BusMessage> {
  const cancelled = "the request was cancelled";
  if (signal?.aborted) {
    return Promise.reject(new TiergridError("cancelled", `${cancelled} before it was sent`));
  }
  return new Promise((resolve, reject) => {
    const aborted = (): void => {
      giveUp();
      reject(new TiergridError("cancelled", cancelled));
    };
    const giveUp = ask(headers ? { timeoutMs, headers } : { timeoutMs }, {
      onReply(reply) {
        signal?.removeEventListener("abort", aborted);
        resolve(reply);
      },
      onError(error) {
        signal?.removeEventListener("abort", aborted);
        reject(error);
      },
    });
    signal?.addEventListener("abort", aborted, { once: true });
  });
}
