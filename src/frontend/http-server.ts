/** The HTTP server: limits against slow or greedy clients, and a close that lets answers finish. */
import type { Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { createAdaptorServer } from "@hono/node-server";
import { sleep } from "../base/clock.ts";
import { toTiergridError } from "../base/errors.ts";
import type { FrontendParts } from "./frontend-parts.ts";

export interface HttpServer {
  /** `http://host:port`. */
  readonly url: string;
  /** Stops listening, lets running answers end for `gracefulShutdownMs`, then ends them. */
  close(): Promise<void>;
}

export interface ServedFrontend {
  readonly parts: FrontendParts;
  readonly drain: () => void;
  readonly inflight: () => number;
  readonly abortAll: () => void;
}

/** Node's own defaults (60 s, 300 s, 30 s, none) let slow clients sit. */
const serverOptions = {
  headersTimeout: 10_000,
  requestTimeout: 30_000,
  connectionsCheckingInterval: 2_000,
  keepAliveTimeout: 5_000,
  maxHeaderSize: 16_384,
} as const;
const drainPollMs = 20;
/** Time for terminal events to reach the clients. */
const lastWordsMs = 500;

type Fetch = Parameters<typeof createAdaptorServer>[0]["fetch"];

/** Listens on `address`; throws `config_invalid` when it cannot. */
export async function startHttpServer(
  fetch: Fetch,
  address: { readonly host: string; readonly port: number },
  frontend: ServedFrontend,
): Promise<HttpServer> {
  const { clock, settings } = frontend.parts;
  const server = createAdaptorServer({ fetch, serverOptions }) as Server;
  server.maxConnections = settings.connectionsMax;
  await listening(server, address);
  const { port } = server.address() as AddressInfo;
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  const open = new Set<ServerResponse>();
  server.on("request", (_incoming, outgoing: ServerResponse) => {
    open.add(outgoing);
    outgoing.once("close", () => open.delete(outgoing));
  });
  const quietWithin = async (durationMs: number): Promise<void> => {
    const untilMs = clock.nowMs() + durationMs;
    while ((frontend.inflight() > 0 || open.size > 0) && clock.nowMs() < untilMs) {
      await sleep(clock, drainPollMs);
    }
  };
  return {
    url: `http://${host}:${port}`,
    async close() {
      frontend.drain();
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeIdleConnections();
      await quietWithin(settings.gracefulShutdownMs);
      frontend.abortAll();
      await quietWithin(lastWordsMs);
      server.closeAllConnections();
      await closed;
    },
  };
}

async function listening(
  server: Server,
  { host, port }: { readonly host: string; readonly port: number },
): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(toTiergridError(error)));
    server.listen(port, host, resolve);
  });
}
