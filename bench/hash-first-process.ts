/**
 * One process of the hash-first bench: `node hash-first-process.js <role> <nats url>`.
 *
 *   worker   announces itself to the pool's router; accepts what it is sent, and drops it
 *   client   hashes each prompt, asks the router with the hashes, sends the prompt to the worker that it
 *            names, says that its first token is there and that it is over
 */
import { realClock } from "../src/base/clock.ts";
import { osRandom, randomHex128 } from "../src/base/random.ts";
import { routerComponent } from "../src/local-router/local-endpoints.ts";
import { loadBlockHasher } from "../src/protocol/block-hashes.ts";
import { encodeHashQuestion } from "../src/protocol/hash-frame.ts";
import { encodeReceipt } from "../src/protocol/receipts.ts";
import { decodeDispatch, encodeDispatch } from "../src/protocol/request-frame.ts";
import type { RequestBody } from "../src/protocol/requests.ts";
import { controlSubject, endpointSubject, generateSubject } from "../src/protocol/subjects.ts";
import { announce, newEpoch } from "../src/runtime/announce.ts";
import type { Bus } from "../src/runtime/bus.ts";
import type { InstanceCard } from "../src/runtime/instance-card.ts";
import { connectNatsBus } from "../src/runtime/nats-bus.ts";
import { dispatchTo } from "./stream-bench-client.ts";
import { type Client, ended, longPrompt, runWindows } from "./stream-bench-go.ts";

const [namespace, blockSize] = ["pool", 16];
const timeoutMs = 20_000;
const retryMs = 200;
/** Looks for a router that is ready, until the bench gives up. */
const triesMax = 600;

function worker(bus: Bus): void {
  const [inst, epoch] = ["1", newEpoch(osRandom)];
  bus.subscribe(generateSubject("w", inst), ({ payload, reply }) => {
    const { envelope } = decodeDispatch({ payload, reply }, osRandom);
    const { attempt, decisions } = envelope;
    if (reply === undefined) return;
    const place = { workerId: inst, dpRank: 0, control: controlSubject("w", inst) };
    bus.publish(
      reply,
      encodeReceipt({ type: "accepted", ...{ attempt, inst, epoch, decisions }, ...place }),
    );
  });
  const card: InstanceCard = {
    ...{ inst, epoch, kind: "w", namespace, component: "backend", endpoint: "generate" },
    ...{ model: "m", role: "aggregated", workerId: inst, dpStart: 0, dpSize: 1, blockSize },
    ...{ totalKvBlocks: 1e6, maxNumBatchedTokens: 8192, contextLength: 1 << 20, state: "ready" },
    ...{ protocolVersions: [1], identityHashes: false, kvEvents: false },
  };
  announce({ bus, clock: realClock, random: osRandom, card: () => card });
}

/** The router's answer, or its error. */
type Answer = Readonly<Record<string, string>>;

async function client(bus: Bus): Promise<Client> {
  const hasher = await loadBlockHasher();
  const tokens = longPrompt();
  const route = endpointSubject({ namespace, component: routerComponent, endpoint: "route" });
  const answerTo = async (subject: string, question: Uint8Array): Promise<Answer> =>
    JSON.parse(
      Buffer.from((await bus.request(subject, question, { timeoutMs })).payload).toString(),
    );
  const call = (subject: string, body: object): Promise<Answer> =>
    answerTo(subject, Buffer.from(JSON.stringify(body)));
  const generate = async (): Promise<boolean> => {
    const id = { request_id: randomHex128(osRandom) };
    const { local: localHashes } = hasher.hashBlocks(tokens, blockSize);
    const body = { method: "new", ...id } as RequestBody;
    const question = encodeHashQuestion({ body, islTokens: tokens.length, blockSize, localHashes });
    const { generate_subject: to, route_subject: books } = await answerTo(route, question);
    if (to === undefined || books === undefined) return false;
    const dispatch = encodeDispatch(dispatchTo(`${bus.inboxPrefix}.none`, tokens, 0));
    await bus.request(to, dispatch, { timeoutMs });
    const told = await Promise.all([
      call(books, { method: "mark_prefill", ...id }),
      call(books, { method: "mark_free", ...id }),
    ]);
    return told.every(({ success }) => Boolean(success));
  };
  // Until the router is there and knows the worker.
  for (let tries = 1; ; tries++) {
    const failure = await generate().then((done) => (done ? undefined : "refused"), String);
    if (failure === undefined) break;
    if (tries === triesMax) throw new Error(`the router takes no request: ${failure}`);
    await new Promise((resolve) => setTimeout(resolve, retryMs));
  }
  return (go, counter) => {
    const ask = async (): Promise<void> => {
      if (await generate()) counter.units += 1;
      else counter.failed += 1;
      ended(counter, () => void ask());
    };
    for (let stream = 0; stream < go.streams; stream++) void ask();
  };
}

const [role = "", url = ""] = process.argv.slice(2);
const bus = await connectNatsBus({
  ...{ servers: [url], clock: realClock, random: osRandom, failFast: true },
  role: role === "client" ? "fe" : "wk",
});
if (role === "client") runWindows({ "prompt-frame": await client(bus) });
else worker(bus);
await bus.flush();
process.on("disconnect", () => process.exit(0));
process.send?.({ type: "ready" });
