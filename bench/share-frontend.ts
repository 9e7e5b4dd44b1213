/**
 * The frontend of the share bench: what `tiergrid global` starts beside its router, in a process of its
 * own, so that the kernel counts the two apart. `node share-frontend.js <nats url> <model>`; says
 * `ready` with its address over IPC. `BENCH_HASH_FIRST_MIN_TOKENS`: as the flag of `tiergrid global`.
 */
import { realClock } from "../src/base/clock.ts";
import { osRandom } from "../src/base/random.ts";
import { startFrontend } from "../src/frontend/start-frontend.ts";
import { loadBlockHasher } from "../src/protocol/block-hashes.ts";
import { startEchoGate } from "../src/runtime/echo-gate.ts";
import { boundedSink, createLogs, readLogFilter } from "../src/runtime/log.ts";
import { frontendMetrics, processMetrics } from "../src/runtime/metric-table.ts";
import { createMetrics } from "../src/runtime/metrics.ts";
import { connectNatsBus } from "../src/runtime/nats-bus.ts";
import { letHeapGrow } from "../src/runtime/process.ts";
import { hashFirstMinTokens } from "../src/runtime/prompt-source.ts";

letHeapGrow();
const [url = "", model = ""] = process.argv.slice(2);
const [clock, random] = [realClock, osRandom];
const bus = await connectNatsBus({ servers: [url], role: "fe", clock, random, failFast: true });
const filter = readLogFilter("error");
if (!filter) throw new Error("no log filter");
const minTokens = Number(process.env["BENCH_HASH_FIRST_MIN_TOKENS"] ?? hashFirstMinTokens);
const sink = boundedSink(process.stderr, clock, () => {});
const frontend = startFrontend({
  ...{ bus, clock, random, model },
  gate: startEchoGate(bus, clock),
  log: createLogs({ filter, format: "text", clock, sink })("frontend"),
  metrics: createMetrics({ ...frontendMetrics, ...processMetrics }),
  acceptTimeoutMs: 5_000,
  blockHasher: await loadBlockHasher(),
  settings: { hashFirstMinTokens: minTokens },
});
const server = await frontend.http.listen({ host: "127.0.0.1", port: 0 });
for (const ending of ["disconnect", "SIGTERM"]) process.on(ending, () => process.exit(0));
process.send?.({ type: "ready", url: server.url });
