/** Flags that every long-running command has: bus, logs, system server, shutdown. */
import { coreChoices } from "../base/fast-core.ts";
import type { Environment, FlagTable } from "../base/flags.ts";

/** For commands that hash prompts. */
export const coreFlags = {
  core: {
    env: "TIERGRID_CORE",
    type: "choice",
    choices: coreChoices,
    default: "auto",
    group: "Fast core",
    help: "Hashing and index: wasm, ts (slow hashing), or auto: wasm where it can be had.",
  },
} as const satisfies FlagTable;

export const processFlags = {
  nats: {
    flag: "nats",
    env: "NATS_SERVER",
    otherEnv: ["NATS_URL"],
    type: "string",
    default: "nats://localhost:4222",
    group: "Bus",
    help: "Servers of the cluster, separated by commas.",
  },
  natsCredsFile: {
    env: "NATS_CREDS_FILE",
    type: "string",
    default: null,
    group: "Bus",
    help: "Credentials file of a JWT user.",
  },
  natsNkeySeedFile: {
    env: "NATS_NKEY_SEED_FILE",
    type: "string",
    default: null,
    group: "Bus",
    help: "File that holds the seed of an nkey user.",
  },
  natsCaFile: {
    env: "NATS_CA_FILE",
    type: "string",
    default: null,
    group: "Bus",
    help: "Authority that signed the servers' certificates; turns TLS on.",
  },
  natsCertFile: {
    env: "NATS_CERT_FILE",
    type: "string",
    default: null,
    group: "Bus",
    help: "Certificate of this client.",
  },
  natsKeyFile: {
    env: "NATS_KEY_FILE",
    type: "string",
    default: null,
    group: "Bus",
    help: "Key of this client's certificate.",
  },
  systemPort: {
    flag: "system-port",
    env: "DYN_SYSTEM_PORT",
    type: "integer",
    min: -1,
    max: 65_535,
    default: 9090,
    group: "System server",
    help: "Port of /live, /health and /metrics; 0 takes a free one, -1 turns the server off.",
  },
  systemHost: {
    flag: "system-host",
    env: "DYN_SYSTEM_HOST",
    type: "string",
    default: "0.0.0.0",
    group: "System server",
    help: "Address of the system server.",
  },
  systemLivePath: {
    env: "DYN_SYSTEM_LIVE_PATH",
    type: "string",
    default: "/live",
    group: "System server",
    help: "Path of the liveness probe.",
  },
  systemHealthPath: {
    env: "DYN_SYSTEM_HEALTH_PATH",
    type: "string",
    default: "/health",
    group: "System server",
    help: "Path of the readiness probe.",
  },
  log: {
    flag: "log",
    env: "DYN_LOG",
    type: "string",
    default: "info",
    group: "Logs",
    help: "Filter: a level, then target=level pairs, e.g. info,router.selection=debug.",
  },
  logJson: {
    flag: "log-json",
    env: "DYN_LOGGING_JSONL",
    type: "boolean",
    default: false,
    group: "Logs",
    help: "One JSON object per line instead of text.",
  },
  drainTimeoutSecs: {
    env: "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS",
    type: "number",
    min: 0,
    max: 3600,
    default: 30,
    group: "Shutdown",
    help: "Seconds that work under way gets to end.",
  },
} as const satisfies FlagTable;

/** Variables of the reference that choose what is fixed here, and the value that is fixed. */
const planes = [
  ["DYN_REQUEST_PLANE", "nats"],
  ["DYN_EVENT_PLANE", "nats"],
  ["DYN_DISCOVERY_BACKEND", "nats"],
] as const;

export interface PlaneCheck {
  readonly problems: readonly string[];
  readonly notices: readonly string[];
}

/** Accepts what asks for NATS with a notice; refuses what asks for a transport that is not here. */
export function checkPlanes(environment: Environment): PlaneCheck {
  const problems: string[] = [];
  const notices: string[] = [];
  for (const [name, fixed] of planes) {
    const value = (environment[name] ?? "").trim();
    if (value === "") continue;
    if (value === fixed) notices.push(`${name} is always ${fixed}; the variable has no effect`);
    else problems.push(`${name}: only ${fixed} is supported, got ${JSON.stringify(value)}`);
  }
  if ((environment["ETCD_ENDPOINTS"] ?? "").trim() !== "") {
    notices.push("ETCD_ENDPOINTS has no effect: discovery runs over NATS");
  }
  return { problems, notices };
}
