/** The dispatch that an owner's call sends to its first hop. */
import { encodeDispatch } from "../protocol/request-frame.ts";
import { attemptNumber, type Envelope } from "../protocol/requests.ts";
import { migratedBody } from "./migration.ts";
import type { CallRequest, OwnerShared } from "./owner-request.ts";

/** Which dispatch of which answer. */
export interface CallPlace {
  readonly rid: string;
  readonly key: number;
  readonly call: number;
  /** Tokens of the answer so far. */
  readonly made: number;
  readonly leftMs: number;
  readonly avoid: readonly string[];
}

/** `tokens`: prompt and tokens so far; `blockSize` as `PromptSource.promptFor` takes it. */
export function encodeCall(
  { inbox, prompts }: Pick<OwnerShared, "inbox" | "prompts">,
  request: Pick<CallRequest, "body" | "phase">,
  { rid, key, call, made, leftMs, avoid }: CallPlace,
  tokens: Uint32Array,
  blockSize: number | undefined,
): Uint8Array {
  const body = migratedBody(request.body, made);
  const prompt = prompts.promptFor({ rid, call, body, tokens }, blockSize);
  const envelope: Envelope = {
    rid,
    attempt: attemptNumber({ call, global: 0, local: 0 }),
    first: made,
    phase: request.phase,
    deadlineMs: Math.max(1, Math.floor(leftMs)),
    stream: { subject: inbox, format: "bundle", key, acks: true },
    ...(prompt.type === "hashes" && { promptFrom: prompts.subject }),
    notify: [],
    acceptNotice: true,
    avoid,
    decisions: [],
  };
  return encodeDispatch({ envelope, body, prompt });
}
