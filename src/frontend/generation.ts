/**
 * All choices of one HTTP request: each its own answer, followed until the last has finished.
 *
 * Invariants
 *   - The events end with exactly one `onDone` or `onError`, and nothing comes after it.
 *   - When one choice fails, or the caller leaves, every other choice is cancelled.
 */
import { TiergridError } from "../base/errors.ts";
import type { EndFrame, FinishReason } from "../protocol/stream-frames.ts";
import type { FinishedChoice, PublicFinishReason, Usage } from "./answer-format.ts";
import { AnswerText, type AnswerTextOptions } from "./answer-text.ts";
import { AnswerTrace } from "./answer-trace.ts";
import { type AnswerTools, type RunningAnswer, startAnswer } from "./disaggregate.ts";
import type { PreparedRequest } from "./preprocess.ts";
import type { RequestRecord } from "./request-record.ts";
import type { ServedModel } from "./served-model.ts";

export interface GenerationEvents {
  /** New text of a choice; with token ids the text may be empty. */
  onPiece(index: number, text: string, tokenIds: readonly number[]): void;
  onFinish(choice: FinishedChoice): void;
  onDone(usage: Usage): void;
  onError(error: TiergridError): void;
}

export interface GenerationOptions {
  readonly model: ServedModel;
  readonly prepared: PreparedRequest;
  readonly text: AnswerTextOptions;
  /** Response extras the caller asked for. */
  readonly extraFields: readonly string[];
  readonly deadlineAtMs: number;
  readonly record: RequestRecord;
}

export interface Generation {
  /** Sends every choice; an error may come before it returns. */
  start(): void;
  pause(): void;
  resume(): void;
  /** Cancels every choice; the events hear `error`. Idempotent. */
  abort(error: TiergridError): void;
  /** Headers that tell the route of the first choice, as far as it is known. */
  routeHeaders(): Record<string, string>;
}

interface Choice {
  readonly index: number;
  readonly prompt: number;
  readonly trace: AnswerTrace;
  readonly text: AnswerText;
  readonly controller: AbortController;
  answer: RunningAnswer | undefined;
  engineFields: Readonly<Record<string, unknown>>;
  cachedTokens: number | undefined;
  finished: boolean;
}

/** Prepares every choice; nothing is sent before `start`. */
export function createGeneration(
  options: GenerationOptions,
  tools: AnswerTools,
  events: GenerationEvents,
): Generation {
  return new GenerationRun(options, tools, events);
}

class GenerationRun implements Generation {
  readonly #options: GenerationOptions;
  readonly #tools: AnswerTools;
  readonly #events: GenerationEvents;
  readonly #choices: readonly Choice[];
  #unfinished: number;
  #over = false;

