import { spawn } from "node:child_process";
import { once } from "node:events";
import { expect, it, onTestFinished } from "vitest";

/** Writes 40 MB of lines to a stderr that nobody reads, then reports on stdout. */
const program = `
  import { createLogs, readLogFilter, boundedSink } from "./src/runtime/log.ts";
  import { realClock } from "./src/base/clock.ts";
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
  const args = ["--import", "tsx", "--input-type=module", "-e", program];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  let output = "";
  child.stdout.on("data", (chunk) => {
    output += chunk;
  });
  const [code] = await once(child, "exit");
  expect(code).toBe(0);
  const dropped = Number(/^alive (\d+)$/.exec(output)?.[1]);
  expect(dropped).toBeGreaterThan(30_000);
  expect(dropped).toBeLessThan(40_000);
});
