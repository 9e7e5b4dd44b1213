/**
 * Every subject on the bus, in one place. All stand below the constant root `tg` (inboxes: `_R`),
 * have a fixed number of tokens per kind, and every name that comes from outside is encoded.
 *
 *   tg.ep.<namespace>.<component>.<endpoint>   public endpoint, queue group "q"
 *   tg.<kind>.<inst>.gen | .ctl                one instance (w worker, local, global): work, control
 *   tg.nt.<inst>                               lifecycle notices to a dispatcher
 *   tg.hb.<kind>.<namespace>.<inst>            heartbeats
 *   tg.who                                     asks every instance for a heartbeat (cold start)
 *   tg.ev.<namespace>.<inst>.<rank>            KV events of one worker and data-parallel rank
 *   tg.evs.<namespace>.<component>.<inst>.<rank>  the same in durable mode, kept by a stream
 *   tg.ld.<namespace>.<inst>                   load samples of one worker
 *   tg.kvq.<inst>.<rank>                       a worker's KV event ring and dump
 *   tg.as.<namespace>.<component>.<endpoint>.<inst>   bookings of one local router, for its replicas
 *   tg.asq.<namespace>.<component>.<endpoint>  asks a pool's local routers for their bookings
 *   _R.<role>.<connection>.<token>             private inboxes: replies, streams, self-echo
 */
import { createHash } from "node:crypto";
import { TiergridError } from "../base/errors.ts";

export const subjectRoot = "tg";
export const inboxRoot = "_R";
/** The only queue group; used on public endpoints, as NATS micro tools expect. */
export const endpointQueue = "q";
const nameBytesMax = 1024;
export const subjectBytesMax = 512;

/** Kind of a process that serves requests, as it stands in its subjects. */
export type InstanceKind = "w" | "local" | "global";
/** Kind of a process that says it lives. */
export type HeartbeatKind = InstanceKind | "frontend";
/** Role of a connection, as it stands in its inbox prefix. */
export type BusRole = "fe" | "gl" | "lo" | "wk" | "ob";

/**
 * One subject token for any name: names of `[A-Za-z0-9_-]{1,64}` stand for themselves, others become
 * `=` and 22 characters of base64url(sha256(utf8)). Injective; no case folding or normalisation.
 * Throws `invalid_request` for empty, ill-formed or over-long (> 1,024 bytes) names.
 */
export function subjectToken(name: string): string {
  if (/^[A-Za-z0-9_-]{1,64}$/.test(name)) return name;
  if (name === "") throw new TiergridError("invalid_request", "a name must not be empty");
  if (/\p{Surrogate}/u.test(name)) {
    throw new TiergridError("invalid_request", "a name must be well-formed Unicode");
  }
  const bytes = new TextEncoder().encode(name);
  if (bytes.length > nameBytesMax) {
    const message = `a name has at most ${nameBytesMax} bytes, this one has ${bytes.length}`;
    throw new TiergridError("invalid_request", message);
  }
  return `=${createHash("sha256").update(bytes).digest("base64url").slice(0, 22)}`;
}

/** A public endpoint's parts, e.g. `dynamo.global_router.generate`. */
export interface EndpointPath {
  readonly namespace: string;
  readonly component: string;
  readonly endpoint: string;
}

/** Parses `namespace.component.endpoint`; throws `invalid_request` naming the expected form. */
export function parseEndpointPath(text: string): EndpointPath {
  const [namespace, component, endpoint, ...rest] = text.split(".");
  if (!namespace || !component || !endpoint || rest.length > 0) {
    const expected = "Expected format: namespace.component.endpoint";
    throw new TiergridError(
      "invalid_request",
      `Invalid endpoint path format: ${text}. ${expected}`,
    );
  }
  return { namespace, component, endpoint };
}

export function endpointSubject(path: EndpointPath): string {
  const tokens = [path.namespace, path.component, path.endpoint].map(subjectToken);
  return `${subjectRoot}.ep.${tokens.join(".")}`;
}

export const generateSubject = (kind: InstanceKind, inst: string): string =>
  `${subjectRoot}.${kind}.${subjectToken(inst)}.gen`;
export const controlSubject = (kind: InstanceKind, inst: string): string =>
  `${subjectRoot}.${kind}.${subjectToken(inst)}.ctl`;
/** What one router, and no other of its kind, can be asked: its books, its rings, its settings. */
export type RouterQuestion =
  | "route"
  | "thresholds"
  | "explain"
  | "pool_info"
  | "best_worker_id"
  | "grid"
  | "cells";
