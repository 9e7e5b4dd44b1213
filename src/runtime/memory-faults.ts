/**
 * Faults of the in-process bus. All can be set while it runs; every draw comes from the network's
 * seed, and every fault counts itself, so that a test can see that it happened.
 */
import type { Random } from "../base/random.ts";
import type { Bus } from "./bus.ts";
import { SubjectTable } from "./subject-table.ts";

/** What may happen to a message on its way; the last rule that matches its subject wins. */
export interface MessageFault {
  /** Subject or pattern, e.g. `tg.ev.>` or `>`. */
  readonly subject: string;
  readonly delayMinMs?: number;
  readonly delayMaxMs?: number;
  /** Probability of being lost, 0 to 1. */
  readonly loss?: number;
  /** Probability of arriving twice, 0 to 1; breaks the bus's promise, so only where asked. */
  readonly duplication?: number;
}

export interface FaultCounts {
  /** By a rule, a cut, a broker that went down or a full hold of a frozen connection. */
  readonly lost: number;
  readonly delayed: number;
  readonly duplicated: number;
  /** Kept back by a freeze. */
  readonly held: number;
}

export interface MemoryFaults {
  readonly counts: FaultCounts;
  setMessageFaults(rules: readonly MessageFault[]): void;
  /** Nothing arrives at these connections until `thaw`, then everything does, in order. */
  freeze(...buses: readonly Bus[]): void;
  thaw(...buses: readonly Bus[]): void;
  /** What these connections send or should get is lost; they notice after `staleAfterMs`. */
  cut(...buses: readonly Bus[]): void;
  heal(...buses: readonly Bus[]): void;
  /** Every connection is disconnected, what is under way is lost, subscriptions stay. */
  brokerDown(): void;
  brokerUp(): void;
}

/** How long a cut connection believes itself connected: three pings of 500 ms. */
export const staleAfterMs = 1500;

export interface Fate {
  readonly delayMs: number;
  readonly copies: number;
}

const undisturbed: Fate = { delayMs: 0, copies: 1 };

/** Draws what happens to each message. */
export class FaultDice {
  readonly counts = { lost: 0, delayed: 0, duplicated: 0, held: 0 };
  readonly #random: Random;
  #rules: SubjectTable<MessageFault> | undefined;
  #order = new Map<MessageFault, number>();

  constructor(random: Random) {
    this.#random = random;
  }

  setRules(rules: readonly MessageFault[]): void {
    this.#rules = rules.length === 0 ? undefined : new SubjectTable();
    this.#order = new Map(rules.map((rule, place) => [rule, place]));
    for (const rule of rules) this.#rules?.add(rule.subject, rule);
  }

  fateOf(subject: string): Fate {
    if (this.#rules === undefined) return undisturbed;
    let rule: MessageFault | undefined;
    for (const match of this.#rules.match(subject)) {
      if (!rule || (this.#order.get(match) ?? 0) > (this.#order.get(rule) ?? 0)) rule = match;
    }
    return rule ? this.#draw(rule) : undisturbed;
  }

  #draw(rule: MessageFault): Fate {
    const { loss = 0, duplication = 0, delayMinMs = 0 } = rule;
    const delayMaxMs = Math.max(rule.delayMaxMs ?? delayMinMs, delayMinMs);
    if (loss > 0 && this.#random() < loss) {
      this.counts.lost += 1;
      return { delayMs: 0, copies: 0 };
    }
    const twice = duplication > 0 && this.#random() < duplication;
    if (twice) this.counts.duplicated += 1;
    if (delayMaxMs === 0) return { delayMs: 0, copies: twice ? 2 : 1 };
    this.counts.delayed += 1;
    const delayMs = delayMinMs + this.#random() * (delayMaxMs - delayMinMs);
    return { delayMs, copies: twice ? 2 : 1 };
  }
}
