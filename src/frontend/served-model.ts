/** What the frontend knows about models; discovery implements it, tests write it by hand. */
import type { Phase } from "../protocol/requests.ts";

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

/** One router instance to send a request to. */
export interface RouteTarget {
  readonly inst: string;
  readonly subject: string;
}

/** The next router to try, skipping the instances in `avoid`; undefined when none is left. */
export type Route = (avoid: readonly string[]) => RouteTarget | undefined;

export interface ModelDirectory {
  find(name: string): ServedModel | undefined;
  list(): readonly ServedModel[];
  route(phase: Phase): Route;
}
