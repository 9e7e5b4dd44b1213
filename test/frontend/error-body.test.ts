import { expect, it } from "vitest";
import { errorTable, isErrorCode, TiergridError } from "../../src/base/errors.ts";
import { mulberry32 } from "../../src/base/random.ts";
import { errorAnswer, errorStatus } from "../../src/frontend/error-body.ts";

const options = { overloadStatus: 529, random: () => 0 };

it("carries the fault in the flat and in the nested form", () => {
  const error = new TiergridError("model_not_found", "Model not found", { param: "model" });
  expect(errorAnswer(error, options)).toEqual({
    status: 404,
    headers: {},
    body: {
      message: "Model not found",
      type: "Not Found",
      code: 404,
      details: {},
      error: {
        message: "Model not found",
        type: "invalid_request_error",
        param: "model",
        code: "model_not_found",
      },
    },
  });
});

it("names overload by its own phrase and keeps Service Unavailable for 503", () => {
  const error = new TiergridError("queue_rejected", "queue is full");
  expect(errorAnswer(error, options).body.type).toBe("Overloaded");
  expect(errorAnswer(error, { ...options, overloadStatus: 503 }).body).toMatchObject({
    type: "Service Unavailable",
    code: 503,
    error: { code: "overloaded", type: "overloaded_error" },
  });
});

it("tells every overloaded or unavailable caller when to come back, with jitter", () => {
  const random = mulberry32(7);
  for (const code of Object.keys(errorTable).filter(isErrorCode)) {
    const { errorType } = errorTable[code];
    const error = new TiergridError(code, "x", { retry_after_ms: 2000 });
    const { headers, body } = errorAnswer(error, { overloadStatus: 529, random });
    if (errorType !== "overload" && errorType !== "unavailable") {
      expect(headers).not.toHaveProperty("retry-after");
      continue;
    }
    const waitMs = Number(headers["retry-after-ms"]);
    expect(waitMs).toBeGreaterThanOrEqual(2000);
    expect(waitMs).toBeLessThanOrEqual(2500);
    expect(headers["retry-after"]).toBe(waitMs === 2000 ? "2" : "3");
    expect(body.details["retry_after_ms"]).toBe(waitMs);
  }
});

it.each([0, -5, Number.NaN, Number.POSITIVE_INFINITY, "9", undefined])(
  "waits one second when the refusing side says %s",
  (retry_after_ms) => {
    const error = new TiergridError("no_endpoints", "x", { retry_after_ms });
    expect(errorAnswer(error, options).headers).toEqual({
      "retry-after": "1",
      "retry-after-ms": "1000",
    });
  },
);

it("asks SDKs not to repeat where a repeat only adds load", () => {
  const repeated = (code: "internal_error" | "not_implemented" | "deadline_exceeded") =>
    errorAnswer(new TiergridError(code, "x"), options).headers["x-should-retry"];
  expect(repeated("internal_error")).toBe("false");
  expect(repeated("not_implemented")).toBe("false");
  expect(repeated("deadline_exceeded")).toBe("false");
});

it("shows neither the message of a bug nor inner details", () => {
  const error = new TiergridError("internal_error", "x is not a function", { subject: "tg.w.1" });
  const { body } = errorAnswer(error, options);
  expect(JSON.stringify(body)).not.toMatch(/not a function|tg\.w/);
});

it("answers every code with an error status", () => {
  for (const code of Object.keys(errorTable).filter(isErrorCode)) {
    expect(errorStatus(code, 529)).toBeGreaterThanOrEqual(400);
  }
});
