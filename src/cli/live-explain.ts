/** `tiergrid explain --nats`: what the global router that runs there would do with a request. */
import { realClock } from "../base/clock.ts";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import { osRandom, randomHex128 } from "../base/random.ts";
import type { Role } from "../core/sla-grid.ts";
import { encodeDispatch } from "../protocol/request-frame.ts";
import { attemptNumber } from "../protocol/requests.ts";
import { endpointSubject } from "../protocol/subjects.ts";
import type { Bus } from "../runtime/bus.ts";
import { connectNatsBus } from "../runtime/nats-bus.ts";
import { natsServers } from "../runtime/nats-bus-credentials.ts";
import type { ExplainOptions } from "./flags-explain.ts";

/** Two rounds of quotes take 2 s at most. */
export const answerTimeoutMs = 3_000;

/** The parts of an explanation that are shown as text. */
export interface LiveExplanation {
  readonly role: string;
  readonly config_version: string;
  readonly result: { readonly namespace: string; readonly reason: string } | null;
  readonly pools: readonly {
    readonly index: number;
    readonly namespace: string;
    readonly state: string;
    readonly workers_ready: number;
    readonly inflight: number;
  }[];
  readonly live: {
    readonly outcome: string;
    readonly quotes: readonly {
      readonly namespace: string;
      readonly outcome: string;
      readonly meets: boolean | null;
      readonly quote?: {
        readonly predicted_ttft_ms: number;
        readonly predicted_itl_ms: number;
      };
    }[];
  } | null;
  readonly notes: readonly string[];
  readonly local: {
    readonly chosen: { readonly worker_id: string; readonly overlap_blocks: number } | null;
  } | null;
  readonly local_error?: string;
}

export type LiveAnswer =
  | { readonly type: "explained"; readonly roles: readonly LiveExplanation[] }
  | { readonly type: "silent"; readonly why: string };

/** Asks once per role; `silent` when no server or no router answers. */
export async function askRouter(
  options: ExplainOptions & { readonly nats: string },
  roles: readonly Role[],
): Promise<LiveAnswer> {
  let bus: Bus | undefined;
  try {
    const access = natsServers(options.nats);
    const clock = realClock;
    bus = await connectNatsBus({ ...access, role: "ob", clock, random: osRandom, failFast: true });
    const explained: LiveExplanation[] = [];
    for (const role of roles) explained.push(await askRole(bus, options, role));
    return { type: "explained", roles: explained };
  } catch (thrown) {
    return { type: "silent", why: toTiergridError(thrown).message };
  } finally {
    await bus?.close();
  }
}

async function askRole(bus: Bus, options: ExplainOptions, role: Role): Promise<LiveExplanation> {
  const { namespace, componentName: component } = options;
  const subject = endpointSubject({ namespace, component, endpoint: "explain" });
  const reply = await bus.request(subject, questionOf(bus, options, role), {
    timeoutMs: answerTimeoutMs,
  });
  const answer = JSON.parse(new TextDecoder().decode(reply.payload)) as LiveExplanation & {
    readonly error?: { readonly message: string };
  };
  if (answer.error) throw new TiergridError("malformed_reply", answer.error.message);
  return answer;
}

/** A request that is only explained; its tokens are all 0, so that no worker has them cached. */
function questionOf(bus: Bus, options: ExplainOptions, role: Role): Uint8Array {
  const { tokens, ttftTargetMs, itlTargetMs, priority } = options;
  return encodeDispatch({
    envelope: {
      rid: randomHex128(osRandom),
      attempt: attemptNumber({ call: 1, global: 0, local: 0 }),
      first: 0,
      phase: role === "agg" ? "aggregated" : role,
      deadlineMs: answerTimeoutMs,
      stream: { subject: `${bus.inboxPrefix}.none`, format: "json", key: 0, acks: false },
      notify: [],
      avoid: [],
      decisions: [],
    },
    body: {
      router: { ttft_target: ttftTargetMs, itl_target: itlTargetMs },
      ...(priority !== null && { routing: { priority } }),
    },
    prompt: { type: "tokens", tokens: new Uint32Array(tokens) },
  });
}

/** For people: the pool, its state among the others, and the worker. */
export function liveText(explanation: LiveExplanation): string {
  const { role, result, pools, notes, local, local_error: localError } = explanation;
  const pool = result ? `pool ${result.namespace} (${result.reason})` : "no pool takes it";
  const lines = [`${role}: ${pool}, config ${explanation.config_version}`];
  for (const { index, namespace, state, workers_ready: workers, inflight } of pools) {
    lines.push(`  pool ${index} ${namespace}: ${state}, ${workers} workers, ${inflight} in flight`);
  }
  for (const quote of explanation.live?.quotes ?? []) lines.push(`  ${quoteText(quote)}`);
  if (local?.chosen) lines.push(`  worker ${local.chosen.worker_id} when nothing is cached`);
  if (localError !== undefined) lines.push(`  its local router: ${localError}`);
  for (const note of notes) lines.push(`  ${note}`);
  return `${lines.join("\n")}\n`;
}

type QuoteShown = NonNullable<LiveExplanation["live"]>["quotes"][number];

function quoteText({ namespace, outcome, meets, quote }: QuoteShown): string {
  if (!quote) return `quote ${namespace}: ${outcome}`;
  const { predicted_ttft_ms: ttft, predicted_itl_ms: itl } = quote;
  const verdict = meets ? "meets the targets" : "too late";
  return `quote ${namespace}: TTFT ${ttft.toFixed(1)} ms, ITL ${itl.toFixed(1)} ms, ${verdict}`;
}
