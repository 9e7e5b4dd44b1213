import { expect, it } from "vitest";
import { type Health, healthApp, startHealthServer } from "../../src/runtime/health-server.ts";

const parts = {
  live: () => true,
  health: (): Health => ({ ready: false, body: { waiting_for: ["bus"] } }),
  metrics: async () => "up 1\n",
  extraRoutes: {
    "/pools": () => [{ pool: "fast" }],
    "/broken": () => {
      throw new Error("no pools yet");
    },
  },
};

it("answers live, health, metrics and the process's own pages", async () => {
  const app = healthApp(parts);
  const live = await app.request("/live");
  expect([live.status, await live.json()]).toEqual([200, { status: "live" }]);
  const health = await app.request("/health");
  expect(health.status).toBe(503);
  expect(await health.json()).toEqual({ status: "notready", waiting_for: ["bus"] });
  const metrics = await app.request("/metrics");
  expect(metrics.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
  expect(await metrics.text()).toBe("up 1\n");
  expect(await (await app.request("/pools")).json()).toEqual([{ pool: "fast" }]);
  expect((await app.request("/broken")).status).toBe(500);
  expect((await app.request("/nothing")).status).toBe(404);
});

it("answers 503 on /live when the process asks for a restart, and moves the paths", async () => {
  const app = healthApp({ ...parts, live: () => false, livePath: "/l", healthPath: "/h" });
  expect((await app.request("/l")).status).toBe(503);
  expect((await app.request("/h")).status).toBe(503);
  expect((await app.request("/live")).status).toBe(404);
});

it("takes a free port, reports it, refuses one in use, and closes", async () => {
  const server = await startHealthServer({ ...parts, port: 0, host: "127.0.0.1" });
  expect(server.port).toBeGreaterThan(0);
  const url = `http://127.0.0.1:${server.port}/metrics`;
  expect(await (await fetch(url)).text()).toBe("up 1\n");
  await expect(
    startHealthServer({ ...parts, port: server.port, host: "127.0.0.1" }),
  ).rejects.toMatchObject({ code: "config_invalid" });
  await server.close();
  await expect(fetch(url)).rejects.toThrow();
});
