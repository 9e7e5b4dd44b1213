/**
 * Command lines and environments, read through one table per command. A row gives the flag, the
 * environment variable, the older spellings of both, the type, the range, the default, the help
 * text, the row of the docs, and the TypeScript type of the option:
 *
 *   const flags = {
 *     httpPort: { flag: "http-port", env: "DYN_HTTP_PORT", type: "integer", min: 0, max: 65535,
 *                 default: 8000, group: "HTTP", help: "Port of the OpenAI API." },
 *   } as const satisfies FlagTable;                       OptionsOf<typeof flags>: { httpPort: number }
 *
 * A flag beats the environment, the environment beats the default; of a flag given twice the last
 * one counts; empty text is the same as not given. Every value that is given is checked, and all
 * problems come back at once.
 */
import { didYouMean } from "./nearest-name.ts";

interface FlagRow {
  /** Name without dashes; a boolean also has its `no-` form. Without it the row is env only. */
  readonly flag?: string;
  readonly env?: string;
  /** Further names of the variable, as good as the first. */
  readonly otherEnv?: readonly string[];
  /** Spellings that still work, each with one warning. */
  readonly olderFlags?: readonly string[];
  readonly olderEnv?: readonly string[];
  readonly group: string;
  readonly help: string;
  /** `none` and `null` are values. A default of null implies it. */
  readonly nullable?: true;
}

/** A row has a default, or the command does not start without a value. */
type Otherwise<Value> =
  | { readonly default: Value | null; readonly required?: undefined }
  | { readonly required: true; readonly default?: undefined };

export type TextFlag = FlagRow & Otherwise<string> & { readonly type: "string" };
export type BooleanFlag = FlagRow & Otherwise<boolean> & { readonly type: "boolean" };
export type ChoiceFlag = FlagRow &
  Otherwise<string> & { readonly type: "choice"; readonly choices: readonly string[] };
export type NumberFlag = FlagRow &
  Otherwise<number> & {
    readonly type: "integer" | "number";
    readonly min?: number;
    readonly max?: number;
    /** Exclusive lower bound. */
    readonly above?: number;
  };

export type Flag = TextFlag | NumberFlag | BooleanFlag | ChoiceFlag;
export type FlagTable = Readonly<Record<string, Flag>>;
export type FlagValue = string | number | boolean | null;

type ScalarOf<Row> = Row extends { readonly type: "boolean" }
  ? boolean
  : Row extends { readonly type: "integer" | "number" }
    ? number
    : Row extends { readonly type: "choice"; readonly choices: readonly (infer Choice)[] }
      ? Choice
      : string;
type ValueOf<Row> = Row extends { readonly default: null } | { readonly nullable: true }
  ? ScalarOf<Row> | null
  : ScalarOf<Row>;

/** The options a table yields, one field per row. */
export type OptionsOf<Table extends FlagTable> = {
  readonly [Name in keyof Table]: ValueOf<Table[Name]>;
};

export interface Example {
  readonly does: string;
  readonly line: string;
}

/** A command: what `--help` shows and what its arguments mean. */
export interface Command<Table extends FlagTable = FlagTable> {
  /** As typed, e.g. `tiergrid global`. */
  readonly name: string;
  readonly summary: string;
  readonly flags: Table;
  readonly examples: readonly Example[];
  /** Names of the arguments without a flag, in order; all are required. */
  readonly operands?: readonly string[];
}

/** What a command line says. `flags` and `environment` hold what each source gave by itself. */
export type Parsed<Table extends FlagTable> =
  | { readonly type: "help" }
  | {
      readonly type: "invalid";
      readonly problems: readonly string[];
      readonly warnings: readonly string[];
    }
  | {
      readonly type: "options";
      readonly options: OptionsOf<Table>;
      readonly flags: Partial<OptionsOf<Table>>;
      readonly environment: Partial<OptionsOf<Table>>;
      readonly operands: readonly string[];
      readonly warnings: readonly string[];
    };

/** The outcome with options, as a command's body receives it. */
export type Given<Table extends FlagTable> = Extract<Parsed<Table>, { readonly type: "options" }>;

export type Environment = Readonly<Record<string, string | undefined>>;

/** One text that was given for a row, and where; undefined after a flag whose value is missing. */
interface GivenText {
  readonly name: string;
  readonly spelling: string;
  readonly text: string | undefined;
}

interface Arguments {
  readonly given: GivenText[];
  readonly operands: string[];
  readonly problems: string[];
  readonly warnings: Set<string>;
  help: boolean;
}