  constructor(options: GenerationOptions, tools: AnswerTools, events: GenerationEvents) {
    this.#options = options;
    this.#tools = tools;
    this.#events = events;
    this.#choices = options.prepared.choices.map(({ prompt }, index) => ({
      index,
      prompt,
      trace: new AnswerTrace(options.record),
      text: new AnswerText(options.text),
      controller: new AbortController(),
      answer: undefined,
      engineFields: {},
      cachedTokens: undefined,
      finished: false,
    }));
    this.#unfinished = this.#choices.length;
  }

  start(): void {
    for (const choice of this.#choices) {
      if (this.#over) return;
      choice.answer = this.#startChoice(choice);
    }
  }

  pause(): void {
    for (const { answer } of this.#choices) answer?.pause();
  }

  resume(): void {
    for (const { answer } of this.#choices) answer?.resume();
  }

  abort(error: TiergridError): void {
    if (this.#over) return;
    this.#over = true;
    for (const { controller } of this.#choices) controller.abort();
    this.#events.onError(error);
  }

  routeHeaders(): Record<string, string> {
    return this.#choices[0]?.trace.routeHeaders() ?? {};
  }

  #startChoice(choice: Choice): RunningAnswer | undefined {
    const prepared = this.#options.prepared.choices[choice.index];
    if (!prepared) return undefined;
    const { clock } = this.#tools;
    const { model, deadlineAtMs } = this.#options;
    const live = (): boolean => !this.#over && !choice.finished;
    return startAnswer(
      {
        model,
        body: prepared.body,
        tokens: prepared.tokens,
        deadlineAtMs,
        signal: choice.controller.signal,
        sink: {
          onAccepted: (frame, phase) => choice.trace.accepted(frame, phase, clock.nowMs()),
          onOutput: (output) => {
            if (!live()) return;
            if (output.extra) choice.engineFields = { ...choice.engineFields, ...output.extra };
            if (output.tokenIds.length > 0 || output.text) this.#output(choice, output);
          },
          onEnd: (end, cachedTokens) => {
            if (live()) this.#end(choice, end, cachedTokens);
          },
          onError: (error) => {
            if (live()) this.abort(error);
          },
        },
      },
      this.#tools,
    );
  }

  #output(choice: Choice, output: { readonly tokenIds: readonly number[]; text?: string }): void {
    const piece = choice.text.push(output);
    const tokens = piece.tokenIds.length;
    const gapMs = choice.trace.output(tokens, this.#tools.clock.nowMs());
    this.#options.record.output(tokens, gapMs);
    this.#events.onPiece(choice.index, piece.text, piece.tokenIds);
    if (piece.stoppedBy === undefined) return;
    this.#finish(choice, "stop", piece.stoppedBy);
    choice.controller.abort();
  }

  #end(choice: Choice, end: EndFrame, cachedTokens: number | undefined): void {
    const reason = publicReason(end.finishReason);
    if (reason === undefined) {
      this.abort(new TiergridError("engine_error", "the engine cancelled the request"));
      return;
    }
    choice.cachedTokens = cachedTokens;
    const rest = choice.text.end();
    if (rest.text !== "") this.#events.onPiece(choice.index, rest.text, []);
    const stopped = rest.stoppedBy !== undefined;
    this.#finish(choice, stopped ? "stop" : reason, rest.stoppedBy ?? end.stopReason);
  }

  #finish(
    choice: Choice,
    finishReason: PublicFinishReason,
    stopReason: string | number | undefined,
  ): void {
    const { engineFields, index, trace } = choice;
    const nowMs = this.#tools.clock.nowMs();
    const nvext = trace.extras(this.#options.extraFields, { nowMs, stopReason, engineFields });
    choice.finished = true;
    this.#unfinished--;
    this.#events.onFinish({ index, finishReason, nvext });
    if (this.#unfinished > 0 || this.#over) return;
    this.#over = true;
    this.#events.onDone(this.#usage());
  }

  #usage(): Usage {
    const promptTokens = this.#options.prepared.promptTokens;
    const completionTokens = this.#choices.reduce((sum, choice) => sum + choice.text.tokens, 0);
    const cachedTokens = this.#cachedTokens();
    if (cachedTokens !== undefined) this.#options.record.cached(cachedTokens);
    return {
      prompt_tokens: promptTokens,
      completion_tokens: completionTokens,
      total_tokens: promptTokens + completionTokens,
      ...(cachedTokens !== undefined && { prompt_tokens_details: { cached_tokens: cachedTokens } }),
    };
  }

  /** Each prompt counts once, with its first choice; unknown when one engine was silent. */
  #cachedTokens(): number | undefined {
    let sum = 0;
    let prompt = -1;
    for (const choice of this.#choices) {
      if (choice.prompt === prompt) continue;
      prompt = choice.prompt;
      if (choice.cachedTokens === undefined) return undefined;
      sum += choice.cachedTokens;
    }
    return sum;
  }
}

/** `cancelled` is never a success: the caller did not ask for it. */
function publicReason(reason: FinishReason): PublicFinishReason | undefined {
  switch (reason) {
    case "eos":
    case "stop":
      return "stop";
    case "length":
      return "length";
    case "content_filter":
      return "content_filter";
    case "cancelled":
      return undefined;
  }
}
