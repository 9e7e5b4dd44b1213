/**
 * Just enough of a WebAssembly assembler to write one numeric module as nested TypeScript calls:
 * every builder returns its operands' code followed by its own opcode, so an expression reads as
 * it computes. Opcodes: WebAssembly core specification 1.0, chapter 5.
 */

/** Instructions in binary form. */
export type Code = readonly number[];
type Unary = (a: Code) => Code;
type Binary = (a: Code, b: Code) => Code;

export const i32 = 0x7f;
export const i64 = 0x7e;

export interface WasmFunction {
  readonly params: Code;
  readonly results: Code;
  /** Types of the locals; their numbers follow those of the parameters. */
  readonly locals: Code;
  readonly body: Code;
}

// Instructions: each builder returns its operands' code followed by its own opcode.
const unsignedLeb = (value: number): number[] =>
  value < 128 ? [value] : [(value & 127) | 128, ...unsignedLeb(value >>> 7)];

function signedLeb(value: bigint): number[] {
  const low = Number(value & 127n);
  const rest = value >> 7n;
  const last = (rest === 0n && low < 64) || (rest === -1n && low >= 64);
  return last ? [low] : [low | 128, ...signedLeb(rest)];
}

const binary =
  (opcode: number): Binary =>
  (a, b) => [...a, ...b, opcode];
const unary =
  (opcode: number): Unary =>
  (a) => [...a, opcode];
export const get = (local: number): Code => [0x20, local];
export const set = (local: number, value: Code): Code => [...value, 0x21, local];
export const int = (value: number): Code => [0x41, ...signedLeb(BigInt(value))];
export const long = (value: bigint): Code => [0x42, ...signedLeb(BigInt.asIntN(64, value))];
export const load64 = (address: Code, offset = 0): Code => [
  ...address,
  0x29,
  0,
  ...unsignedLeb(offset),
];
export const load32 = (address: Code, offset = 0): Code => [
  ...address,
  0x35,
  0,
  ...unsignedLeb(offset),
];
export const load8 = (address: Code): Code => [...address, 0x31, 0, 0];
export const store64 = (address: Code, value: Code, offset = 0): Code => [
  ...address,
  ...value,
  0x37,
  0,
  ...unsignedLeb(offset),
];
export const call = (index: number, ...args: Code[]): Code => [...args.flat(), 0x10, index];
export const ifThen = (condition: Code, ...body: Code[]): Code => [
  ...condition,
  0x04,
  0x40,
  ...body.flat(),
  0x0b,
];
/** `do { body } while (condition)`. */
export const doWhile = (condition: Code, ...body: Code[]): Code => [
  0x03,
  0x40,
  ...body.flat(),
  ...condition,
  0x0d,
  0,
  0x0b,
];
export const giveBack = (value: Code): Code => [...value, 0x0f];

export const addInt: Binary = binary(0x6a);
export const subInt: Binary = binary(0x6b);
export const lessInt: Binary = binary(0x49);
export const aboveInt: Binary = binary(0x4b);
export const shiftInt: Binary = binary(0x76);
export const isZero: Unary = unary(0x45);
export const widen: Unary = unary(0xad);
export const add: Binary = binary(0x7c);
export const sub: Binary = binary(0x7d);
export const mul: Binary = binary(0x7e);
export const and: Binary = binary(0x83);
export const or: Binary = binary(0x84);
export const xor: Binary = binary(0x85);
export const left: Binary = binary(0x86);
export const right: Binary = binary(0x88);
export const rotate: Binary = binary(0x89);
export const low32 = (value: Code): Code => and(value, long(0xffffffffn));
export const high32 = (value: Code): Code => right(value, long(32n));

const list = (items: readonly Code[]): Code => [...unsignedLeb(items.length), ...items.flat()];
const sized = (content: Code): Code => [...unsignedLeb(content.length), ...content];
const named = (name: string): Code => sized([...Buffer.from(name)]);
const section = (id: number, items: readonly Code[]): Code => [id, ...sized(list(items))];

export interface WasmModule {
  readonly functions: readonly WasmFunction[];
  /** Size of the one memory, exported as `memory`; it cannot grow. */
  readonly pages: number;
  readonly exports: Readonly<Record<string, WasmFunction>>;
}

/** The module's bytes: one type per function. */
export function assembleModule(module: WasmModule): Uint8Array<ArrayBuffer> {
  const { functions, pages } = module;
  const types = functions.map((f) => [0x60, ...sized(f.params), ...sized(f.results)]);
  const indexes = functions.map((_, index) => unsignedLeb(index));
  const bodies = functions.map((f) =>
    sized([...list(f.locals.map((type) => [1, type])), ...f.body, 0x0b]),
  );
  const exported = Object.entries(module.exports).map(([name, f]) => [
    ...named(name),
    0,
    ...unsignedLeb(functions.indexOf(f)),
  ]);
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, types),
    ...section(3, indexes),
    ...section(5, [[1, ...unsignedLeb(pages), ...unsignedLeb(pages)]]),
    ...section(7, [[...named("memory"), 2, 0], ...exported]),
    ...section(10, bodies),
  ]);
}
