/** The program of a process that runs policies of one plan, each when it is told to. */
import { realClock } from "../../base/clock.ts";
import { type ErrorCode, toTiergridError } from "../../base/errors.ts";
import type { PolicyName } from "./policy-table.ts";
import {
  measurePolicy,
  openPlan,
  type PlanContext,
  type PolicyReport,
  type ReplayPlan,
} from "./replay-plan.ts";

export type JobOrder =
  | { readonly type: "open"; readonly plan: ReplayPlan }
  | { readonly type: "run"; readonly policy: PolicyName }
  | { readonly type: "stop" };

export type JobMessage =
  | { readonly type: "run"; readonly policy: PolicyName; readonly speed: number }
  | { readonly type: "report"; readonly policy: PolicyName; readonly report: PolicyReport }
  | { readonly type: "fault"; readonly code: ErrorCode; readonly message: string };

let context: PlanContext | undefined;

const say = (message: JobMessage): void => {
  // A parent that went away needs no answer: this process goes with it.
  if (process.connected) process.send?.(message, undefined, undefined, () => {});
};

process.once("disconnect", () => process.exit(0));
process.on("message", (order: JobOrder) => {
  try {
    obey(order);
  } catch (thrown) {
    const { code, message } = toTiergridError(thrown);
    say({ type: "fault", code, message });
  }
});

function obey(order: JobOrder): void {
  switch (order.type) {
    case "open":
      context = openPlan(order.plan);
      break;
    case "run": {
      const { policy } = order;
      if (!context) return;
      const onRun = (speed: number): void => say({ type: "run", policy, speed });
      say({ type: "report", policy, report: measurePolicy(context, policy, onRun, realClock) });
      break;
    }
    case "stop":
      process.disconnect();
      break;
  }
}
