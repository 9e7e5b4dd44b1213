/**
 * Names of a pool config file. Everything about a role or an axis follows from its name:
 *
 *   mode    roles             axes in mapping index order
 *   disagg  prefill           isl, ttft
 *           decode            context_length, itl
 *   agg     agg               [isl,] ttft, itl      isl only when its keys are there
 */
import type { AxisName, Role } from "../core/sla-grid.ts";

export type Mode = "disagg" | "agg";

/** A JSON object of the file; its keys are checked by the schema, not by the type. */
export type FileObject = Readonly<Record<string, unknown>>;

/** Plain data, as it is written out. */
export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: Json;
}

export const rolesOf: Readonly<Record<Mode, readonly Role[]>> = {
  disagg: ["prefill", "decode"],
  agg: ["agg"],
};

const axesOf: Readonly<Record<Role, readonly AxisName[]>> = {
  prefill: ["isl", "ttft"],
  decode: ["context_length", "itl"],
  agg: ["isl", "ttft", "itl"],
};

/** Keys whose presence begins an agg grid's ISL axis. */
const islKeys = ["isl_min", "isl_max", "isl_resolution", "isl_spacing"];

export const countKey = (role: Role): string => `num_${role}_pools`;
export const namespacesKey = (role: Role): string => `${role}_pool_dynamo_namespaces`;
export const prioritiesKey = (role: Role): string => `${role}_pool_priorities`;
export const strategyKey = (role: Role): string => `${role}_pool_selection_strategy`;
export const mappingKey = (role: Role): string => `${role}_pool_mapping`;
export const fallbacksKey = (role: Role): string => `${role}_pool_fallbacks`;
export const metadataKey = (role: Role): string => `${role}_pool_metadata`;
export const resolutionKey = (axis: AxisName): string => `${axis}_resolution`;
export const spacingKey = (axis: AxisName): string => `${axis}_spacing`;

/** Top-level keys that belong to `role`. */
export function roleKeys(role: Role): string[] {
  const lists = [namespacesKey(role), prioritiesKey(role), metadataKey(role)];
  return [countKey(role), ...lists, strategyKey(role)];
}

/** Axes of a strategy, in mapping index order. */
export function axesOfStrategy(role: Role, strategy: FileObject): readonly AxisName[] {
  const withoutIsl = role === "agg" && !islKeys.some((key) => Object.hasOwn(strategy, key));
  return withoutIsl ? axesOf.agg.slice(1) : axesOf[role];
}

/** Primary spelling of an axis bound; latency keys carry their unit. */
export function boundKey(axis: AxisName, end: "min" | "max"): string {
  return isLatency(axis) ? `${axis}_${end}_ms` : `${axis}_${end}`;
}

/** Older spelling of a latency bound; undefined for token axes. */
export function boundAlias(axis: AxisName, end: "min" | "max"): string | undefined {
  return isLatency(axis) ? `${axis}_${end}` : undefined;
}

/** The key that holds a bound in this file: the primary one wins over its alias. */
export function writtenBoundKey(strategy: FileObject, axis: AxisName, end: "min" | "max"): string {
  const primary = boundKey(axis, end);
  const alias = boundAlias(axis, end);
  const aliasOnly = !Object.hasOwn(strategy, primary) && alias && Object.hasOwn(strategy, alias);
  return aliasOnly ? alias : primary;
}

export function isLatency(axis: AxisName): boolean {
  return axis === "ttft" || axis === "itl";
}

export function isFileObject(value: unknown): value is FileObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
