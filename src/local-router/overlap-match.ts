/**
 * What of a prompt each holder has: by its events, in every storage tier, and by prediction.
 *
 *   device   = larger of the run in device memory and the predicted one
 *   hostExt  = run in device or host memory, beyond `device`
 *   diskExt  = run in any tier, beyond device and host
 */
import type { Clock } from "../base/clock.ts";
import type { KvIndex, SlowDepths } from "../core/kv-index.ts";
import type { PredictedIndex } from "../core/predicted-index.ts";
import type { OverlapColumns } from "../core/worker-cost.ts";
import type { RouteQuery } from "./route-query.ts";

export interface OverlapSources {
  readonly clock: Clock;
  readonly index: KvIndex | undefined;
  /** The larger overlap of both indexes counts. */
  readonly predicted: PredictedIndex | undefined;
}

/** Overlap of a prompt per holder slot; the columns are valid until the next call. */
export type OverlapMatch = (query: RouteQuery) => OverlapColumns;

export function createOverlapMatch({ clock, index, predicted }: OverlapSources): OverlapMatch {
  let device = new Int32Array(0);
  let predictedDepths = device;
  let slow: SlowDepths = { host: device, disk: device };
  return ({ sequence, blocks }) => {
    const slots = Math.max(index?.slots ?? 0, predicted?.slots ?? 0);
    if (device.length < slots) {
      device = new Int32Array(2 * slots);
      predictedDepths = new Int32Array(2 * slots);
    }
    const tiers = index?.slowTiers === true;
    if (tiers && slow.host.length < device.length) {
      slow = { host: new Int32Array(device.length), disk: new Int32Array(device.length) };
    }
    index?.match(sequence, blocks, device, tiers ? slow : undefined);
    if (predicted) {
      predicted.match(sequence, blocks, predictedDepths, clock.nowMs());
      if (!index) return { device: predictedDepths };
      raise(device, predictedDepths);
    }
    if (!tiers) return { device };
    extend(device, slow);
    return { device, hostExt: slow.host, diskExt: slow.disk };
  };
}

/** Each entry of `depths` becomes the larger one of both. */
function raise(depths: Int32Array, others: Int32Array): void {
  for (let slot = 0; slot < others.length; slot++) {
    const depth = others[slot] ?? 0;
    if (depth > (depths[slot] ?? 0)) depths[slot] = depth;
  }
}

/** Cumulative runs become what each tier adds beyond the faster ones. */
function extend(device: Int32Array, { host, disk }: SlowDepths): void {
  for (let slot = 0; slot < device.length; slot++) {
    const inDevice = device[slot] ?? 0;
    const inHost = Math.max(host[slot] ?? 0, inDevice);
    host[slot] = inHost - inDevice;
    disk[slot] = Math.max(disk[slot] ?? 0, inHost) - inHost;
  }
}
