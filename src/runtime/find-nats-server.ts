/**
 * A `nats-server` binary on a machine that may have none. In this order: `NATS_SERVER_BIN`, `PATH`,
 * the cache directory, the distribution's package unpacked without root, the official release
 * checked by its sha256. The last two fill the cache and need `allowDownload`.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  access,
  chmod,
  constants,
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  rename,
  rm,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import type { Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";

export interface FindOptions {
  /** Where an unpacked binary is kept, e.g. `.cache/nats-server`. */
  readonly cacheDir: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Told in one line what is tried and why it did not work. */
  readonly onProgress: (line: string) => void;
  readonly allowDownload: boolean;
  readonly clock: Clock;
  /** How a release is fetched; the default is `fetch`. */
  readonly download?: (url: string, signal: AbortSignal) => Promise<Uint8Array>;
}

/** Checksums as pinned by the project's own image recipes (nats-io/nats-docker, 2.12.x/alpine). */
export const officialRelease = {
  version: "2.12.15",
  sha256: {
    x64: "58ab8131f819263897e2fc38e503e1b755b63bcafeecc7d12582487df48ca15e",
    arm64: "b724db99fefbf8f5c808baa82819ee50350aee9734017e4a478f7e545cef3ab6",
  },
} as const;

const commandMs = 60_000;
const downloadMs = 120_000;
const run = promisify(execFile);

/** Path of a binary that answers `--version`, or undefined after one line with the manual ways. */
export async function findNatsServer(options: FindOptions): Promise<string | undefined> {
  const named = options.env["NATS_SERVER_BIN"];
  if (named !== undefined && named !== "") {
    if (await works(named)) return named;
    throw new TiergridError("config_invalid", `NATS_SERVER_BIN=${named} is not a nats-server`);
  }
  const cached = join(options.cacheDir, "nats-server");
  for (const binary of [...onPath(options.env), cached]) if (await works(binary)) return binary;
  if (options.allowDownload && process.platform === "linux") {
    for (const unpack of [unpackDistributionPackage, unpackOfficialRelease]) {
      const error = await inTemporaryDirectory((dir) => unpack(options, dir, cached));
      if (error === undefined && (await works(cached))) return cached;
      options.onProgress(error ?? `${cached} does not run on this machine`);
    }
  }
  options.onProgress(
    "no nats-server found: install the package nats-server, put a binary on PATH, " +
      "or set NATS_SERVER_BIN (or NATS_URL for a running server)",
  );
  return undefined;
}

function onPath(env: FindOptions["env"]): string[] {
  const directories = (env["PATH"] ?? "").split(delimiter).filter((dir) => dir !== "");
  return directories.map((dir) => join(dir, "nats-server"));
}

async function works(binary: string): Promise<boolean> {
  try {
    await access(binary, constants.X_OK);
    const { stdout } = await run(binary, ["--version"], { timeout: commandMs });
    return stdout.startsWith("nats-server");
  } catch {
    return false;
  }
}

/** Runs `unpack` in a directory that goes afterwards; answers what went wrong. */
async function inTemporaryDirectory(
  unpack: (dir: string) => Promise<void>,
): Promise<string | undefined> {
  const dir = await mkdtemp(join(tmpdir(), "tiergrid-nats-"));
  try {
    await unpack(dir);
    return undefined;
  } catch (error) {
    return error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function unpackDistributionPackage(
  options: FindOptions,
  dir: string,
  target: string,
): Promise<void> {
  options.onProgress("unpacking the distribution's nats-server package");
  // apt's unprivileged download user cannot enter a directory made with mode 0700.
  await chmod(dir, 0o755);
  await run("apt-get", ["download", "nats-server"], { cwd: dir, timeout: commandMs });
  const file = (await readdir(dir)).find((name) => name.endsWith(".deb"));
  if (file === undefined) throw new TiergridError("not_found", "apt-get left no package file");
  await run("dpkg", ["-x", file, "."], { cwd: dir, timeout: commandMs });
  for (const place of ["usr/sbin/nats-server", "usr/bin/nats-server"]) {
    if (await works(join(dir, place))) return install(join(dir, place), target);
  }
  throw new TiergridError("not_found", `${file} holds no binary that runs here`);
}

async function unpackOfficialRelease(
  options: FindOptions,
  dir: string,
  target: string,
): Promise<void> {
  const { version, sha256 } = officialRelease;
  const arch = process.arch;
  if (arch !== "x64" && arch !== "arm64") {
    throw new TiergridError("not_found", `no checksum is pinned for ${arch}`);
  }
  const name = `nats-server-v${version}-linux-${arch === "x64" ? "amd64" : "arm64"}`;
  const url = `https://github.com/nats-io/nats-server/releases/download/v${version}/${name}.tar.gz`;
  options.onProgress(`downloading ${url}`);
  const abort = new AbortController();
  const cancel = options.clock.after(downloadMs, () => abort.abort());
  const bytes = await (options.download ?? download)(url, abort.signal).finally(cancel);
  const found = createHash("sha256").update(bytes).digest("hex");
  if (found !== sha256[arch]) {
    const message = `${name}.tar.gz: expected sha256 ${sha256[arch]}, got ${found}`;
    throw new TiergridError("config_invalid", message);
  }
  await writeFile(join(dir, "release.tar.gz"), bytes);
  await run("tar", ["-xzf", "release.tar.gz"], { cwd: dir, timeout: commandMs });
  await install(join(dir, name, "nats-server"), target);
}

async function download(url: string, signal: AbortSignal): Promise<Uint8Array> {
  const response = await fetch(url, { signal });
  if (!response.ok) throw new TiergridError("not_found", `${url} answered ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Copies beside the target and renames, so that two processes never see half a binary. */
async function install(binary: string, target: string): Promise<void> {
  const part = `${target}.${process.pid}.part`;
  await mkdir(join(target, ".."), { recursive: true });
  await copyFile(binary, part);
  await chmod(part, 0o755);
  await rename(part, target);
}
