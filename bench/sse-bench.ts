/**
 * W1: tokens per second that one HTTP server process writes to 64 clients, `streamSSE` against our
 * writer. The server is a process of its own and the bottleneck; rates are per second of its CPU, so
 * that the readers on the other core do not count.
 */
import { type ChildProcess, fork } from "node:child_process";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { type BenchRow, median, roundsMin } from "./bench-row.ts";

const serverPath = fileURLToPath(new URL("./sse-bench-server.ts", import.meta.url));
const streams = 64;

interface Row {
  readonly id: string;
  readonly path: string;
  readonly target: string;
  readonly note: string;
}

const rows: readonly Row[] = [
  { id: "W1 SSE, 1 token a write", path: "/ours/1", target: ">= 2x", note: "64 streams" },
  { id: "W1 SSE, 4 tokens gathered", path: "/ours/4", target: ">= 6x", note: "64 streams" },
  { id: "W1 SSE, 8 tokens gathered", path: "/ours/8", target: ">= 6x", note: "64 streams" },
];

export async function run({ quick }: { quick: boolean; seed: number }): Promise<BenchRow[]> {
  const tokens = quick ? 300 : 600;
  const rounds = quick ? 3 : roundsMin;
  const server = fork(serverPath, { execArgv: ["--import", "tsx"] });
  try {
    const { port } = (await messageOf(server)) as { port: number };
    const baselines: number[] = [];
    const measured = rows.map(() => [] as number[]);
    for (let round = 0; round <= rounds; round++) {
      const baseline = await rateOf(server, port, "/baseline", tokens);
      if (round > 0) baselines.push(baseline);
      for (const [place, { path }] of rows.entries()) {
        const ours = await rateOf(server, port, path, tokens);
        if (round > 0) measured[place]?.push(ours);
      }
    }
    return rows.map(({ id, target, note }, place) => {
      const ours = measured[place] ?? [];
      const ratios = ours.map((rate, round) => rate / (baselines[round] ?? Number.NaN));
      return {
        id,
        unit: "tok/s of server CPU",
        baseline: Math.round(median(baselines)),
        ours: Math.round(median(ours)),
        ratio: median(ratios),
        target,
        note,
      };
    });
  } finally {
    server.disconnect();
  }
}

/** Tokens per second of server CPU while all streams run to their end. */
async function rateOf(
  server: ChildProcess,
  port: number,
  path: string,
  tokens: number,
): Promise<number> {
  const before = await cpuMs(server);
  const reads = Array.from({ length: streams }, () => readAll(port, `${path}?tokens=${tokens}`));
  await Promise.all(reads);
  return (streams * tokens * 1000) / ((await cpuMs(server)) - before);
}

async function cpuMs(server: ChildProcess): Promise<number> {
  server.send("cpu");
  return ((await messageOf(server)) as { cpuMs: number }).cpuMs;
}

/** Reads one answer to its end; throws when it has no end. */
function readAll(port: number, target: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let tail = Buffer.alloc(0);
    const socket = connect(port, "127.0.0.1", () => {
      socket.write(`GET ${target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`);
    });
    socket.on("data", (chunk) => {
      tail = chunk.length >= 64 ? chunk : Buffer.concat([tail, chunk]).subarray(-256);
    });
    socket.on("error", reject);
    socket.on("close", () => {
      if (tail.includes("[DONE]")) resolve();
      else reject(new Error(`${target} ended without [DONE]`));
    });
  });
}

function messageOf(child: ChildProcess): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const gone = (code: number | null): void => reject(new Error(`the server exited: ${code}`));
    child.once("exit", gone);
    child.once("message", (message) => {
      child.off("exit", gone);
      resolve(message);
    });
  });
}
