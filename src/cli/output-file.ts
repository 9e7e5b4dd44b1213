/** Files that a command writes where a flag says. */
import { writeFile } from "node:fs/promises";
import { TiergridError } from "../base/errors.ts";

/** Writes `text` to the path that `flag` names; throws `config_invalid` where that cannot be. */
export async function writeOutput(flag: string, path: string, text: string): Promise<void> {
  try {
    await writeFile(path, text);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new TiergridError("config_invalid", `${flag}: cannot write ${path}: ${why}`);
  }
}
