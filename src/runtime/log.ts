/**
 * Logs of one process: one object per line to stderr, as JSON or as text. Writing never waits: lines
 * beyond `pendingBytesMax` are dropped and counted. Fields are flat and snake_case; u64 values are
 * strings; prompts, answers and keys never appear.
 */
import { type Logger, pino } from "pino";
import type { Clock } from "../base/clock.ts";

export const logLevels = ["trace", "debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];
/** Bytes waiting for a slow reader of stderr, at most. */
export const pendingBytesMax = 4 * 1024 * 1024;

export type LogFields = Readonly<Record<string, unknown>>;

/** The log of one part of the process, its `target`. */
export type Log = Readonly<Record<LogLevel, (message: string, fields?: LogFields) => void>> & {
  /** True when a line of this level would be written; guards costly fields. */
  isEnabled(level: LogLevel): boolean;
};

/** Where lines go. pino's destinations fit, and so does an array in a test. */
export interface LogSink {
  write(line: string): void;
}

/** Levels by target, from `DYN_LOG`: `level,target=level,...`; the longest matching target counts. */
export interface LogFilter {
  readonly level: LogLevel;
  readonly targets: readonly { readonly target: string; readonly level: LogLevel }[];
}

/** Reads a filter such as `info,router.selection=debug`; undefined when it is malformed. */
export function readLogFilter(text: string): LogFilter | undefined {
  let level: LogLevel = "info";
  const targets: { target: string; level: LogLevel }[] = [];
  for (const part of text.split(",").map((piece) => piece.trim())) {
    if (part === "") continue;
    const [, target, name = ""] = /^(?:([\w.-]+)\s*=\s*)?(\w+)$/.exec(part) ?? [];
    const found = logLevels.find((known) => known === name.toLowerCase());
    if (found === undefined) return undefined;
    if (target === undefined) level = found;
    else targets.push({ target, level: found });
  }
  return { level, targets };
}

/** The level of a target under a filter; `router` covers `router.selection`. */
export function levelOf(filter: LogFilter, target: string): LogLevel {
  const matching = filter.targets.filter(
    (entry) => target === entry.target || target.startsWith(`${entry.target}.`),
  );
  const longest = matching.reduce<LogFilter["targets"][number] | undefined>(
    (best, entry) => (best && best.target.length > entry.target.length ? best : entry),
    undefined,
  );
  return longest?.level ?? filter.level;
}

export interface LogOptions {
  readonly filter: LogFilter;
  readonly format: "json" | "text";
  readonly clock: Clock;
  readonly sink: LogSink;
}

/** Makes the log of a target; children share one sink. */
export type LogFactory = (target: string) => Log;

export function createLogs({ filter, format, clock, sink }: LogOptions): LogFactory {
  const lines = format === "json" ? sink : { write: (line: string) => sink.write(toText(line)) };
  const root = pino(
    {
      base: null,
      level: "trace",
      messageKey: "message",
      timestamp: () => `,"time":"${new Date(clock.wallMs()).toISOString().slice(0, -1)}000Z"`,
      formatters: { level: (label) => ({ level: label.toUpperCase() }) },
    },
    lines,
  );
  return (target) => logOf(root.child({ target }, { level: levelOf(filter, target) }));
}

/** A log that writes nothing, for parts that are run without one. */
export const silentLog: Log = {
  trace: () => {},
  debug: () => {},
  info: () => {},
  warn: () => {},
  error: () => {},
  isEnabled: () => false,
};

/** The part of `process.stderr` that is used. */
export interface LogStream {
  readonly writableLength: number;
  write(text: string): boolean;
  on(event: "error", listener: () => void): unknown;
}

/**
 * `stream` as a sink that never waits; lines of one turn of the event loop leave in one write.
 * `onDrop` is called for every line that finds no room. `flush` hands over what is left, for exits.
 * (pino.destination would end in a blocking write when the process exits.)
 */
export function boundedSink(
  stream: LogStream,
  clock: Clock,
  onDrop: () => void,
): LogSink & { flush(): void } {
  let waiting = "";
  const flush = (): void => {
    if (waiting !== "") stream.write(waiting);
    waiting = "";
  };
  // A reader that went away must not take the process down.
  stream.on("error", onDrop);
  return {
    write: (line) => {
      if (waiting.length + stream.writableLength + line.length > pendingBytesMax) onDrop();
      else {
        if (waiting === "") clock.after(0, flush);
        waiting += line;
      }
    },
    flush,
  };
}

function logOf(logger: Logger): Log {
  return {
    trace: (message, fields) => logger.trace(fields ?? {}, message),
    debug: (message, fields) => logger.debug(fields ?? {}, message),
    info: (message, fields) => logger.info(fields ?? {}, message),
    warn: (message, fields) => logger.warn(fields ?? {}, message),
    error: (message, fields) => logger.error(fields ?? {}, message),
    isEnabled: (level) => logger.isLevelEnabled(level),
  };
}

/** `2026-01-01T00:00:00.000000Z  INFO router.selection: chosen pool=fast` */
function toText(line: string): string {
  const { time, level, target, message, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const pairs = Object.entries(fields).map(([name, value]) => ` ${name}=${fieldText(value)}`);
  return `${time} ${String(level).padStart(5)} ${target}: ${oneLine(message)}${pairs.join("")}\n`;
}

function fieldText(value: unknown): string {
  return typeof value === "string" && /^[\w./:@+-]+$/.test(value) ? value : JSON.stringify(value);
}

/** Control characters could forge lines; they are shown escaped. */
function oneLine(message: unknown): string {
  return String(message).replace(/\p{Cc}/gu, (found) => JSON.stringify(found).slice(1, -1));
}
