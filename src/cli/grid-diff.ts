/** `tiergrid grid diff`: what another config would change, in cells, settings and requests. */
import { TiergridError } from "../base/errors.ts";
import type { Given } from "../base/flags.ts";
import { childPointer } from "../config/config-fault.ts";
import { canonicalJson, type PoolConfig, type RolePools } from "../config/pool-config.ts";
import { isFileObject, isLatency, type Json, mappingKey } from "../config/pool-config-keys.ts";
import {
  type ChangedRegion,
  changedRegions,
  movedTraffic,
  type RegionSide,
  type TrafficMove,
} from "../core/grid-diff.ts";
import { type TrafficRequest, tokensOf } from "../core/grid-traffic.ts";
import type { gridDiffFlags } from "./flags-grid.ts";
import { jsonText, loadGrid, type Print, percentText } from "./grid-file.ts";
import { trafficRequests } from "./grid-requests.ts";

/** Lines of changed regions that are shown as text; JSON has all. */
const shownRegionsMax = 40;

export interface RoleDiff {
  readonly before: RolePools;
  readonly after: RolePools;
  readonly regions: readonly ChangedRegion[];
  readonly traffic: { readonly requests: number; readonly tokens: number } | undefined;
  readonly moves: readonly TrafficMove[];
}

export interface SettingChange {
  /** Into the normal form of the configs. */
  readonly pointer: string;
  /** null = not there. */
  readonly before: Json;
  readonly after: Json;
}

/** Prints the differences; answers 0. */
export async function runGridDiff(
  { options, operands }: Given<typeof gridDiffFlags>,
  print: Print,
): Promise<number> {
  const { config: before } = await loadGrid(operands[0], options);
  const { config: after } = await loadGrid(operands[1], options);
  const diffs = diffRoles(before, after, await trafficRequests(options));
  const settings = changedSettings(before.normal, after.normal);
  if (options.json) {
    const versions = { before: before.version, after: after.version };
    print(jsonText({ ...versions, settings, roles: diffs.map(diffJson) }));
  } else {
    print(`config ${before.version} to ${after.version}\n`);
    for (const { pointer, ...sides } of settings) {
      print(`  ${pointer}: ${canonicalJson(sides.before)} to ${canonicalJson(sides.after)}\n`);
    }
    print(diffs.map(diffText).join(""));
  }
  return 0;
}

/** Differences of every role; pools are the same when their namespaces are. */
export function diffRoles(
  before: PoolConfig,
  after: PoolConfig,
  requests?: readonly TrafficRequest[],
): RoleDiff[] {
  return before.roles.map((own) => {
    const other = after.roles.find(({ role }) => role === own.role);
    if (!other) {
      const message = `cannot compare ${before.mode} mode with ${after.mode} mode`;
      throw new TiergridError("config_invalid", message);
    }
    const pair = {
      before: own.grid,
      after: other.grid,
      isSame: (from: number, to: number) =>
        own.pools[from]?.namespace === other.pools[to]?.namespace,
    };
    const tokens = requests?.reduce((sum, request) => sum + tokensOf(own.role, request), 0);
    return {
      before: own,
      after: other,
      regions: changedRegions(pair),
      traffic: requests && { requests: requests.length, tokens: tokens ?? 0 },
      moves: requests ? movedTraffic(pair, requests) : [],
    };
  });
}

/** Every leaf but those of the mappings that differs, by pointer. */
export function changedSettings(before: Json, after: Json, pointer = ""): SettingChange[] {
  if (!isFileObject(before) || !isFileObject(after)) {
    const same = canonicalJson(before) === canonicalJson(after);
    return same ? [] : [{ pointer, before, after }];
  }
  const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  const mappings = (["prefill", "decode", "agg"] as const).map(mappingKey);
  return keys
    .filter((key) => !mappings.includes(key))
    .flatMap((key) =>
      changedSettings(
        (before[key] ?? null) as Json,
        (after[key] ?? null) as Json,
        childPointer(pointer, key),
      ),
    );
}

/** For people: regions, then what moves. */
export function diffText({ before, after, regions, traffic, moves }: RoleDiff): string {
  const names = (from: number, to: number): string =>
    `${before.pools[from]?.namespace} to ${after.pools[to]?.namespace}`;
  const shown = regions.slice(0, shownRegionsMax);
  const lines = shown.map(
    ({ sides, from, to }) => `  ${sides.map(sideText).join(", ")}: ${names(from, to)}`,
  );
  const more = regions.length - shown.length;
  if (more > 0) lines.push(`  and ${more} more`);
  if (traffic) {
    if (moves.length === 0) lines.push(`  none of ${traffic.requests} requests moves`);
    for (const { from, to, requests, tokens } of moves) {
      const share = percentText(requests, traffic.requests);
      const tokenShare = percentText(tokens, traffic.tokens);
      lines.push(`  ${share} of the requests, ${tokenShare} of the tokens: ${names(from, to)}`);
    }
  }
  const count = regions.length === 1 ? "1 region changes" : `${regions.length} regions change`;
  return `${[`${before.role}: ${count}`, ...lines].join("\n")}\n`;
}

function sideText({ axis, low, high }: RegionSide): string {
  const unit = isLatency(axis) ? " ms" : "";
  if (low === null) return high === null ? `any ${axis}` : `${axis} < ${round(high)}${unit}`;
  if (high === null) return `${axis} >= ${round(low)}${unit}`;
  return `${axis} ${round(low)} .. ${round(high)}${unit}`;
}

/** For programs. */
export function diffJson({ before, after, regions, traffic, moves }: RoleDiff): object {
  const named = <Change extends { readonly from: number; readonly to: number }>(
    change: Change,
  ): object => ({
    ...change,
    from: before.pools[change.from]?.namespace,
    to: after.pools[change.to]?.namespace,
  });
  return {
    role: before.role,
    regions: regions.map(named),
    ...(traffic && { traffic, moves: moves.map(named) }),
  };
}

function round(value: number): number {
  return Number(value.toPrecision(6));
}
