import { expect, it } from "vitest";
import { busyThresholdsJson, updateBusyThresholds } from "../../src/config/busy-thresholds.ts";
import { noBusyThresholds } from "../../src/core/worker-roster.ts";

it("changes the given thresholds, keeps the others, and null switches one off", () => {
  const first = updateBusyThresholds(noBusyThresholds, {
    model: "m",
    active_decode_blocks_threshold: 0.5,
    active_prefill_tokens_threshold: 100,
  });
  const thresholds = first.ok ? first.thresholds : noBusyThresholds;
  const second = updateBusyThresholds(thresholds, { active_decode_blocks_threshold: null });
  expect(second.ok && busyThresholdsJson(second.thresholds)).toEqual({
    active_decode_blocks_threshold: null,
    active_prefill_tokens_threshold: 100,
    active_prefill_tokens_threshold_frac: null,
  });
});

it("reports every bad threshold and changes nothing", () => {
  const updated = updateBusyThresholds(noBusyThresholds, {
    active_decode_blocks_threshold: 1.1,
    active_prefill_tokens_threshold: 1.5,
    active_prefill_tokens_threshold_frac: "2",
  });
  const pointers = updated.ok ? [] : updated.faults.map(({ pointer }) => pointer);
  expect(pointers).toEqual([
    "/active_decode_blocks_threshold",
    "/active_prefill_tokens_threshold",
    "/active_prefill_tokens_threshold_frac",
  ]);
});
