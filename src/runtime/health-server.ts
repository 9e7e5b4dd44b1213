/** The system HTTP server of a process: `/live`, `/health`, `/metrics` and the process's own pages. */
import type { Server } from "node:http";
import { serve } from "@hono/node-server";
import { Hono } from "hono";
import { TiergridError } from "../base/errors.ts";

const timeouts = {
  headersTimeout: 10_000,
  requestTimeout: 30_000,
  connectionsCheckingInterval: 2_000,
  keepAliveTimeout: 5_000,
} as const;
const connectionsMax = 256;
const metricsContentType = "text/plain; version=0.0.4; charset=utf-8";

export interface Health {
  readonly ready: boolean;
  /** What the answer shows, e.g. why the process is not ready. */
  readonly body: Readonly<Record<string, unknown>>;
}

export interface HealthServerOptions {
  /** 0 takes a free port. */
  readonly port: number;
  readonly host: string;
  readonly livePath?: string;
  readonly healthPath?: string;
  /** False only when a restart would help; never depends on the bus or on other processes. */
  readonly live: () => boolean;
  readonly health: () => Health;
  readonly metrics: () => Promise<string>;
  /** JSON pages by path, e.g. `/pools`. */
  readonly extraRoutes?: Readonly<Record<string, () => unknown>>;
  /** Routes with methods and bodies of their own. */
  readonly app?: Hono;
}

export interface HealthServer {
  readonly port: number;
  close(): Promise<void>;
}

/** Starts the server; rejects with `config_invalid` when the port cannot be had. */
export async function startHealthServer(options: HealthServerOptions): Promise<HealthServer> {
  const { fetch } = healthApp(options);
  return new Promise((resolve, reject) => {
    const listen = { port: options.port, hostname: options.host };
    // The adapter's own `Response` would break a marker of it that is made after this call.
    const own = { overrideGlobalObjects: false, serverOptions: timeouts };
    const server = serve({ fetch, ...listen, ...own }, ({ port }) => {
      resolve({ port, close: () => closeServer(server) });
    }) as Server;
    server.maxConnections = connectionsMax;
    server.once("error", (cause) => {
      const where = `${options.host}:${options.port}`;
      reject(new TiergridError("config_invalid", `cannot listen on ${where}: ${cause.message}`));
    });
  });
}

/** The routes without a socket, for tests and for processes that have a server of their own. */
export function healthApp(options: Omit<HealthServerOptions, "port" | "host">): Hono {
  const app = new Hono();
  app.get(options.livePath ?? "/live", (context) => {
    const live = options.live();
    return context.json({ status: live ? "live" : "dead" }, live ? 200 : 503);
  });
  app.get(options.healthPath ?? "/health", (context) => {
    const { ready, body } = options.health();
    return context.json({ status: ready ? "ready" : "notready", ...body }, ready ? 200 : 503);
  });
  app.get("/metrics", async (context) =>
    context.body(await options.metrics(), 200, { "content-type": metricsContentType }),
  );
  for (const [path, page] of Object.entries(options.extraRoutes ?? {})) {
    app.get(path, (context) => context.json(page() as object));
  }
  if (options.app) app.route("/", options.app);
  app.onError((cause, context) => context.json({ error: cause.message }, 500));
  return app;
}

function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
