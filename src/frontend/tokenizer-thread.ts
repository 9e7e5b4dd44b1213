/**
 * Long texts are tokenized on a thread: 275 kB take some 190 ms, in which no token of any stream
 * would move. Requests up to `inlineCharsMax` are cheaper to tokenize than to hand over.
 */
import { createRequire } from "node:module";
import { Worker } from "node:worker_threads";
import type { CancelTimer, Clock } from "../base/clock.ts";
import { TiergridError } from "../base/errors.ts";
import type { ModelTokenizer } from "./tokenizer.ts";

export interface TextEncoding {
  /**
   * Token ids of one text of a request that has `requestChars` of text in all. Throws `overloaded`
   * when the queue is full, `deadline_exceeded` after 5 s, `cancelled`.
   */
  encode(text: string, signal: AbortSignal, requestChars?: number): Promise<Uint32Array>;
  close(): Promise<void>;
}

export const inlineCharsMax = 16_384;
export const jobsMax = 64;
const jobDeadlineMs = 5000;

interface Job {
  readonly resolve: (tokens: Uint32Array) => void;
  readonly reject: (error: TiergridError) => void;
}

type ThreadAnswer = { readonly job: number } & (
  | { readonly ids: Uint32Array }
  | { readonly fault: string }
);

/**
 * The thread's whole program. As text it runs alike from sources, from `dist/` and under the test
 * runner, none of which agree on the name of a module file for a thread.
 */
const threadProgram = `
const { parentPort, workerData } = require("node:worker_threads");
const { Tokenizer } = require(workerData.library);
const tokenizer = new Tokenizer(workerData.files.tokenizer, workerData.files.config);
parentPort.on("message", ({ job, text }) => {
  try {
    const ids = Uint32Array.from(tokenizer.encode(text, { add_special_tokens: false }).ids);
    parentPort.postMessage({ job, ids }, [ids.buffer]);
  } catch (error) {
    parentPort.postMessage({ job, fault: String(error) });
  }
});
`;

/** Encodes short texts at once and long ones on one thread, started when first needed. */
export function createTextEncoding(tokenizer: ModelTokenizer, clock: Clock): TextEncoding {
  const jobs = new Map<number, Job>();
  let thread: Worker | undefined;
  let lastJob = 0;
  let closed = false;

  const failAll = (code: "internal_error" | "deadline_exceeded", message: string): void => {
    const dead = thread;
    thread = undefined;
    for (const { reject } of [...jobs.values()]) reject(new TiergridError(code, message));
    void dead?.terminate(); // Nothing waits for a thread that is given up.
  };
  const startThread = (): Worker => {
    const started = startTokenizerThread(tokenizer);
    started.on("message", (answer: ThreadAnswer) => {
      const job = jobs.get(answer.job);
      if ("ids" in answer) job?.resolve(answer.ids);
      else job?.reject(new TiergridError("internal_error", answer.fault));
    });
    started.on("error", (error) => {
      if (thread === started) failAll("internal_error", `tokenizer thread: ${error.message}`);
    });
    return started;
  };
  const enqueue = (text: string, signal: AbortSignal): Promise<Uint32Array> => {
    if (closed) throw new TiergridError("subscriber_shutdown", "the tokenizer is closed");
    if (jobs.size >= jobsMax) {
      throw new TiergridError("overloaded", `${jobsMax} texts wait for the tokenizer`);
    }
    thread ??= startThread();
    const job = ++lastJob;
    // A text that hangs the tokenizer hangs all behind it: the thread is replaced.
    const timer = clock.after(jobDeadlineMs, () =>
      failAll("deadline_exceeded", `tokenizing took more than ${jobDeadlineMs} ms`),
    );
    const result = track(jobs, job, timer, signal);
    thread.postMessage({ job, text });
    return result;
  };

  return {
    async encode(text, signal, requestChars = text.length) {
      if (requestChars <= inlineCharsMax) return tokenizer.encode(text);
      return await enqueue(text, signal);
    },
    async close() {
      closed = true;
      const open = thread;
      failAll("internal_error", "the tokenizer is closed");
      await open?.terminate();
    },
  };
}

/** A promise for the job's tokens that leaves nothing behind however it settles. */
function track(
  jobs: Map<number, Job>,
  job: number,
  cancelTimer: CancelTimer,
  signal: AbortSignal,
): Promise<Uint32Array> {
  return new Promise((resolve, reject) => {
    const settle = (): void => {
      jobs.delete(job);
      cancelTimer();
      signal.removeEventListener("abort", leave);
    };
    const leave = (): void => {
      settle();
      reject(new TiergridError("cancelled", "the caller left while its text was tokenized"));
    };
    jobs.set(job, {
      resolve: (tokens) => {
        settle();
        resolve(tokens);
      },
      reject: (error) => {
        settle();
        reject(error);
      },
    });
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave, { once: true });
  });
}

function startTokenizerThread(tokenizer: ModelTokenizer): Worker {
  const library = createRequire(import.meta.url).resolve("@huggingface/tokenizers");
  const workerData = { library, files: tokenizer.files };
  const started = new Worker(threadProgram, { eval: true, workerData });
  started.unref();
  return started;
}
