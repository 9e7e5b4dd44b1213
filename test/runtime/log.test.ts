import { expect, it } from "vitest";
import { ManualClock } from "../../src/base/clock.ts";
import {
  boundedSink,
  createLogs,
  levelOf,
  pendingBytesMax,
  readLogFilter,
} from "../../src/runtime/log.ts";

const clock = new ManualClock();

function logger(filterText: string, format: "json" | "text") {
  const lines: string[] = [];
  const filter = readLogFilter(filterText);
  if (filter === undefined) throw new Error("bad filter");
  const sink = { write: (line: string) => void lines.push(line) };
  return { lines, logs: createLogs({ filter, format, clock, sink }) };
}

it("writes one JSON object per line with time, level, target and message", () => {
  const { lines, logs } = logger("info", "json");
  logs("router.selection").info("chosen", { pool: "fast", worker_id: "18446744073709551615" });
  expect(lines).toHaveLength(1);
  expect(lines[0]?.endsWith("\n")).toBe(true);
  expect(JSON.parse(lines[0] ?? "")).toEqual({
    time: "2023-11-14T22:13:20.000000Z",
    level: "INFO",
    target: "router.selection",
    message: "chosen",
    pool: "fast",
    worker_id: "18446744073709551615",
  });
});

it("writes text in which a message cannot forge a line", () => {
  const { lines, logs } = logger("info", "text");
  logs("bus").warn("reconnect\nfake", { attempts: 3, url: "nats://a:1", why: "x y\n" });
  expect(lines).toEqual([
    "2023-11-14T22:13:20.000000Z  WARN bus: reconnect\\nfake" +
      ' attempts=3 url=nats://a:1 why="x y\\n"\n',
  ]);
});

it("filters by level and by the longest matching target", () => {
  const { lines, logs } = logger("warn, router=info ,router.selection=debug", "json");
  logs("router.selection").debug("1");
  logs("router").debug("hidden");
  logs("router.books").info("2");
  logs("routers").info("hidden");
  logs("bus").error("3");
  expect(lines.map((line) => (JSON.parse(line) as { message: string }).message)).toEqual([
    "1",
    "2",
    "3",
  ]);
  expect(logs("bus").isEnabled("info")).toBe(false);
});

it("reads filters and refuses malformed ones", () => {
  expect(readLogFilter("")).toEqual({ level: "info", targets: [] });
  expect(readLogFilter("DEBUG")?.level).toBe("debug");
  expect(readLogFilter("loud")).toBeUndefined();
  expect(readLogFilter("a=b=c")).toBeUndefined();
  const filter = readLogFilter("error,a=warn,a.b=info") ?? { level: "trace", targets: [] };
  expect(levelOf(filter, "a.b.c")).toBe("info");
  expect(levelOf(filter, "a.c")).toBe("warn");
  expect(levelOf(filter, "ab")).toBe("error");
});

it("writes the lines of one turn at once, and drops what finds no room", () => {
  const own = new ManualClock();
  const written: string[] = [];
  let dropped = 0;
  const stream = {
    writableLength: 0,
    write: (text: string) => {
      written.push(text);
      return true;
    },
    on: () => {},
  };
  const sink = boundedSink(stream, own, () => {
    dropped += 1;
  });
  sink.write("a\n");
  sink.write("b\n");
  expect(written).toEqual([]);
  own.advanceTo(0);
  expect(written).toEqual(["a\nb\n"]);
  stream.writableLength = pendingBytesMax - 2;
  sink.write("c\n");
  sink.write("d\n");
  sink.flush();
  sink.flush();
  expect(written).toEqual(["a\nb\n", "c\n"]);
  expect(dropped).toBe(1);
});
