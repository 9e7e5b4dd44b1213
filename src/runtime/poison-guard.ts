/**
 * Requests that took workers down with them. A fingerprint (prompt and parameters) that was running
 * on `workersMax` workers when they died is refused for a minute, so that a request which crashes
 * engines cannot crash the fleet by being migrated and sent again.
 */
import { createHash } from "node:crypto";
import type { RequestBody } from "../protocol/requests.ts";

export const poisonForgetMs = 60_000;
export const fingerprintsMax = 1_024;

interface Suspect {
  /** Instances that died; at most `workersMax` are remembered. */
  readonly workers: Set<string>;
  readonly sinceMs: number;
}

export class PoisonGuard {
  readonly #suspects = new Map<string, Suspect>();
  readonly #workersMax: number;

  constructor(workersMax: number) {
    this.#workersMax = workersMax;
  }

  /** False while no worker died lately: then no fingerprint needs to be computed. */
  watching(nowMs: number): boolean {
    for (const [fingerprint, { sinceMs }] of this.#suspects) {
      if (nowMs - sinceMs < poisonForgetMs) break;
      this.#suspects.delete(fingerprint);
    }
    return this.#suspects.size > 0;
  }

  /** `inst` died while it ran this request; answers whether the request is to be refused. */
  workerLost(fingerprint: string, inst: string, nowMs: number): boolean {
    const workers = this.#suspects.get(fingerprint)?.workers ?? new Set<string>();
    if (workers.size < this.#workersMax) workers.add(inst);
    // Inserted again, so that the map is in order of age.
    this.#suspects.delete(fingerprint);
    const [oldest] = this.#suspects.keys();
    if (oldest !== undefined && this.#suspects.size >= fingerprintsMax) {
      this.#suspects.delete(oldest);
    }
    this.#suspects.set(fingerprint, { workers, sinceMs: nowMs });
    return workers.size >= this.#workersMax;
  }

  refused(fingerprint: string, nowMs: number): boolean {
    const suspect = this.watching(nowMs) ? this.#suspects.get(fingerprint) : undefined;
    return suspect !== undefined && suspect.workers.size >= this.#workersMax;
  }
}

/** Hash of what an engine would see of the request: its prompt and how to continue it. */
export function fingerprintOf(body: RequestBody, tokens: Uint32Array): string {
  const { model, sampling_options, stop_conditions } = body;
  return createHash("sha256")
    .update(JSON.stringify([model, sampling_options, stop_conditions]))
    .update(new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength))
    .digest("base64url");
}
