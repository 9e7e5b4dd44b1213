#!/usr/bin/env node
import { runCommand } from "./commands.ts";

process.exitCode = await runCommand(process.argv.slice(2), {
  environment: process.env,
  print: (text) => {
    process.stdout.write(text);
  },
  complain: (line) => {
    process.stderr.write(`${line}\n`);
  },
});
