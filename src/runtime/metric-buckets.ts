/** Upper bounds of histogram buckets; `+Inf` is implied everywhere. */

const countMax = 512;

/**
 * 0 first, then `count - 1` log-spaced bounds up to `max`, rounded to two significant figures,
 * without repetitions. The bucket of 0 counts exact zeros. Formula: Dynamo's frontend metrics.
 */
export function logBuckets(min: number, max: number, count: number): number[] {
  const bounds = [0];
  for (let step = 1; step < Math.min(count, countMax); step++) {
    const exponent = Math.log(min) + ((Math.log(max) - Math.log(min)) * step) / (count - 1);
    const bound = twoFigures(Math.exp(exponent));
    if (bound !== bounds[bounds.length - 1]) bounds.push(bound);
  }
  return bounds;
}

/** `count` bounds from `start`, `width` apart. */
export function linearBuckets(start: number, width: number, count: number): number[] {
  return Array.from({ length: count }, (_, step) => clean(start + width * step));
}

/** `count` bounds from `start`, each `factor` times the one before. */
export function exponentialBuckets(start: number, factor: number, count: number): number[] {
  return Array.from({ length: count }, (_, step) => clean(start * factor ** step));
}

function twoFigures(value: number): number {
  return Number(value.toPrecision(2));
}

/** Without the noise of binary fractions, so that `le` reads 0.15 and not 0.15000000000000002. */
function clean(value: number): number {
  return Number(value.toPrecision(12));
}

export const buckets = {
  duration: logBuckets(1, 512, 10),
  isl: logBuckets(50, 128_000, 12),
  osl: logBuckets(50, 32_000, 10),
  ttft: logBuckets(0.001, 480, 18),
  itl: logBuckets(0.001, 2, 13),
  rate: linearBuckets(0, 0.05, 21),
  computeMs: exponentialBuckets(0.001, 2, 15),
  asyncMs: exponentialBuckets(0.01, 3, 17),
  work: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600],
  short: [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1],
  stage: [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5],
  planeTtft: [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
  template: [0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05],
  tokenizerMs: [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
  selection: exponentialBuckets(1e-6, 4, 10),
  attempts: [1, 2, 3, 4, 6, 8],
  accept: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1],
  echo: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1, 3],
  loopDelay: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 5],
  quoteRatio: [0.25, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2, 4],
  stall: [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
} as const;
