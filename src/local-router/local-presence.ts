/**
 * How the rest of the fleet sees a local router: its heartbeats, its public endpoints, its answers to
 * NATS micro tools.
 */
import type { Clock } from "../base/clock.ts";
import type { IndexMode } from "../core/kv-index.ts";
import { endpointQueue, endpointSubject } from "../protocol/subjects.ts";
import { announce, newEpoch } from "../runtime/announce.ts";
import type { Dispatcher } from "../runtime/dispatcher.ts";
import type { CardState, InstanceCard } from "../runtime/instance-card.ts";
import { startMicroService } from "../runtime/micro-service.ts";
import { type QuestionOptions, routerComponent, serveQuestions } from "./local-endpoints.ts";
import type { LocalRequest } from "./local-policy.ts";
import { answersQueryOnly } from "./query-only.ts";
import type { PoolRules } from "./route-query.ts";
import type { WorkerDirectory } from "./worker-directory.ts";

export interface PresenceOptions
  extends PoolRules,
    Omit<QuestionOptions, "service" | "rules" | "namespace" | "indexMode"> {
  /** True when the pool's KV events are followed. */
  readonly followsEvents: boolean;
  /** True when blocks are predicted from the prompts sent. */
  readonly predicts: boolean;
  readonly indexMode?: IndexMode | undefined;
  readonly endpoint: { readonly namespace: string };
  readonly version: string;
  readonly directory: WorkerDirectory;
  readonly dispatcher: Dispatcher<LocalRequest>;
  /** Times the heartbeats; absent = `clock`. */
  readonly ticks?: Clock;
}

export interface Presence {
  state(): CardState;
  /** A heartbeat at once. */
  beat(): void;
  /** Leaves the public endpoints; instance subjects go on. */
  drain(): void;
  /** Says goodbye. */
  end(): void;
}

const generate = "generate";

/** Announces the router and opens its public endpoints. */
export function startPresence(options: PresenceOptions): Presence {
  const { bus, clock, ticks = clock, random, inst, endpoint, role } = options;
  const { dispatcher, serving, version } = options;
  const { namespace } = endpoint;
  const epoch = newEpoch(random);
  let draining = false;
  const state = (): CardState => {
    if (draining) return "draining";
    return serving() ? "ready" : "starting";
  };
  const announcer = announce({
    bus,
    clock: ticks,
    random,
    card: () => cardOf(options, epoch, state()),
  });
  const description = `KV router of pool ${namespace}`;
  const identity = { name: "tiergrid-local", id: inst, version, description };
  const service = startMicroService({ bus, clock, ...identity, metadata: { namespace, role } });
  const subject = endpointSubject({ namespace, component: routerComponent, endpoint: generate });
  const counters = service.addEndpoint({ name: generate, subject });
  const eventless = options.predicts ? "approximate" : "off";
  const indexMode = options.followsEvents ? "events" : eventless;
  const subscriptions = [
    bus.subscribe(
      subject,
      (message) => {
        counters.count(0);
        if (!answersQueryOnly({ ...options, rules: options }, message)) {
          dispatcher.receive(message, role);
        }
      },
      endpointQueue,
    ),
    ...serveQuestions({ ...options, namespace, rules: options, service, indexMode }),
  ];
  const leave = (): void => {
    for (const subscription of subscriptions) subscription.unsubscribe();
    service.stop();
  };
  return {
    state,
    beat: announcer.beatNow,
    drain() {
      draining = true;
      leave();
      announcer.beatNow();
    },
    end() {
      leave();
      announcer.goodbye();
    },
  };
}

/** The pool as its router sees it: what all of its workers can do. */
function cardOf(options: PresenceOptions, epoch: string, state: CardState): InstanceCard {
  const { inst, endpoint, role, blockSize, followsEvents, directory } = options;
  const cards = [...directory.workers.values()].map(({ card }) => card);
  const hashed = cards.every(({ promptHashes }) => promptHashes !== undefined);
  const least = (values: readonly number[]): number => values.reduce((a, b) => Math.min(a, b));
  return {
    inst,
    epoch,
    kind: "local",
    namespace: endpoint.namespace,
    component: routerComponent,
    endpoint: generate,
    model: cards[0]?.model ?? "",
    role,
    workerId: inst,
    dpStart: 0,
    dpSize: 1,
    blockSize,
    totalKvBlocks: cards.reduce((sum, card) => sum + card.totalKvBlocks, 0),
    maxNumBatchedTokens:
      cards.length > 0 ? least(cards.map((card) => card.maxNumBatchedTokens)) : 0,
    contextLength: cards.length > 0 ? least(cards.map((card) => card.contextLength)) : 0,
    state,
    protocolVersions: [1],
    identityHashes: options.indexMode === "identity",
    kvEvents: followsEvents,
    promptHashes: hashed ? blockSize : undefined,
    workersReady: directory.selectableCount,
  };
}
