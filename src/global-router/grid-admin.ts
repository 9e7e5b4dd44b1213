/**
 * The grids of a router for operators, beside `/metrics`; each answer is that of the same question
 * on the bus (`grid-control.ts`):
 *
 *   GET  /grid/versions            in force, on trial, kept, history
 *   POST /grid/canary    {"percent", "version"?}
 *   POST /grid/promote
 *   POST /grid/rollback  {"version"?}
 *   POST /grid/reload              reads the file, whether it changed or not
 *   GET  /grid/cells?version=      measured latencies per cell
 *   POST /grid/cells     {"version"?, "reset": true}   the same, and forgets them
 */
import { Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { errorTable, TiergridError, toTiergridError } from "../base/errors.ts";
import { readJsonObject } from "../protocol/request-body.ts";
import type { ConfigWatch } from "./config-watch.ts";
import type { GridControl } from "./grid-control.ts";

const bodyBytesMax = 4096;

export function createGridAdmin(grids: GridControl, watch: Pick<ConfigWatch, "reloadNow">): Hono {
  const app = new Hono();
  app.use(
    "/grid/*",
    bodyLimit({
      maxSize: bodyBytesMax,
      onError() {
        const message = `a body has at most ${bodyBytesMax} bytes`;
        throw new TiergridError("payload_too_large", message, { max: bodyBytesMax });
      },
    }),
  );
  app.get("/grid/versions", ({ json }) => json(grids.answer({ action: "versions" }, "http")));
  for (const action of ["canary", "promote", "rollback"]) {
    app.post(`/grid/${action}`, async ({ req, json }) =>
      json(grids.answer({ ...(await bodyOf(req.raw)), action }, "http")),
    );
  }
  app.post("/grid/reload", async ({ json }) => {
    await watch.reloadNow("http");
    return json(grids.answer({ action: "versions" }, "http"));
  });
  app.get("/grid/cells", ({ req, json }) => json(grids.cells({ version: req.query("version") })));
  app.post("/grid/cells", async ({ req, json }) => json(grids.cells(await bodyOf(req.raw))));
  app.onError((thrown) => {
    const { code, message, details } = toTiergridError(thrown);
    return Response.json(
      { error: { code, message, details } },
      { status: errorTable[code].status },
    );
  });
  return app;
}

/** A JSON object, or nothing; throws `invalid_request`. */
async function bodyOf(request: Request): Promise<object> {
  const text = await request.text();
  return text.trim() === "" ? {} : readJsonObject(text, "the body");
}
