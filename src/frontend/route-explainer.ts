/**
 * What the routers would do with a request, or did: the questions of a frontend to the global
 * routers of its model. Nothing is sent to a worker and nothing is booked.
 */
import { isErrorCode, TiergridError } from "../base/errors.ts";
import { type Random, randomHex128 } from "../base/random.ts";
import { encodeDispatch } from "../protocol/request-frame.ts";
import { attemptNumber, type Phase, type RequestBody } from "../protocol/requests.ts";
import { askSubject, type RouterQuestion } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";

/** Time a global router gets; it asks a local router in turn. */
export const explainTimeoutMs = 3_000;

/** Schema `tiergrid.explain/1`, as far as the frontend reads it. */
export interface RouteExplanation {
  readonly decision_id: string;
  readonly result: { readonly namespace: string | null; readonly reason: string } | null;
  readonly local: {
    readonly chosen: { readonly worker_id: string; readonly dp_rank: number } | null;
  } | null;
  readonly local_error?: string;
}

export interface ExplainedLeg {
  readonly phase: Phase;
  readonly body: RequestBody;
  readonly tokens: Uint32Array;
}

export interface RouteExplainer {
  /** Rejects with the router's own error, or that of the bus. */
  explain(leg: ExplainedLeg): Promise<RouteExplanation>;
  /** A live decision by its id, from whichever router took it; rejects with `not_found`. */
  kept(decisionId: string): Promise<RouteExplanation>;
  /** Asks one router, or all and answers per instance, a question in JSON. */
  ask(question: RouterQuestion, json: object): Promise<object>;
}

export interface ExplainerOptions {
  readonly bus: Bus;
  readonly random: Random;
  /** Instances of usable global routers of the model. */
  readonly routers: () => readonly string[];
}

export function createRouteExplainer({ bus, random, routers }: ExplainerOptions): RouteExplainer {
  const ask = async (inst: string, question: RouterQuestion, payload: Uint8Array) => {
    const subject = askSubject("global", inst, question);
    const reply = await bus.request(subject, payload, { timeoutMs: explainTimeoutMs });
    return answerOf(reply.payload);
  };
  const one = (): string => {
    const insts = routers();
    const inst = insts[Math.floor(random() * insts.length)];
    if (inst !== undefined) return inst;
    throw new TiergridError("not_ready", "no global router of the model is there");
  };
  return {
    explain: (leg) =>
      ask(one(), "explain", dispatchOf(leg, bus, random)) as Promise<RouteExplanation>,
    async kept(decisionId) {
      const question = new TextEncoder().encode(JSON.stringify({ decision_id: decisionId }));
      let failure = new TiergridError("not_found", `decision ${decisionId} is not kept`);
      for (const inst of routers()) {
        try {
          return (await ask(inst, "explain", question)) as RouteExplanation;
        } catch (thrown) {
          if (!(thrown instanceof TiergridError)) throw thrown;
          if (thrown.code !== "not_found") failure = thrown;
        }
      }
      throw failure;
    },
    ask: (question, json) => ask(one(), question, new TextEncoder().encode(JSON.stringify(json))),
  };
}

function dispatchOf({ phase, body, tokens }: ExplainedLeg, bus: Bus, random: Random): Uint8Array {
  const envelope = {
    rid: randomHex128(random),
    attempt: attemptNumber({ call: 1, global: 0, local: 0 }),
    first: 0,
    phase,
    deadlineMs: explainTimeoutMs,
    stream: { subject: `${bus.inboxPrefix}.none`, format: "json", key: 0, acks: false },
    notify: [],
    avoid: [],
    decisions: [],
  } as const;
  return encodeDispatch({ envelope, body, prompt: { type: "tokens", tokens } });
}

function answerOf(payload: Uint8Array): object {
  const answer = JSON.parse(new TextDecoder().decode(payload)) as {
    readonly error?: { readonly code: string; readonly message: string };
  };
  if (!answer.error) return answer;
  const { code, message } = answer.error;
  throw new TiergridError(isErrorCode(code) ? code : "malformed_reply", message);
}
