/**
 * The live bookings of one local router, its own or as a replica has been told of them.
 *
 *   bookings   7 ─▶ worker 1, rank 0, 40 blocks, 512 tokens in prefill
 *              9 ─▶ worker 2, rank 0, 12 blocks,   0
 *   digest     hash(7, in prefill) ^ hash(9, done)
 *
 * Invariants: the digest is that of a recount, whatever the order of the changes; two books with the
 * same requests in the same state have the same digest.
 */
import type { SequenceBooking } from "../protocol/active-sequences.ts";

/** Bookings of one router at once: what its dispatcher holds at most. */
export const replicaBookingsMax = 65_536;

/** Key of a booking in the load books of every replica. */
export function bookingKey(routerId: string, request: number): string {
  return `${routerId}-${request}`;
}

export class ReplicaBook {
  readonly #bookings = new Map<number, SequenceBooking>();
  #lo = 0;
  #hi = 0;

  get count(): number {
    return this.#bookings.size;
  }

  /** 16 hex digits. */
  get digest(): string {
    return hexOf(this.#hi) + hexOf(this.#lo);
  }

  get(request: number): SequenceBooking | undefined {
    return this.#bookings.get(request);
  }

  values(): Iterable<SequenceBooking> {
    return this.#bookings.values();
  }

  /** False, and no change, for a known request or above `replicaBookingsMax`. */
  add(booking: SequenceBooking): boolean {
    if (this.#bookings.has(booking.request)) return false;
    if (this.#bookings.size >= replicaBookingsMax) return false;
    this.#bookings.set(booking.request, booking);
    this.#mix(booking);
    return true;
  }

  /** False when the request is unknown or was past its prefill. */
  completePrefill(request: number): boolean {
    const booking = this.#bookings.get(request);
    if (!booking || booking.prefillTokens === 0) return false;
    const done = { ...booking, prefillTokens: 0 };
    this.#mix(booking);
    this.#bookings.set(request, done);
    this.#mix(done);
    return true;
  }

  /** False when the request is unknown. */
  free(request: number): boolean {
    const booking = this.#bookings.get(request);
    if (!booking) return false;
    this.#bookings.delete(request);
    this.#mix(booking);
    return true;
  }

  /** Puts the booking into the digest, or takes it out. */
  #mix({ request, prefillTokens }: SequenceBooking): void {
    const low = request >>> 0;
    const high = Math.floor(request / 4294967296);
    const state = prefillTokens > 0 ? 0x9e3779b9 : 0;
    const lo = mixed(low ^ mixed(high ^ state ^ 0x85ebca6b));
    this.#lo = (this.#lo ^ lo) >>> 0;
    this.#hi = (this.#hi ^ mixed(lo ^ low ^ 0xc2b2ae35)) >>> 0;
  }
}

/** The finaliser of MurmurHash3: every bit of the word reaches every bit of the result. */
function mixed(word: number): number {
  let bits = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}

function hexOf(word: number): string {
  return word.toString(16).padStart(8, "0");
}
