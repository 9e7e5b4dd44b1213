/** Text of a config file, JSON or YAML, to a plain value or one fault that says where it broke. */
import { createReadStream } from "node:fs";
import { LineCounter, parseDocument } from "yaml";
import type { ConfigFault } from "./config-fault.ts";

export type ConfigFormat = "json" | "yaml";

export type ParsedText =
  | { readonly ok: true; readonly value: unknown }
  | { readonly ok: false; readonly fault: ConfigFault };

export type TextRead =
  | { readonly ok: true; readonly text: string }
  | { readonly ok: false; readonly fault: ConfigFault };

/** As much as a Kubernetes ConfigMap can hold. */
export const configBytesMax: number = 1024 * 1024;

/** Aliases a YAML file may expand to, so that nested anchors cannot explode. */
export const yamlAliasesMax = 100;

/** `.yaml` and `.yml` are YAML, every other file is JSON. */
export function formatOfPath(path: string): ConfigFormat {
  return /\.ya?ml$/i.test(path) ? "yaml" : "json";
}

/** Text of the file at `path`: UTF-8, a byte order mark dropped. */
export async function readConfigText(path: string): Promise<TextRead> {
  const chunks: Buffer[] = [];
  try {
    // `end` is inclusive: one byte more than allowed is enough to know that there are too many.
    for await (const chunk of createReadStream(path, { end: configBytesMax })) chunks.push(chunk);
  } catch (thrown) {
    const { code, message } = thrown as NodeJS.ErrnoException;
    return code === "ENOENT"
      ? broken("file-not-found", `config file not found: ${path}`)
      : broken("file-unreadable", `config file cannot be read: ${message}`);
  }
  const bytes = Buffer.concat(chunks);
  if (bytes.length > configBytesMax) {
    return broken("file-too-large", `config file has more than ${configBytesMax} bytes: ${path}`);
  }
  try {
    return { ok: true, text: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
  } catch {
    return broken("not-utf8", `config file is not UTF-8: ${path}`);
  }
}

/** Parses `text`; a key given twice is a fault in both formats. */
export function parseConfigText(text: string, format: ConfigFormat): ParsedText {
  const plain = text.charCodeAt(0) === 0xfeff ? text.slice(1) : text;
  return format === "yaml" ? parseYaml(plain) : parseJson(plain);
}

function parseJson(text: string): ParsedText {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (thrown) {
    const reason = thrown instanceof Error ? thrown.message : String(thrown);
    const at = lineAndColumn(text, brokenAt(text));
    return broken("invalid-json", `not JSON at ${at}: ${reason}`);
  }
  const repeated = repeatedKeyIn(text);
  return repeated ? { ok: false, fault: repeated } : { ok: true, value };
}

/** `JSON.parse` keeps the last of two equal keys in silence; the YAML reader names the place. */
function repeatedKeyIn(jsonText: string): ConfigFault | undefined {
  const parsed = parseYaml(jsonText);
  return !parsed.ok && parsed.fault.reason === "duplicate-key" ? parsed.fault : undefined;
}

function parseYaml(text: string): ParsedText {
  try {
    const lineCounter = new LineCounter();
    const document = parseDocument(text, {
      version: "1.2",
      schema: "core",
      uniqueKeys: true,
      stringKeys: true,
      prettyErrors: false,
      logLevel: "error",
      lineCounter,
    });
    const problems = [...document.errors, ...document.warnings];
    const problem = problems.find(({ code }) => code === "DUPLICATE_KEY") ?? problems[0];
    if (!problem) return { ok: true, value: document.toJS({ maxAliasCount: yamlAliasesMax }) };
    const { line, col } = lineCounter.linePos(problem.pos[0]);
    const at = `line ${line}, column ${col}`;
    return problem.code === "DUPLICATE_KEY"
      ? broken("duplicate-key", `key given twice at ${at}`)
      : broken("invalid-yaml", `not YAML at ${at}: ${problem.message}`);
  } catch (thrown) {
    // Too many aliases, or nesting deeper than the stack.
    const reason = thrown instanceof Error ? thrown.message : String(thrown);
    return broken("invalid-yaml", `not YAML that can be expanded: ${reason}`);
  }
}

/**
 * Index of the first character no JSON text can have there, or the length when the end is missing.
 * Some messages of `JSON.parse` carry no position, so prefixes are bisected: longer prefixes of a
 * broken text stay broken, and a prefix that is only cut short fails at its own end.
 */
function brokenAt(text: string): number {
  let sound = 0;
  let broken = text.length + 1;
  while (broken - sound > 1) {
    const middle = (sound + broken) >> 1;
    if (couldContinue(text.slice(0, middle))) sound = middle;
    else broken = middle;
  }
  return sound;
}

function couldContinue(prefix: string): boolean {
  try {
    JSON.parse(prefix);
    return true;
  } catch (thrown) {
    const { message } = thrown as SyntaxError;
    const position = /at position (\d+)/.exec(message)?.[1];
    if (position !== undefined) return Number(position) >= prefix.length;
    return message.includes("end of JSON input");
  }
}

function lineAndColumn(text: string, position: number): string {
  const before = text.slice(0, position).split("\n");
  return `line ${before.length}, column ${(before.at(-1) ?? "").length + 1}`;
}

function broken(reason: string, message: string): { ok: false; fault: ConfigFault } {
  return { ok: false, fault: { pointer: "", reason, message } };
}
