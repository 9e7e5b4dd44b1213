/**
 * The one model a frontend serves, as the heartbeats of its global routers tell: known while any
 * of them is listed, ready while one of them is usable.
 */
import type { Clock } from "../base/clock.ts";
import type { Random } from "../base/random.ts";
import { controlSubject, generateSubject } from "../protocol/subjects.ts";
import type { LiveTable } from "../runtime/discovery.ts";
import type { InstanceCard } from "../runtime/instance-card.ts";
import type { Route } from "../runtime/owner-request.ts";
import type { ModelDirectory, ServedModel } from "./served-model.ts";

/** Tokens of a request when no worker of the model announces a limit. */
export const contextLengthMax = 4_194_304;

export interface ModelDirectoryOptions {
  /** Instances of kind `global`. */
  readonly table: LiveTable;
  readonly model: string;
  readonly clock: Clock;
  /** Chooses between global routers. */
  readonly random: Random;
}

export interface RouterDirectory extends ModelDirectory {
  /** Instances of usable global routers of the model. */
  routers(): readonly string[];
}

export function createModelDirectory(options: ModelDirectoryOptions): RouterDirectory {
  const created = Math.floor(options.clock.wallMs() / 1000);
  const find = (name: string): ServedModel | undefined => {
    if (name !== options.model) return undefined;
    const cards = cardsOf(options);
    const usable = cards.find(({ inst }) => options.table.isUsable(inst));
    const card = usable ?? cards[0];
    return card && servedModel(card, usable !== undefined, created);
  };
  return {
    find,
    list: () => {
      const model = find(options.model);
      return model ? [model] : [];
    },
    route: () => (avoid) => routeOf(options, avoid),
    routers: () =>
      cardsOf(options)
        .map(({ inst }) => inst)
        .filter((inst) => options.table.isUsable(inst)),
  };
}

function cardsOf({ table, model }: ModelDirectoryOptions): InstanceCard[] {
  const cards = [...table.instances()].map(({ card }) => card);
  return cards.filter((card) => card.kind === "global" && card.model === model);
}

function servedModel(card: InstanceCard, ready: boolean, created: number): ServedModel {
  return {
    name: card.model,
    contextLength: card.contextLength || contextLengthMax,
    blockSize: card.blockSize || 1,
    mode: card.role === "aggregated" ? "agg" : "disagg",
    ready,
    created,
  };
}

function routeOf(options: ModelDirectoryOptions, avoid: readonly string[]): Route | undefined {
  const { table, random } = options;
  const cards = cardsOf(options).filter(
    ({ inst }) => table.isUsable(inst) && !avoid.includes(inst),
  );
  const card = cards[Math.floor(random() * cards.length)];
  if (card === undefined) return undefined;
  const { inst, promptHashes } = card;
  return {
    inst,
    promptHashes,
    subject: generateSubject("global", inst),
    control: controlSubject("global", inst),
  };
}