export const askSubject = (
  kind: "local" | "global",
  inst: string,
  question: RouterQuestion,
): string => `${subjectRoot}.${kind}.${subjectToken(inst)}.${question}`;
export const noticeSubject = (inst: string): string => `${subjectRoot}.nt.${subjectToken(inst)}`;
/** Kind and namespace are there so that nobody hears heartbeats that mean nothing to it. */
export const heartbeatSubject = (beats: {
  readonly kind: HeartbeatKind;
  readonly namespace: string;
  readonly inst: string;
}): string =>
  `${subjectRoot}.hb.${beats.kind}.${subjectToken(beats.namespace)}.${subjectToken(beats.inst)}`;
/** Of all instances of a kind, or of those in one namespace. */
export const heartbeatsOf = (kind: HeartbeatKind, namespace?: string): string =>
  `${subjectRoot}.hb.${kind}.${namespace === undefined ? "*" : subjectToken(namespace)}.*`;
export const allHeartbeats = `${subjectRoot}.hb.*.*.*`;
export const whoSubject = `${subjectRoot}.who`;
export const kvEventSubject = (namespace: string, inst: string, dpRank: number): string =>
  `${subjectRoot}.ev.${subjectToken(namespace)}.${subjectToken(inst)}.${dpRank}`;
export const kvEventsOfNamespace = (namespace: string): string =>
  `${subjectRoot}.ev.${subjectToken(namespace)}.*.*`;
export const durableEventSubject = (
  { namespace, component }: Pick<EndpointPath, "namespace" | "component">,
  inst: string,
  dpRank: number,
): string =>
  `${subjectRoot}.evs.${subjectToken(namespace)}.${subjectToken(component)}.${subjectToken(inst)}.${dpRank}`;
export const durableEventsOfComponent = (namespace: string, component: string): string =>
  `${subjectRoot}.evs.${subjectToken(namespace)}.${subjectToken(component)}.*.*`;
export const loadSubject = (namespace: string, inst: string): string =>
  `${subjectRoot}.ld.${subjectToken(namespace)}.${subjectToken(inst)}`;
export const loadOfNamespace = (namespace: string): string =>
  `${subjectRoot}.ld.${subjectToken(namespace)}.*`;
export const kvQuerySubject = (inst: string, dpRank: number): string =>
  `${subjectRoot}.kvq.${subjectToken(inst)}.${dpRank}`;
export const activeSequencesSubject = (pool: EndpointPath, inst: string): string =>
  `${subjectRoot}.as.${poolTokens(pool)}.${subjectToken(inst)}`;
export const activeSequencesOfPool = (pool: EndpointPath): string =>
  `${subjectRoot}.as.${poolTokens(pool)}.*`;
export const activeSequencesAskSubject = (pool: EndpointPath): string =>
  `${subjectRoot}.asq.${poolTokens(pool)}`;

const poolTokens = ({ namespace, component, endpoint }: EndpointPath): string =>
  [namespace, component, endpoint].map(subjectToken).join(".");

/** Private prefix of one connection; `connection` is random. */
export const inboxPrefix = (role: BusRole, connection: string): string =>
  `${inboxRoot}.${role}.${subjectToken(connection)}`;

const published = /^(?:tg|_R|\$SRV)(?:\.[A-Za-z0-9_=-]+)+$/;
const subscribed = /^(?:tg|_R|\$SRV)(?:\.(?:[A-Za-z0-9_=-]+|\*))*(?:\.>)?$/;
/** Inboxes of our own clients: nearly all reply subjects. */
const inbox = /^_R(?:\.[A-Za-z0-9_=-]+)+$/;
/** Reply subjects of foreign clients: any legal NATS subject without wildcards. */
const foreignReply = /^[!-~]+$/;

/** Throws `invalid_request` unless `subject` may be published to. */
export function checkPublishSubject(subject: string): void {
  if (subject.length <= subjectBytesMax && published.test(subject)) return;
  if (isForeignReply(subject)) return;
  throw new TiergridError("invalid_request", `not a subject to publish to: ${quoted(subject)}`);
}

/** Throws `invalid_request` unless `subject` may be subscribed to. */
export function checkSubscribeSubject(subject: string): void {
  if (subject.length <= subjectBytesMax && subscribed.test(subject)) return;
  throw new TiergridError("invalid_request", `not a subject to subscribe to: ${quoted(subject)}`);
}

/** Throws `invalid_request` unless `queue` is the one queue group. */
export function checkQueue(queue: string): void {
  if (queue === endpointQueue) return;
  throw new TiergridError("invalid_request", `not a queue group: ${quoted(queue)}`);
}

/** True for a subject a foreign client may name for answers: no wildcard, no system subject. */
export function isForeignReply(subject: string): boolean {
  if (subject.length > subjectBytesMax) return false;
  if (inbox.test(subject)) return true;
  if (!foreignReply.test(subject)) return false;
  if (subject.startsWith("$") || subject.startsWith(`${subjectRoot}.`)) return false;
  return subject.split(".").every((token) => token !== "" && token !== "*" && token !== ">");
}

function quoted(text: string): string {
  return JSON.stringify(text.slice(0, 80));
}
