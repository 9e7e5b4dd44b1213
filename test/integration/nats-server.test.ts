import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, it } from "vitest";
import { realClock } from "../../src/base/clock.ts";
import { findNatsServer } from "../../src/runtime/find-nats-server.ts";
import { startNatsServer } from "../../src/runtime/nats-server.ts";
import { natsBinary, startNats } from "./nats-fixture.ts";

let dir = "";
afterEach(async () => {
  if (dir !== "") await rm(dir, { recursive: true, force: true });
  dir = "";
});
const alive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

it("starts on a free port, comes back on the same one and leaves nothing behind", async () => {
  const server = await startNats();
  try {
    const first = server.pid;
    await server.kill("SIGKILL");
    expect(alive(first)).toBe(false);
    await server.restart();
    expect(server.pid).not.toBe(first);
    expect(alive(server.pid)).toBe(true);
    const frozen = server.pid;
    await server.kill("SIGSTOP");
    expect(await readFile(`/proc/${frozen}/stat`, "utf8")).toMatch(/\) T /);
    await server.stop();
    expect(alive(frozen)).toBe(false);
  } finally {
    await server.stop();
  }
});

it("says why a server does not start", async () => {
  const binary = await natsBinary();
  const wrong = startNatsServer({ binary, clock: realClock, configText: "max_payload: no\n" });
  await expect(wrong).rejects.toThrow(/did not start on port \d+: exited with 1: .*server\.conf:7/);
  const none = startNatsServer({ binary: "/nonexistent/nats", clock: realClock });
  await expect(none).rejects.toThrow(/ENOENT/);
});

it("takes NATS_SERVER_BIN first, then PATH, and refuses a named binary that is none", async () => {
  dir = await mkdtemp(join(tmpdir(), "tiergrid-test-"));
  const binary = await natsBinary();
  const base = { cacheDir: dir, onProgress: () => {}, allowDownload: false, clock: realClock };
  expect(await findNatsServer({ ...base, env: { NATS_SERVER_BIN: binary } })).toBe(binary);
  const path = `/nonexistent:${join(binary, "..")}`;
  expect(await findNatsServer({ ...base, env: { PATH: path } })).toBe(binary);
  const named = findNatsServer({ ...base, env: { NATS_SERVER_BIN: "/bin/true", PATH: path } });
  await expect(named).rejects.toThrow("NATS_SERVER_BIN=/bin/true is not a nats-server");
});

it("names the manual ways when there is none, and never keeps a release with a wrong sum", async () => {
  dir = await mkdtemp(join(tmpdir(), "tiergrid-test-"));
  await writeFile(join(dir, "apt-get"), "#!/bin/sh\necho no network >&2\nexit 100\n", {
    mode: 0o755,
  });
  const lines: string[] = [];
  const path = process.env["PATH"];
  process.env["PATH"] = `${dir}:${path}`;
  try {
    const found = await findNatsServer({
      cacheDir: join(dir, "cache"),
      env: {},
      clock: realClock,
      onProgress: (line) => void lines.push(line),
      allowDownload: true,
      download: async () => new TextEncoder().encode("not the release"),
    });
    expect(found).toBeUndefined();
  } finally {
    process.env["PATH"] = path;
  }
  expect(lines.join("\n")).toMatch(/expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}/);
  expect(lines.at(-1)).toMatch(/NATS_SERVER_BIN/);
  expect(await readdir(dir)).toEqual(["apt-get"]);
});