/**
 * Reads `argv` (without the command's own words) and `environment` through the command's table.
 * Never throws: problems are an outcome, worded for the person who typed the line.
 */
export function parseCommand<const Table extends FlagTable>(
  command: Command<Table>,
  argv: readonly string[],
  environment: Environment,
): Parsed<Table> {
  const table: FlagTable = command.flags;
  const line = readArguments(table, argv);
  if (line.help) return { type: "help" };
  const operands = command.operands ?? [];
  for (const missing of operands.slice(line.operands.length)) {
    line.problems.push(`<${missing}> is missing`);
  }
  for (const extra of line.operands.slice(operands.length)) {
    line.problems.push(`unexpected argument ${quoted(extra)}`);
  }
  const variables = readEnvironment(table, environment, line.warnings);
  const fromFlags = valuesOf(table, line.given, line.problems);
  const fromEnvironment = valuesOf(table, variables, line.problems);
  const given = { ...fromEnvironment, ...fromFlags };
  const attempted = new Set(
    [...line.given, ...variables].filter(isAttempt).map(({ name }) => name),
  );
  const options: Record<string, FlagValue> = {};
  for (const [name, row] of Object.entries(table)) {
    const value = given[name];
    options[name] = value === undefined ? (row.default ?? null) : value;
    if (row.required && !attempted.has(name)) line.problems.push(`${wayToSet(row)} must be set`);
  }
  const warnings = [...line.warnings];
  if (line.problems.length > 0) return { type: "invalid", problems: line.problems, warnings };
  return {
    type: "options",
    options: options as OptionsOf<Table>,
    flags: fromFlags as Partial<OptionsOf<Table>>,
    environment: fromEnvironment as Partial<OptionsOf<Table>>,
    operands: line.operands,
    warnings,
  };
}

/** One warning per `TIERGRID_*` variable that no command knows. */
export function unknownVariables(environment: Environment, known: ReadonlySet<string>): string[] {
  return Object.keys(environment)
    .filter((name) => name.startsWith("TIERGRID_") && !known.has(name))
    .sort()
    .map((name) => `unknown environment variable ${name}${didYouMean(name, known)}`);
}

/** Every environment variable of a table, older names included. */
export function variablesOf(table: FlagTable): string[] {
  return Object.values(table).flatMap((row) => [...currentNames(row), ...(row.olderEnv ?? [])]);
}

function currentNames(row: Flag): readonly string[] {
  return row.env === undefined ? [] : [row.env, ...(row.otherEnv ?? [])];
}

/** What a row expects, e.g. `an integer from 0 to 65535`. */
export function expectation(row: Flag): string {
  const none = isNullable(row) ? ", or none" : "";
  switch (row.type) {
    case "string":
      return `text${none}`;
    case "boolean":
      return `true or false${none}`;
    case "choice":
      return `one of ${row.choices.join(", ")}${none}`;
    case "integer":
      return `an integer${rangeOf(row)}${none}`;
    case "number":
      return `a number${rangeOf(row)}${none}`;
  }
}

function rangeOf({ above, min, max }: NumberFlag): string {
  if (above !== undefined) return ` above ${above}${max === undefined ? "" : ` up to ${max}`}`;
  if (min === undefined) return max === undefined ? "" : ` up to ${max}`;
  return max === undefined ? `, at least ${min}` : ` from ${min} to ${max}`;
}

function readArguments(table: FlagTable, argv: readonly string[]): Arguments {
  const rows = spellings(table);
  const line: Arguments = {
    given: [],
    operands: [],
    problems: [],
    warnings: new Set(),
    help: false,
  };
  for (let at = 0; at < argv.length; at++) {
    const argument = argv[at] ?? "";
    if (argument === "--") {
      line.operands.push(...argv.slice(at + 1));
      break;
    }
    if (argument === "--help" || argument === "-h") line.help = true;
    else if (!argument.startsWith("-") || argument === "-") line.operands.push(argument);
    else at += readFlag(rows, argument, argv[at + 1], line);
  }
  return line;
}

interface Spelling {
  readonly name: string;
  readonly row: Flag;
  readonly negated: boolean;
  readonly replacedBy: string | undefined;
}

