/**
 * Regions of linear memory for tables that come, grow and go.
 *
 *   heap start                                          freshAt        memory end
 *   [ used | free | used | dirty ~~~~ 0000 | free | used | fresh 000000 ]
 *            ^ freeFirst ─────────────────▶ next, by address
 *
 * - Free and fresh bytes are zero but for the link, so a region handed out needs no clearing.
 * - Neighbours merge, so what a table leaves behind when it grows by halves serves it again.
 * - A freed region is dirty until slices of `clearFreed` have zeroed it from its end; a small one
 *   is zeroed at once.
 * - Addresses and sizes are multiples of 64; the first words of a free or dirty region are its
 *   link: next, bytes.
 */

/** One cache line, which a bucket of `KeyTable` fills. */
const unit: usize = 64;
const pageBytes: u64 = 65536;
/** One page short of 4 GiB, so that no address wraps. */
const pagesMax: i32 = 65535;
const clearedAtOnceMax: usize = 16384;
const sliceBytes: usize = 32768;

let freshAt: usize = (__heap_base + unit - 1) & ~(unit - 1);
let freeFirst: usize = 0;
let dirtyFirst: usize = 0;
/** Bytes of the first dirty region that are not yet zeroed. */
let dirtyBytes: usize = 0;

/** Address of a zeroed region, a multiple of 64; 0 when memory is at its limit. */
export function allocate(bytes: usize): usize {
  bytes = roundUp(bytes);
  let before: usize = 0;
  for (let at = freeFirst; at !== 0; at = nextOf(at)) {
    const found = bytesOf(at);
    if (found >= bytes) {
      takeFrom(at, before, found - bytes);
      return at + (found - bytes);
    }
    before = at;
  }
  return allocateFresh(bytes);
}

/** The same, for small regions and those that nothing can go on without; traps at the limit. */
export function mustAllocate(bytes: usize): usize {
  const at = allocate(bytes);
  if (at === 0) unreachable();
  return at;
}

/** A larger region with the bytes of the old one, which is given back. Traps at the limit. */
export function enlarge(at: usize, bytes: usize, newBytes: usize): usize {
  const larger = mustAllocate(newBytes);
  if (bytes === 0) return larger;
  memory.copy(larger, at, bytes);
  free(at, bytes);
  return larger;
}

/** Gives back a region that `allocate` answered for as many bytes. */
export function free(at: usize, bytes: usize): void {
  bytes = roundUp(bytes);
  if (bytes <= clearedAtOnceMax) {
    memory.fill(at, 0, bytes);
    addFree(at, bytes);
    return;
  }
  setLink(at, dirtyFirst, bytes);
  if (dirtyFirst !== 0 && dirtyBytes < bytesOf(dirtyFirst)) {
    // The first one is half done: the new one waits behind it.
    setLink(at, nextOf(dirtyFirst), bytes);
    setLink(dirtyFirst, at, bytesOf(dirtyFirst));
    return;
  }
  dirtyFirst = at;
  dirtyBytes = bytes;
}

/** Zeroes a slice of what was freed; true while some is left. */
export function clearFreed(): bool {
  const at = dirtyFirst;
  if (at === 0) return false;
  if (dirtyBytes > sliceBytes) {
    dirtyBytes -= sliceBytes;
    memory.fill(at + dirtyBytes, 0, sliceBytes);
    return true;
  }
  const bytes = bytesOf(at);
  dirtyFirst = nextOf(at);
  dirtyBytes = dirtyFirst === 0 ? 0 : bytesOf(dirtyFirst);
  memory.fill(at, 0, min(bytes, sliceBytes));
  addFree(at, bytes);
  return dirtyFirst !== 0;
}

/** Grows the memory to `pages` at once, if that is granted; it may still grow after. */
export function reservePages(pages: i32): void {
  memory.grow(pages - memory.size());
}

/** Bytes between the heap's start and its last used region. */
export function heapBytes(): usize {
  return freshAt - __heap_base;
}

/** Leaves the first `left` bytes of a free region free. */
function takeFrom(at: usize, before: usize, left: usize): void {
  const next = nextOf(at);
  if (left > 0) {
    setLink(at, next, left);
    return;
  }
  setLink(at, 0, 0);
  if (before === 0) freeFirst = next;
  else setLink(before, next, bytesOf(before));
}

function allocateFresh(bytes: usize): usize {
  const at = freshAt;
  const end = <u64>at + <u64>bytes;
  if (end > <u64>memory.size() * pageBytes && !growMemory(end)) return 0;
  freshAt = <usize>end;
  return at;
}

/** At least doubles the memory: each growth costs milliseconds, untouched pages cost nothing. */
function growMemory(end: u64): bool {
  const have = memory.size();
  const needed = <i32>((end + pageBytes - 1) / pageBytes);
  if (needed > pagesMax) return false;
  const ample = min(max(needed, 2 * have), pagesMax);
  return memory.grow(ample - have) >= 0 || memory.grow(needed - have) >= 0;
}

function addFree(at: usize, bytes: usize): void {
  let before: usize = 0;
  let next = freeFirst;
  for (; next !== 0 && next < at; next = nextOf(next)) before = next;
  if (next !== 0 && at + bytes === next) {
    bytes += bytesOf(next);
    const behind = nextOf(next);
    setLink(next, 0, 0);
    next = behind;
  }
  if (before !== 0 && before + bytesOf(before) === at) {
    setLink(before, next, bytesOf(before) + bytes);
    return;
  }
  setLink(at, next, bytes);
  if (before === 0) freeFirst = at;
  else setLink(before, at, bytesOf(before));
}

// @ts-expect-error: decorator
@inline
function roundUp(bytes: usize): usize {
  return (bytes + unit - 1) & ~(unit - 1);
}

// @ts-expect-error: decorator
@inline
function nextOf(at: usize): usize {
  return load<usize>(at);
}

// @ts-expect-error: decorator
@inline
function bytesOf(at: usize): usize {
  return load<usize>(at, 4);
}

// @ts-expect-error: decorator
@inline
function setLink(at: usize, next: usize, bytes: usize): void {
  store<usize>(at, next);
  store<usize>(at, bytes, 4);
}
