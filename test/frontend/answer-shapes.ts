/** The parts of answers that tests read. */
export interface Unary {
  readonly choices: readonly {
    readonly index: number;
    readonly text?: string;
    readonly message?: { readonly content: string };
    readonly finish_reason: string | null;
    readonly token_ids?: readonly number[];
  }[];
  readonly usage: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details?: { readonly cached_tokens: number };
  };
  readonly nvext?: Readonly<Record<string, unknown>>;
}

export interface Failure {
  readonly message: string;
  readonly type: string;
  readonly code: number;
  readonly details: {
    readonly errors?: readonly { readonly pointer: string; readonly reason: string }[];
    readonly retry_after_ms?: number;
  };
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string;
  };
}
