/**
 * OpenAI's forms of an answer. A stream repeats id, model and created in every chunk: they are
 * printed once, and per chunk only what is new is escaped.
 */
import type { ApiKind } from "./request-schema.ts";

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  /** Absent when the engine does not say; 0 would claim a miss. */
  readonly prompt_tokens_details?: { readonly cached_tokens: number };
}

export type PublicFinishReason = "stop" | "length" | "content_filter";

export interface FinishedChoice {
  readonly index: number;
  readonly finishReason: PublicFinishReason;
  /** Response extras the caller asked for. */
  readonly nvext: Readonly<Record<string, unknown>> | undefined;
}

export interface CollectedChoice extends FinishedChoice {
  readonly text: string;
  readonly tokenIds: readonly number[];
}

export interface AnswerIdentity {
  readonly kind: ApiKind;
  /** `chatcmpl-…` or `cmpl-…`. */
  readonly id: string;
  /** Seconds since the Unix epoch. */
  readonly created: number;
  readonly model: string;
}

export interface StreamFormat {
  /** Chat only: announces the speaker of a choice. */
  role(index: number): string;
  piece(index: number, text: string, tokenIds: readonly number[]): string;
  finish(choice: FinishedChoice): string;
  usage(usage: Usage): string;
  annotation(name: string, value: unknown): string;
}

export const doneEvent = "data: [DONE]\n\n";

/** One event with any JSON body. */
export const jsonEvent = (body: unknown): string => `data: ${JSON.stringify(body)}\n\n`;

export interface StreamFormatOptions {
  /** `usage: null` in every chunk but the last. */
  readonly includeUsage: boolean;
  readonly returnTokenIds: boolean;
}

/** Prints the chunks of one streamed answer as events. */
export function createStreamFormat(
  identity: AnswerIdentity,
  options: StreamFormatOptions,
): StreamFormat {
  const { kind, id, created, model } = identity;
  const chat = kind === "chat";
  const object = chat ? "chat.completion.chunk" : "text_completion";
  const fields = JSON.stringify({ id, object, created, model }).slice(0, -1);
  const before = `data: ${fields},"choices":[`;
  const afterChoice = options.includeUsage ? '],"usage":null' : "]";
  const after = `${afterChoice}}\n\n`;
  const choice = (index: number, content: string, reason: string): string =>
    `{"index":${index},${content},"logprobs":null,"finish_reason":${reason}`;
  const content = (text: string): string =>
    chat ? `"delta":{"content":${text}}` : `"text":${text}`;
  return {
    role: (index) =>
      chat
        ? `${before}${choice(index, '"delta":{"role":"assistant","content":""}', "null")}}${after}`
        : "",
    piece(index, text, tokenIds) {
      const ids = options.returnTokenIds ? `,"token_ids":[${tokenIds.join(",")}]` : "";
      return `${before}${choice(index, content(JSON.stringify(text)), "null")}${ids}}${after}`;
    },
    finish({ index, finishReason, nvext }) {
      const last = choice(index, chat ? '"delta":{}' : '"text":""', `"${finishReason}"`);
      const extras = nvext === undefined ? "" : `,"nvext":${JSON.stringify(nvext)}`;
      return `${before}${last}}${afterChoice}${extras}}\n\n`;
    },
    usage: (usage) => `${before}],"usage":${JSON.stringify(usage)}}\n\n`,
    annotation(name, value) {
      const annotation = JSON.stringify({ annotation: { name, value } });
      return `${before}${afterChoice},"nvext":${annotation}}\n\n`;
    },
  };
}

/** The whole answer as one JSON body. */
export function unaryBody(
  identity: AnswerIdentity,
  choices: readonly CollectedChoice[],
  usage: Usage,
  returnTokenIds: boolean,
): Readonly<Record<string, unknown>> {
  const { kind, id, created, model } = identity;
  const chat = kind === "chat";
  const nvext = choices.map((choice) => choice.nvext).find((extras) => extras !== undefined);
  return {
    id,
    object: chat ? "chat.completion" : "text_completion",
    created,
    model,
    choices: choices.map(({ index, text, tokenIds, finishReason }) => ({
      index,
      ...(chat ? { message: { role: "assistant", content: text } } : { text }),
      logprobs: null,
      finish_reason: finishReason,
      ...(returnTokenIds && { token_ids: tokenIds }),
    })),
    usage,
    ...(nvext && { nvext }),
  };
}
