#!/usr/bin/env node
import { runCommand } from "./commands.ts";

const code = await runCommand(process.argv.slice(2), {
  environment: process.env,
  print: (text) => {
    process.stdout.write(text);
  },
  complain: (line) => {
    process.stderr.write(`${line}\n`);
  },
});

// A command that failed halfway may have left sockets and timers; what it printed goes out first.
process.stdout.write("", () => process.exit(code));