/** Reads one flag; answers how many further arguments it took (0 or 1). */
function readFlag(
  rows: ReadonlyMap<string, Spelling>,
  argument: string,
  next: string | undefined,
  line: Arguments,
): number {
  const equals = argument.indexOf("=");
  const spelling = equals < 0 ? argument : argument.slice(0, equals);
  const inline = equals < 0 ? undefined : argument.slice(equals + 1);
  const found = rows.get(spelling);
  if (found === undefined) {
    line.problems.push(`unknown flag ${spelling.slice(0, 80)}${didYouMean(spelling, rows.keys())}`);
    return inline === undefined && next !== undefined && !next.startsWith("-") ? 1 : 0;
  }
  const { name, row, negated, replacedBy } = found;
  if (replacedBy !== undefined) {
    line.warnings.add(`${spelling} is an older spelling of ${replacedBy}`);
  }
  if (row.type === "boolean") {
    if (negated && inline !== undefined) line.problems.push(`${spelling} takes no value`);
    else line.given.push({ name, spelling, text: negated ? "false" : (inline ?? "true") });
    return 0;
  }
  if (inline === undefined && (next === undefined || next.startsWith("--"))) {
    line.given.push({ name, spelling, text: undefined });
    return 0;
  }
  line.given.push({ name, spelling, text: inline ?? next });
  return inline === undefined ? 1 : 0;
}

function spellings(table: FlagTable): Map<string, Spelling> {
  const rows = new Map<string, Spelling>();
  for (const [name, row] of Object.entries(table)) {
    for (const negated of row.type === "boolean" ? [false, true] : [false]) {
      const dashes = negated ? "--no-" : "--";
      if (row.flag === undefined) continue;
      rows.set(dashes + row.flag, { name, row, negated, replacedBy: undefined });
      for (const older of row.olderFlags ?? []) {
        rows.set(dashes + older, { name, row, negated, replacedBy: dashes + row.flag });
      }
    }
  }
  return rows;
}

function readEnvironment(
  table: FlagTable,
  environment: Environment,
  warnings: Set<string>,
): GivenText[] {
  const given: GivenText[] = [];
  for (const [name, row] of Object.entries(table)) {
    const spelling = [...currentNames(row), ...(row.olderEnv ?? [])].find(
      (variable) => (environment[variable] ?? "").trim() !== "",
    );
    if (spelling === undefined) continue;
    if (row.olderEnv?.includes(spelling)) {
      warnings.add(`${spelling} is an older name of ${row.env ?? "a flag"}`);
    }
    given.push({ name, spelling, text: environment[spelling] });
  }
  return given;
}

function valuesOf(
  table: FlagTable,
  given: readonly GivenText[],
  problems: string[],
): Record<string, FlagValue> {
  const values: Record<string, FlagValue> = {};
  for (const { name, spelling, text } of given) {
    const row = table[name];
    if (row === undefined || text?.trim() === "") continue;
    if (text === undefined) {
      problems.push(`${spelling} needs a value: ${expectation(row)}`);
      continue;
    }
    const value = readValue(row, text.trim());
    if (value !== undefined) values[name] = value;
    else problems.push(`${spelling}: expected ${expectation(row)}, got ${quoted(text)}`);
  }
  return values;
}

/** The value `text` stands for, or undefined when it does not fit the row. */
function readValue(row: Flag, text: string): FlagValue | undefined {
  if (isNullable(row) && /^(?:none|null)$/i.test(text)) return null;
  switch (row.type) {
    case "string":
      return text;
    case "choice":
      return row.choices.find((choice) => choice === text.toLowerCase());
    case "boolean":
      if (/^(?:true|1|yes|on)$/i.test(text)) return true;
      return /^(?:false|0|no|off)$/i.test(text) ? false : undefined;
    case "integer":
      return /^[+-]?\d+$/.test(text) && Number.isSafeInteger(Number(text))
        ? inRange(row, Number(text))
        : undefined;
    case "number":
      return /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i.test(text) && Number.isFinite(Number(text))
        ? inRange(row, Number(text))
        : undefined;
  }
}

function inRange({ above, min, max }: NumberFlag, value: number): number | undefined {
  if (above !== undefined && value <= above) return undefined;
  if (min !== undefined && value < min) return undefined;
  return max !== undefined && value > max ? undefined : value;
}

function isNullable(row: Flag): boolean {
  return row.nullable === true || row.default === null;
}

function isAttempt({ text }: GivenText): boolean {
  return text?.trim() !== "";
}

function wayToSet(row: Flag): string {
  const flag = row.flag === undefined ? [] : [`--${row.flag}`];
  return [...flag, ...currentNames(row)].join(" or ");
}

function quoted(text: string): string {
  return JSON.stringify(text.slice(0, 80));
}
