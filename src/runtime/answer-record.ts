/** What an owner measured of one answer, for the `closed` notice at its end. */
import type { ClosedNotice } from "../protocol/notices.ts";
import type { HopDecision } from "../protocol/requests.ts";
import { ItlRecorder } from "./itl-recorder.ts";

export class AnswerRecord {
  readonly #startMs: number;
  readonly #decisionIds: Set<string>;
  readonly #itl = new ItlRecorder();
  #ttftMs: number | undefined;
  #tokenMs = 0;

  constructor(startMs: number, priorDecisionIds: readonly string[] = []) {
    this.#startMs = startMs;
    this.#decisionIds = new Set(priorDecisionIds);
  }

  decided(decisions: readonly HopDecision[]): void {
    for (const decision of decisions) this.#decisionIds.add(decision.decision_id);
  }

  /** `tokens` more came together. */
  output(tokens: number, nowMs: number): void {
    if (tokens === 0) return;
    if (this.#ttftMs === undefined) this.#ttftMs = nowMs - this.#startMs;
    else this.#itl.observe(nowMs - this.#tokenMs, tokens);
    this.#tokenMs = nowMs;
  }

  closed(
    fields: Pick<ClosedNotice, "rid" | "attempt" | "outcome" | "output_tokens">,
  ): ClosedNotice {
    const measured =
      this.#ttftMs === undefined ? {} : { ttft_ms: this.#ttftMs, itl: this.#itl.summary() };
    return { type: "closed", ...fields, ...measured, decision_ids: [...this.#decisionIds] };
  }
}
