/** Bounds and timers of the stream protocol, both sides; all times on a clock that never steps. */
export const streamDefaults = {
  /** Frames sent and not acknowledged: the owner's credit. */
  creditFrames: 256,
  /** Frames made behind a used-up credit; one more ends the stream. */
  pendingFramesMax: 4_096,
  /** Silence after which the worker sends a heartbeat, or its last frame again. */
  heartbeatMs: 300,
  /** Without a word from the owner the worker stops; a finished stream is kept that long. */
  orphanMs: 10_000,
  /** Credit used up for that long: the engine is told to stop. */
  stalledMs: 30_000,
  /** A step that is not closed by `flush` goes out after that long. */
  stepMs: 2,
  /** How often a sender, an owner, looks at its timers. */
  senderSweepMs: 50,
  ownerSweepMs: 25,
  /** Streams one worker, one owner holds. */
  streamsMax: 65_536,

  /** Dispatch to the first sign of life of whoever holds the request. */
  acceptMs: 300,
  /** Silence after which the owner asks the worker whether it lives, and that question's limit. */
  probeMs: 250,
  probeTimeoutMs: 600,
  /** After an outage of the bus a silent worker may be dialling still: it does so every 2 s. */
  thawGraceMs: 3_000,
  /** No frame at all; raised to `livenessGaps` times the p99 gap between token frames. */
  livenessMs: 1_000,
  livenessGaps: 8,
  /** Heartbeats but no token, after the first; raised to `idleGaps` times the p99 gap. */
  idleMs: 30_000,
  idleGaps: 20,
  resumeThrottleMs: 200,
  cancelThrottleMs: 1_000,
  /** A quarter of the credit, so that a lost acknowledgement or two stops nobody. */
  ackFrames: 64,
  ackMs: 250,
  /** An owner with nothing to acknowledge says that it lives. */
  keepAliveMs: 2_500,
  /** Dispatches that may fail before any output of a call. */
  dispatchRetriesMax: 3,
  /** The same for a started answer, which waits between them: a router may be starting anew. */
  startedRetriesMax: 6,
  retryDelayMs: 50,
  retryDelayMaxMs: 1_000,
} as const;

/** Whether the bus itself is known to carry messages; silence proves nothing while it is closed. */
export interface EchoGate {
  readonly open: boolean;
  /** Calls `listener` when the gate opens again; returns the unsubscribe function. */
  onThaw(listener: () => void): () => void;
}

export const alwaysOpen: EchoGate = { open: true, onThaw: () => () => {} };
