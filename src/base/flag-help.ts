/** The `--help` text of a command and the rows of its page in the docs, from its flag table. */
import { type Command, expectation, type Flag, type FlagTable } from "./flags.ts";

const lineLengthMax = 100;
const indent = "      ";

/** The whole `--help` text: usage, examples, and every flag by group with its default. */
export function helpText(command: Command): string {
  const operands = (command.operands ?? []).map((operand) => ` <${operand}>`).join("");
  const lines = [`Usage: ${command.name}${operands} [flags]`, "", ...wrapped(command.summary, "")];
  if (command.examples.length > 0) lines.push("", "Examples");
  for (const { does, line } of command.examples) {
    lines.push(...wrapped(`# ${does}`, "  "), `  ${line}`);
  }
  for (const [group, rows] of groupsOf(command.flags)) {
    lines.push("", group);
    for (const row of rows) lines.push(...flagLines(row));
  }
  lines.push("", "A flag beats the environment, the environment beats the default.");
  return `${lines.join("\n")}\n`;
}

/** One row of the docs; texts are plain, without markup. */
export interface FlagDoc {
  readonly group: string;
  readonly flag: string;
  readonly environment: string;
  readonly older: string;
  readonly expects: string;
  readonly default: string;
  readonly help: string;
}

/** The rows of the docs page of a table, in the order of its groups. */
export function flagDocs(table: FlagTable): FlagDoc[] {
  return [...groupsOf(table)].flatMap(([group, rows]) =>
    rows.map((row) => ({
      group,
      flag: spellingOf(row),
      environment: variableText(row),
      older: [...(row.olderFlags ?? []).map((flag) => `--${flag}`), ...(row.olderEnv ?? [])].join(
        ", ",
      ),
      expects: expectation(row),
      default: row.required ? "required" : String(row.default ?? "none"),
      help: row.help,
    })),
  );
}

function groupsOf(table: FlagTable): Map<string, Flag[]> {
  const groups = new Map<string, Flag[]>();
  for (const row of Object.values(table)) {
    const rows = groups.get(row.group) ?? [];
    groups.set(row.group, [...rows, row]);
  }
  return groups;
}

function flagLines(row: Flag): string[] {
  const value = row.type === "boolean" ? "" : ` <${row.type === "string" ? "text" : row.type}>`;
  const name = row.flag === undefined ? "(environment only)" : `${spellingOf(row)}${value}`;
  const settled = row.required ? "Required." : `Default: ${row.default ?? "none"}.`;
  const limits = row.type === "string" || row.type === "boolean" ? "" : `${expectation(row)}. `;
  const facts = `${limits.charAt(0).toUpperCase()}${limits.slice(1)}${settled}`;
  const environment = row.env === undefined ? "" : `  [${variableText(row)}]`;
  return [`  ${name}${environment}`, ...wrapped(`${row.help} ${facts}`, indent)];
}

function variableText(row: Flag): string {
  return row.env === undefined ? "" : [row.env, ...(row.otherEnv ?? [])].join(", ");
}

function spellingOf(row: Flag): string {
  if (row.flag === undefined) return "";
  return row.type === "boolean" ? `--[no-]${row.flag}` : `--${row.flag}`;
}

function wrapped(text: string, before: string): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/)) {
    if (line !== "" && before.length + line.length + 1 + word.length > lineLengthMax) {
      lines.push(before + line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, before + line];
}
