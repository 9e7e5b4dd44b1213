/** The policies of a plan one after the other, or several at once in processes of their own. */
import { fork } from "node:child_process";
import { realClock } from "../../base/clock.ts";
import { TiergridError, toTiergridError } from "../../base/errors.ts";
import type { PolicyName } from "./policy-table.ts";
import type { JobMessage, JobOrder } from "./replay-job-process.ts";
import { measurePolicy, openPlan, type PolicyReport, type ReplayPlan } from "./replay-plan.ts";

export const jobsMax = 64;

export interface JobWatch {
  /** A run of `policy` begins. */
  readonly onRun: (policy: PolicyName, speed: number) => void;
  readonly onDone: (policy: PolicyName) => void;
}

const source = new URL("./replay-job-process.ts", import.meta.url);
/** In a build both files end in `.js`. */
const program = import.meta.url.endsWith(".ts")
  ? source
  : new URL(source.href.replace(/\.ts$/, ".js"));

/** Reports in the order of the plan's policies, whatever `jobs` is. */
export async function runPlan(
  plan: ReplayPlan,
  jobs: number,
  watch: JobWatch,
): Promise<ReadonlyMap<PolicyName, PolicyReport>> {
  const found = new Map<PolicyName, PolicyReport>();
  const done = (policy: PolicyName, report: PolicyReport): void => {
    found.set(policy, report);
    watch.onDone(policy);
  };
  const processes = Math.min(jobs, plan.policies.length, jobsMax);
  if (processes <= 1) {
    const context = openPlan(plan);
    for (const policy of plan.policies) {
      const onRun = (speed: number): void => watch.onRun(policy, speed);
      done(policy, measurePolicy(context, policy, onRun, realClock));
    }
  } else {
    const waiting = [...plan.policies];
    const next = (): PolicyName | undefined => waiting.shift();
    const stop = new AbortController();
    const { signal } = stop;
    const started = Array.from({ length: processes }, () =>
      runProcess(plan, next, { onRun: watch.onRun, done, signal }),
    );
    // One that fails takes the others with it.
    await Promise.all(started).finally(() => stop.abort());
  }
  return new Map(plan.policies.flatMap((policy) => entryOf(found, policy)));
}

function entryOf<Key, Value>(map: ReadonlyMap<Key, Value>, key: Key): [Key, Value][] {
  const value = map.get(key);
  return value === undefined ? [] : [[key, value]];
}

interface ProcessWatch {
  readonly onRun: JobWatch["onRun"];
  readonly done: (policy: PolicyName, report: PolicyReport) => void;
  /** Ends the process. */
  readonly signal: AbortSignal;
}

/** One process, given policies until there are none; rejects with what went wrong in it. */
function runProcess(
  plan: ReplayPlan,
  next: () => PolicyName | undefined,
  watch: ProcessWatch,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = fork(program, { serialization: "advanced", signal: watch.signal });
    let finished = false;
    const order = (): void => {
      const policy = next();
      finished = policy === undefined;
      const message: JobOrder = policy === undefined ? { type: "stop" } : { type: "run", policy };
      child.send(message);
    };
    child.on("message", (message: JobMessage) => {
      switch (message.type) {
        case "run":
          watch.onRun(message.policy, message.speed);
          break;
        case "report":
          watch.done(message.policy, message.report);
          order();
          break;
        case "fault":
          reject(new TiergridError(message.code, message.message));
          break;
      }
    });
    child.on("error", (thrown) => reject(toTiergridError(thrown)));
    child.on("exit", (code, signal) => {
      if (finished && code === 0) resolve();
      const ending = `replay: a process ended with ${code ?? signal}`;
      reject(new TiergridError("internal_error", ending));
    });
    const opening: JobOrder = { type: "open", plan };
    child.send(opening);
    order();
  });
}
