/** Secrets of this instance: splitmix64 from a seed that the process draws. */

let state: u64 = 0;

export function seedRandom(lo: u32, hi: u32): void {
  state = (<u64>hi << 32) | <u64>lo;
}

export function randomU64(): u64 {
  state += 0x9e3779b97f4a7c15;
  let value = state;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}
