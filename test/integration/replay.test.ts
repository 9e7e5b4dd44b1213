/** A replay as a process: its policies one after the other, or each in a process of its own. */
import { expect, it } from "vitest";
import { tiergrid } from "./tiergrid-process.ts";

const line = "replay --synth demo --requests 200 --policies blocks,latency,llmd,random";

it("gives the same bytes with one job and with three, and progress on stderr", async () => {
  const one = tiergrid([...line.split(" "), "--json"]);
  const three = tiergrid([...line.split(" "), "--json", "--jobs", "3"]);
  expect(await one.ended()).toBe(0);
  expect(await three.ended()).toBe(0);
  expect(three.stdout()).toBe(one.stdout());
  expect(Object.keys(JSON.parse(one.stdout()).policies)).toEqual(
    "blocks,latency,llmd,random".split(","),
  );
  expect(three.stderr()).toMatch(/4\/4 \S+ {2}[\d.]+ s/);
});

it("reports a fault in a job's process as its own", async () => {
  const broken = tiergrid([
    ...line.split(" "),
    "--blocks",
    "1",
    "--block-size",
    "7",
    "--jobs",
    "2",
  ]);
  expect(await broken.ended()).toBe(2);
  expect(broken.stderr()).toMatch(/error: .*divisor of 512, got 7/);
});
