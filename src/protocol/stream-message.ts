/** One frame as one message, in the format that the stream's owner reads. */
import type { StreamAddress } from "./requests.ts";
import { BundleWriter } from "./stream-bundle.ts";
import type { StreamFrame } from "./stream-frames.ts";
import { encodeJsonFrame } from "./stream-json.ts";

/** For senders of single frames, e.g. a dispatcher's heartbeats; it has no epoch of its own. */
export function encodeStreamFrame(
  stream: StreamAddress,
  rid: string,
  frame: StreamFrame,
): Uint8Array {
  if (stream.format === "json") return encodeJsonFrame(rid, frame);
  const writer = new BundleWriter("");
  writer.add(stream.key, frame);
  return writer.take();
}
