/** Suggestions for misspelt names: flags, environment variables, config keys. */

/** Longer names are compared by their first characters only, so that the table stays small. */
const nameLengthMax = 64;

/** The known name closest to `name`, or undefined when none is close enough to be a slip. */
export function nearestName(name: string, known: Iterable<string>): string | undefined {
  const wanted = name.slice(0, nameLengthMax).toLowerCase();
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(wanted.length / 3)) + 1;
  for (const candidate of known) {
    const distance = editDistance(wanted, candidate.slice(0, nameLengthMax).toLowerCase());
    if (distance >= bestDistance) continue;
    best = candidate;
    bestDistance = distance;
  }
  return best;
}

/** ` (did you mean X?)`, or nothing. */
export function didYouMean(name: string, known: Iterable<string>): string {
  const nearest = nearestName(name, known);
  return nearest === undefined ? "" : ` (did you mean ${nearest}?)`;
}

/** Levenshtein distance, one row at a time. */
function editDistance(from: string, to: string): number {
  let above = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let row = 1; row <= from.length; row++) {
    const here = [row];
    for (let column = 1; column <= to.length; column++) {
      const swapped = from[row - 1] === to[column - 1] ? 0 : 1;
      const left = here[column - 1] ?? 0;
      const diagonal = above[column - 1] ?? 0;
      here.push(Math.min(left + 1, (above[column] ?? 0) + 1, diagonal + swapped));
    }
    above = here;
  }
  return above[to.length] ?? 0;
}
