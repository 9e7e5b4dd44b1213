/** What the parts of the frontend share: settings, dependencies, the requests under way. */
import type { Clock } from "../base/clock.ts";
import type { TiergridError } from "../base/errors.ts";
import { defaultOverloadStatus } from "../base/errors.ts";
import type { Random } from "../base/random.ts";
import type { Log } from "../runtime/log.ts";
import { hashFirstMinTokens } from "../runtime/prompt-source.ts";
import type { StreamOwner } from "../runtime/stream-owner.ts";
import type { FrontendMetrics } from "./request-record.ts";
import type { RouteExplainer } from "./route-explainer.ts";
import type { ModelDirectory } from "./served-model.ts";
import { keepAliveDefaultMs } from "./sse-writer.ts";
import type { ModelTokenizer } from "./tokenizer.ts";
import type { TextEncoding } from "./tokenizer-thread.ts";

export interface FrontendSettings {
  readonly bodyBytesMax: number;
  /** Status of every overload answer, 400..599. */
  readonly overloadStatus: number;
  /** A caller may lower it with `x-request-timeout-ms`. */
  readonly requestDeadlineMs: number;
  /** Acceptance to first token. */
  readonly firstTokenTimeoutMs: number;
  readonly keepAliveMs: number;
  /** Prompts of that many tokens or more reach the routers as hashes; 0 = none does. */
  readonly hashFirstMinTokens: number;
  readonly migrationLimit: number;
  /** Longer sequences do not migrate; undefined = all do. */
  readonly migrationMaxSeqTokens: number | undefined;
  readonly enforceDisagg: boolean;
  /** Tell the route in `x-route-*` headers. */
  readonly routeHeaders: boolean;
  /** Drop `nvext`, `extra_args` and the headers about routing. */
  readonly disableNvext: boolean;
  readonly ignoreUnknownFields: boolean;
  /** Running streams may take that long when the server closes. */
  readonly gracefulShutdownMs: number;
  readonly connectionsMax: number;
}

export const frontendDefaults: FrontendSettings = {
  bodyBytesMax: 4 * 1024 * 1024,
  overloadStatus: defaultOverloadStatus,
  requestDeadlineMs: 600_000,
  firstTokenTimeoutMs: 60_000,
  keepAliveMs: keepAliveDefaultMs,
  hashFirstMinTokens,
  migrationLimit: 3,
  migrationMaxSeqTokens: undefined,
  enforceDisagg: false,
  routeHeaders: true,
  disableNvext: false,
  ignoreUnknownFields: false,
  gracefulShutdownMs: 30_000,
  connectionsMax: 4096,
};

/** Serving paths for `/health`; ids as decimal strings, since they exceed 2^53. */
export interface HealthDetails {
  readonly endpoints: readonly string[];
  readonly instances: readonly Readonly<Record<string, unknown>>[];
  readonly pools: readonly unknown[];
}

export interface FrontendOptions {
  readonly owner: Pick<StreamOwner, "call">;
  readonly models: ModelDirectory;
  readonly metrics: FrontendMetrics;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** Missing values are `frontendDefaults`. */
  readonly settings?: Partial<FrontendSettings>;
  /** Tokenizer of a model; default: the mock model's for every name. */
  readonly tokenizerOf?: (model: string) => ModelTokenizer;
  /** False while the bus is down; requests are then refused at once. */
  readonly busConnected?: () => boolean;
  readonly healthDetails?: () => HealthDetails;
  /** Where it asks what routers would do; without it those questions answer 501. */
  readonly explainer?: RouteExplainer;
}

export interface FrontendParts extends Required<Omit<FrontendOptions, "settings" | "explainer">> {
  readonly explainer: RouteExplainer | undefined;
  readonly settings: FrontendSettings;
  readonly encodingOf: (tokenizer: ModelTokenizer) => TextEncoding;
  /** Requests under way by id, each with the way to end it. */
  readonly running: Map<string, (error: TiergridError) => void>;
}
