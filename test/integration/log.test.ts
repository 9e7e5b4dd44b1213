import { spawn } from "node:child_process";
import { once } from "node:events";
import { expect, it, onTestFinished } from "vitest";

/** Compiled, as it ships: writes 40 MB of lines to a stderr that nobody reads, then reports. */
const program = `
  import { createLogs, readLogFilter, boundedSink } from "./dist/runtime/log.js";
  import { realClock } from "./dist/base/clock.js";
  let dropped = 0;
  const sink = boundedSink(process.stderr, realClock, () => { dropped += 1; });
  const filter = readLogFilter("info");
  const log = createLogs({ filter, format: "json", clock: realClock, sink })("test");
  for (let line = 0; line < 40_000; line++) log.info("x".repeat(1000), { line });
  setTimeout(() => {
    process.stdout.write("alive " + dropped);
    sink.flush();
    process.exit(0);
  }, 50);
`;

it("drops and counts lines instead of waiting for a reader of stderr", async () => {
  const args = ["--input-type=module", "-e", program];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  let output = "";
  child.stdout.on("data", (chunk) => {
    output += chunk;
  });
  // One that hangs fails with what it said, not by the test's own limit.
  const limit = setTimeout(() => child.kill("SIGKILL"), 30_000);
  const [code] = await once(child, "exit");
  clearTimeout(limit);
  expect([code, output]).toEqual([0, expect.stringMatching(/^alive /)]);
  const dropped = Number(/^alive (\d+)$/.exec(output)?.[1]);
  expect(dropped).toBeGreaterThan(30_000);
  expect(dropped).toBeLessThan(40_000);
});
