import { expect, it } from "vitest";
import { type CancelSignal, CancelSwitch } from "../../src/base/cancel.ts";

/** Both kinds a wait may be given, each with what aborts it. */
function kinds(): readonly (readonly [CancelSignal, () => void])[] {
  const controller = new AbortController();
  const cheap = new CancelSwitch();
  return [
    [controller.signal, () => controller.abort()],
    [cheap, () => cheap.abort()],
  ];
}

it("calls each listener once, in order, and none that was removed or came late", () => {
  for (const [signal, abort] of kinds()) {
    const heard: string[] = [];
    const removed = (): void => void heard.push("removed");
    signal.addEventListener("abort", () => void heard.push("first"), { once: true });
    signal.addEventListener("abort", removed, { once: true });
    signal.addEventListener("abort", () => void heard.push("second"), { once: true });
    signal.removeEventListener("abort", removed);
    expect(signal.aborted).toBe(false);
    abort();
    abort();
    signal.addEventListener("abort", () => void heard.push("late"), { once: true });
    expect(signal.aborted).toBe(true);
    expect(heard).toEqual(["first", "second"]);
  }
});
