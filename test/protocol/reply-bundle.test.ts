import fc from "fast-check";
import { expect, it } from "vitest";
import { ReplyBundle, readReplies, replyPrefixLength } from "../../src/protocol/reply-bundle.ts";

function read(bytes: Uint8Array): [string, string][] {
  const found: [string, string][] = [];
  readReplies(bytes, (id, payload) => found.push([id, Buffer.from(payload).toString("hex")]));
  return found;
}

it("finds the prefix of subjects that await a reply, and of no others", () => {
  const prefixOf = (subject: string): string => subject.slice(0, replyPrefixLength(subject));
  expect(prefixOf("_R.fe.0a1b.rq.k3")).toBe("_R.fe.0a1b.rq");
  expect(replyPrefixLength(`_R.fe.0a1b.rq.${"k".repeat(255)}`)).toBe(13);
  const others = ["tg.w.a.rq.k3", "_INBOX.x.rq.1", "_R.fe.0a1b.s", `_R.fe.0.rq.${"k".repeat(256)}`];
  expect(others.map(replyPrefixLength)).toEqual([0, 0, 0, 0]);
});

it("lays out id length, id, payload length and payload, little endian", () => {
  const bundle = new ReplyBundle(100);
  bundle.add("k3", Buffer.from("hi"));
  bundle.add("z", Buffer.from(""));
  expect(Buffer.from(bundle.take()).toString("hex")).toBe("026b330200000068690" + "17a00000000");
  expect(bundle.count).toBe(0);
});

it("answers a lone reply's payload by itself", () => {
  const bundle = new ReplyBundle(100);
  bundle.add("k3", Buffer.from("hi"));
  expect([bundle.count, bundle.id]).toEqual([1, "k3"]);
  expect(Buffer.from(bundle.take()).toString()).toBe("hi");
});

it("refuses what does not fit and keeps what it has", () => {
  const bundle = new ReplyBundle(16);
  expect(bundle.add("a", Buffer.from("12"))).toBe(true);
  expect(bundle.add("b", Buffer.from("123"))).toBe(false);
  expect(bundle.add("c", Buffer.from("12"))).toBe(true);
  expect(bundle.bytes).toBe(16);
  expect(read(bundle.take()).map(([id]) => id)).toEqual(["a", "c"]);
});

it("gives back every reply in order, whatever its size and the bytes' offset", () => {
  const reply = fc.tuple(
    fc.string({ unit: fc.constantFrom(..."0123456789abcdefz"), minLength: 1, maxLength: 9 }),
    fc.uint8Array({ maxLength: 60 }),
  );
  const replies = fc.array(reply, { minLength: 2, maxLength: 20 });
  fc.assert(
    fc.property(replies, fc.nat(7), (sent, offset) => {
      const bundle = new ReplyBundle(4_000);
      for (const [id, payload] of sent) bundle.add(id, payload);
      const bytes = bundle.take();
      const moved = new Uint8Array(bytes.length + offset).subarray(offset);
      moved.set(bytes);
      const wanted = sent.map(([id, payload]) => [id, Buffer.from(payload).toString("hex")]);
      expect(read(moved)).toEqual(wanted);
    }),
    { seed: 77 },
  );
});

it("gives back the replies before a cut and names the cut", () => {
  const bundle = new ReplyBundle(100);
  bundle.add("a", Buffer.from("one"));
  bundle.add("b", Buffer.from("two"));
  const bytes = Buffer.from(bundle.take());
  for (const end of [bytes.length - 1, 14, 10]) {
    const found: string[] = [];
    const cut = (): void => readReplies(bytes.subarray(0, end), (id) => found.push(id));
    expect(cut).toThrow(/a reply of \d+ bytes, got/);
    expect(found).toEqual(["a"]);
  }
  expect(read(bytes.subarray(0, 0))).toEqual([]);
});
