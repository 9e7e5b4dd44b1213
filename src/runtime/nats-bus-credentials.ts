/** How a process proves itself to the servers: from their addresses, or from files. */
import { readFileSync } from "node:fs";
import { credsAuthenticator, nkeyAuthenticator } from "nats";
import { TiergridError, toTiergridError } from "../base/errors.ts";
import type { NatsBusOptions } from "./nats-bus.ts";

export interface NatsAccess {
  /** Addresses separated by commas; one may carry `user:password@` or `token@`. */
  readonly servers: string;
  readonly credsFile: string | null;
  readonly nkeySeedFile: string | null;
  /** Any of the next three turns TLS on. */
  readonly caFile: string | null;
  readonly certFile: string | null;
  readonly keyFile: string | null;
}

export const serversMax = 64;

/** The part of a bus's options that says where and as whom; throws `config_invalid`. */
export function natsAccess(
  access: NatsAccess,
): Pick<NatsBusOptions, "servers" | "credentials" | "tls"> {
  const parsed = access.servers.split(",").map(readServer);
  if (parsed.length > serversMax) {
    throw invalid(`at most ${serversMax} NATS servers, got ${parsed.length}`);
  }
  const { caFile, certFile, keyFile, credsFile, nkeySeedFile } = access;
  if (credsFile !== null && nkeySeedFile !== null) {
    throw invalid("NATS_CREDS_FILE and NATS_NKEY_SEED_FILE exclude each other");
  }
  if ((certFile === null) !== (keyFile === null)) {
    throw invalid("NATS_CERT_FILE and NATS_KEY_FILE belong together");
  }
  const fromAddress = parsed.find(({ credentials }) => credentials)?.credentials;
  const credentials =
    credsFile !== null
      ? { authenticator: credsAuthenticator(read(credsFile)) }
      : nkeySeedFile !== null
        ? { authenticator: nkeyAuthenticator(trimmed(read(nkeySeedFile))) }
        : fromAddress;
  const tls = {
    ...(caFile !== null && { caFile: readable(caFile) }),
    ...(certFile !== null && { certFile: readable(certFile) }),
    ...(keyFile !== null && { keyFile: readable(keyFile) }),
  };
  return {
    servers: parsed.map(({ server }) => server),
    ...(credentials && { credentials }),
    ...(Object.keys(tls).length > 0 && { tls }),
  };
}

/** The same for servers that need no files. */
export function natsServers(servers: string): ReturnType<typeof natsAccess> {
  const files = { credsFile: null, nkeySeedFile: null, caFile: null, certFile: null };
  return natsAccess({ servers, ...files, keyFile: null });
}

interface Server {
  readonly server: string;
  readonly credentials: NatsBusOptions["credentials"];
}

function readServer(text: string): Server {
  const address = text.trim();
  const [, scheme = "nats://", user, host] =
    /^([a-z]+:\/\/)?(?:([^@/]*)@)?([^@/]+)\/?$/.exec(address) ?? [];
  if (host === undefined) throw invalid("a NATS server: expected nats://host:port");
  const server = `${scheme}${host}`;
  if (user === undefined) return { server, credentials: undefined };
  const [name = "", ...pass] = user.split(":").map(decodeURIComponent);
  const credentials = pass.length > 0 ? { user: name, pass: pass.join(":") } : { token: name };
  return { server, credentials };
}

function read(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (thrown) {
    throw invalid(toTiergridError(thrown).message);
  }
}

/** Names the fault before the first dial, where it would look like a server that is not there. */
function readable(path: string): string {
  read(path);
  return path;
}

function trimmed(bytes: Uint8Array): Uint8Array {
  return new TextEncoder().encode(new TextDecoder().decode(bytes).trim());
}

function invalid(message: string): TiergridError {
  return new TiergridError("config_invalid", message);
}
