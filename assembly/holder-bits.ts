/**
 * Bits of the sets, handed out to holders and taken back.
 *
 *   bit        0     1     2     3
 *   state   [ used |retired| free |swept ]   swept = the present pass over the table takes it out
 *   slot    [  0   |  –    |  –   |  –   ]   holder slot
 *   live      1     0      0      0          whether the match over device memory sees it
 *
 * - A retired bit is masked at once and costs nothing; a whole pass over the table frees it.
 */
import { reserveBits } from "./holder-sets";
import { enlarge } from "./regions";

export const stateFree: u8 = 0;
const stateUsed: u8 = 1;
const stateRetired: u8 = 2;
const stateSwept: u8 = 3;

/** Columns of one u32 per 32 bits; `activeBits` is scratch of the match. */
export let liveBits: usize = 0;
export let sweptBits: usize = 0;
export let activeBits: usize = 0;
export let retiredCount: u32 = 0;
export let sweptCount: u32 = 0;
/** Bits ever handed out at once. */
export let bitCount: u32 = 0;

let room: u32 = 0;
let states: usize = 0;
let slots: usize = 0;

/** A bit for a holder slot; `live` = the match sees it. */
export function takeBit(slot: u32, live: bool): u32 {
  let bit: u32 = 0;
  while (bit < bitCount && load<u8>(states + bit) !== stateFree) bit++;
  if (bit === bitCount) {
    if (bitCount === room) growBits(max<u32>(32, 2 * room));
    bitCount++;
    reserveBits(bitCount);
  }
  store<u8>(states + bit, stateUsed);
  store<u32>(slots + 4 * bit, slot);
  setLive(bit, live);
  return bit;
}

/** Masks a bit at once; `unused` = no set has it. */
export function retireBit(bit: u32, unused: bool): void {
  setLive(bit, false);
  store<u8>(states + bit, unused ? stateFree : stateRetired);
  if (!unused) retiredCount++;
}

export function setLive(bit: u32, live: bool): void {
  putBit(liveBits, bit, live);
}

/** All retired bits become those that a pass takes out. */
export function sweepRetired(): void {
  for (let bit: u32 = 0; bit < bitCount; bit++) {
    if (load<u8>(states + bit) !== stateRetired) continue;
    store<u8>(states + bit, stateSwept);
    putBit(sweptBits, bit, true);
  }
  sweptCount = retiredCount;
  retiredCount = 0;
}

/** The pass is over: its bits are free. */
export function freeSwept(): void {
  for (let bit: u32 = 0; bit < bitCount; bit++) {
    if (load<u8>(states + bit) === stateSwept) store<u8>(states + bit, stateFree);
  }
  memory.fill(sweptBits, 0, room >> 3);
  sweptCount = 0;
}

// @ts-ignore: decorator
@inline
export function slotOfBit(bit: u32): u32 {
  return load<u32>(slots + 4 * bit);
}

function putBit(column: usize, bit: u32, value: bool): void {
  const at = column + 4 * (bit >> 5);
  const mask: u32 = 1 << (bit & 31);
  store<u32>(at, value ? load<u32>(at) | mask : load<u32>(at) & ~mask);
}

function growBits(count: u32): void {
  states = enlarge(states, room, count);
  slots = enlarge(slots, 4 * room, 4 * count);
  liveBits = enlarge(liveBits, room >> 3, count >> 3);
  sweptBits = enlarge(sweptBits, room >> 3, count >> 3);
  activeBits = enlarge(activeBits, room >> 3, count >> 3);
  room = count;
}
