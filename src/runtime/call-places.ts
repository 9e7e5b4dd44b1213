/** The workers that took an attempt of one call, and the cancels sent to them. */
import { encodeControl } from "../protocol/stream-control.ts";
import type { AcceptedFrame } from "../protocol/stream-frames.ts";
import type { OwnerShared } from "./owner-request.ts";

export interface Place {
  readonly inst: string;
  readonly control: string;
  readonly notify: readonly string[];
  /** True when its `accepted` frame came, not only its receipt. */
  readonly announced: boolean;
}

export class CallPlaces {
  readonly #shared: OwnerShared;
  readonly #rid: string;
  readonly #byAttempt = new Map<number, Place>();
  /** Control subject of the instance asked, which passes a cancel on. */
  #dispatcher: string | undefined;

  constructor(shared: OwnerShared, rid: string) {
    this.#shared = shared;
    this.#rid = rid;
  }

  /** A new call starts: nobody has it. */
  reset(dispatcher: string | undefined): void {
    this.#byAttempt.clear();
    this.#dispatcher = dispatcher;
  }

  at(attempt: number): Place | undefined {
    return this.#byAttempt.get(attempt);
  }

  /** A receipt named the worker; its `accepted` frame says more and may have come first. */
  promised(attempt: number, { inst, control }: Pick<Place, "inst" | "control">): void {
    if (this.#byAttempt.has(attempt)) return;
    this.#byAttempt.set(attempt, { inst, control, notify: [], announced: false });
  }

  /** False when this attempt was announced before. */
  announced({ attempt, inst, control, notify }: AcceptedFrame): boolean {
    const isNew = this.#byAttempt.get(attempt)?.announced !== true;
    this.#byAttempt.set(attempt, { inst, control, notify, announced: true });
    return isNew;
  }

  /**
   * Stops the worker of one attempt. One whose worker is unknown is left to the dispatcher that made
   * it: a cancel sent there would end the whole call.
   */
  cancel(attempt: number): void {
    this.#send(this.#byAttempt.get(attempt)?.control, attempt);
  }

  /** Stops everybody who may be working on the call; `attempt` names it where no worker is known. */
  cancelAll(attempt: number): void {
    if (this.#byAttempt.size === 0) this.#send(this.#dispatcher, attempt);
    for (const known of this.#byAttempt.keys()) this.cancel(known);
  }

  #send(control: string | undefined, attempt: number): void {
    if (control === undefined) return;
    this.#shared.send(control, encodeControl({ type: "cancel", rid: this.#rid, attempt }));
  }
}
