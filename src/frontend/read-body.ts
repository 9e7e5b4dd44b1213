/** Request bodies, bounded by the bytes that arrive, whatever `content-length` says. */
import type { IncomingMessage } from "node:http";
import { TiergridError } from "../base/errors.ts";

/** Where a body comes from: the server's own message, or a web request in process. */
export interface BodySource {
  readonly incoming: IncomingMessage | undefined;
  readonly web: Request;
}

/**
 * Reads a whole body. Throws `payload_too_large` above `bytesMax` and `cancelled` when the client
 * leaves before the end.
 */
export async function readBody(source: BodySource, bytesMax: number): Promise<Uint8Array> {
  const declared = Number(source.incoming?.headers["content-length"] ?? 0);
  if (declared > bytesMax) {
    source.incoming?.resume();
    throw tooLarge(declared, bytesMax);
  }
  return source.incoming
    ? await readIncoming(source.incoming, bytesMax)
    : await readWeb(source.web, bytesMax);
}

function readIncoming(incoming: IncomingMessage, bytesMax: number): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const chunks: Uint8Array[] = [];
    let bytes = 0;
    incoming.on("data", (chunk: Uint8Array) => {
      bytes += chunk.byteLength;
      // What is too much is read and dropped: a client that still writes would not see the answer.
      if (bytes <= bytesMax) chunks.push(chunk);
      else {
        chunks.length = 0;
        reject(tooLarge(bytes, bytesMax));
      }
    });
    incoming.on("end", () => resolve(Buffer.concat(chunks)));
    incoming.on("error", () => reject(left()));
    incoming.on("close", () => reject(left()));
  });
}

async function readWeb(web: Request, bytesMax: number): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of web.body ?? []) {
    bytes += chunk.byteLength;
    if (bytes > bytesMax) throw tooLarge(bytes, bytesMax);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function tooLarge(bytes: number, bytesMax: number): TiergridError {
  const message = `the body has ${bytes} bytes or more, at most ${bytesMax} are accepted`;
  return new TiergridError("payload_too_large", message, { bytes, max: bytesMax });
}

function left(): TiergridError {
  return new TiergridError("cancelled", "the client left while it sent its request");
}
