/**
 * Prometheus texts of several registries as one: a family that stands in more than one keeps its
 * first help and type, and its samples follow each other, as the format asks.
 */
export function mergeMetricTexts(texts: readonly string[]): string {
  const families = new Map<string, { readonly head: string; samples: string }>();
  for (const text of texts) {
    for (const block of text.split(/^(?=# HELP )/m)) {
      const [, head = "", samples = ""] = /^((?:#.*\n)*)([\s\S]*)$/.exec(block) ?? [];
      const name = head.split(" ", 3)[2];
      if (name === undefined) continue;
      const family = families.get(name);
      const lines = samples.trim() === "" ? "" : `${samples.trim()}\n`;
      if (family) family.samples += lines;
      else families.set(name, { head, samples: lines });
    }
  }
  return [...families.values()].map(({ head, samples }) => head + samples).join("\n");
}
