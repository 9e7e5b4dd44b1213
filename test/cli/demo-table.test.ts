import { expect, it } from "vitest";
import { createScreen, progressLine, progressTable } from "../../src/cli/demo-table.ts";
import { DemoReport } from "../../src/sim/demo-report.ts";
import type { FleetPool } from "../../src/sim/fleet-pool.ts";

function screenOn(isTTY: boolean, columns = 20) {
  const written: string[] = [];
  const screen = createScreen({ isTTY, columns, write: (text) => written.push(text) });
  return { screen, text: () => written.splice(0).join("") };
}

it("draws a table over its last form on a terminal, cut to the width", () => {
  const { screen, text } = screenOn(true);
  screen.show(["one", "a line that is longer than that"], "line");
  expect(text()).toBe("one\na line that is long\n");
  screen.show(["two"], "line");
  expect(text()).toBe("\u001b[2A\u001b[0Jtwo\n");
  screen.say("said");
  expect(text()).toBe("\u001b[1A\u001b[0Jsaid\n");
  screen.show(["three"], "line");
  screen.keep();
  screen.say("end");
  expect(text()).toBe("three\nend\n");
});

it("writes plain lines elsewhere", () => {
  const { screen, text } = screenOn(false);
  screen.show(["table"], "line");
  screen.say("said");
  expect(text()).toBe("line\nsaid\n");
});

it("shows progress, pools and figures in aligned columns", () => {
  const report = new DemoReport({
    requests: 4,
    pools: [
      { namespace: "fast", role: "prefill", workers: ["1", "2"] },
      { namespace: "bulk-decode", role: "decode", workers: ["3"] },
    ],
  });
  report.started = 3;
  report.take({
    ...{ outcome: "completed", fault: undefined, ttftMs: 80, gaps: [6, 10], mismatches: 0 },
    ...{ outputTokens: 11, promptTokens: 100, cachedTokens: 64 },
    ...{ prefillWorker: "2", decodeWorker: "3" },
  });
  const holders = [{ activeRequests: 2, cachedBlocks: 1234 }];
  const pool = (namespace: string, role: string, workers: number) =>
    ({ namespace, role, workers: Array(workers), router: { holders: () => holders } }) as unknown;
  const pools = [pool("fast", "prefill", 2), pool("bulk-decode", "decode", 1)] as FleetPool[];
  expect(progressTable(report, pools)).toEqual([
    `[########........................] ${progressLine(report)}`,
    "",
    "  pool         role     workers  requests  running  cached blocks  by worker",
    "  fast         prefill        2         1        2           1234  0 1",
    "  bulk-decode  decode         1         1        2           1234  1",
  ]);
  expect(progressLine(report)).toBe(
    "1/4  running 2  completed 1  failed 0  hit 64.0 %  TTFT 79/79 ms  ITL 6.1/6.1 ms",
  );
});
