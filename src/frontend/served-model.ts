/** What the frontend knows about models; discovery implements it, tests write it by hand. */
import type { Phase } from "../protocol/requests.ts";
import type { CallRequest } from "../runtime/owner-request.ts";

export interface ServedModel {
  readonly name: string;
  /** Prompt and output tokens together, at most. */
  readonly contextLength: number;
  /** Tokens per KV block. */
  readonly blockSize: number;
  readonly mode: "disagg" | "agg";
  /** False while the model is registered but nothing can serve it. */
  readonly ready: boolean;
  /** Seconds since the Unix epoch. */
  readonly created: number;
}

export interface ModelDirectory {
  find(name: string): ServedModel | undefined;
  list(): readonly ServedModel[];
  /** How to reach a router for a phase; the function skips instances that failed. */
  route(phase: Phase): CallRequest["route"];
}
