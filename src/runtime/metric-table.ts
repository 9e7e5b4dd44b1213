/**
 * Every metric name of the system, in one table by the process that emits it. `dynamo_*` names,
 * labels and buckets are the reference's, so that its dashboards work; `tiergrid_*` are ours.
 * Label values come from config, discovery or closed sets only, never from a client.
 */
import { buckets } from "./metric-buckets.ts";
import { counter, gauge, histogram, type MetricTable } from "./metric-rows.ts";

/** The OpenAI frontend. */
export const frontendMetrics = {
  dynamo_frontend_requests_total: counter("Requests, counted at their end", [
    "model",
    "endpoint",
    "request_type",
    "status",
    "error_type",
  ]),
  dynamo_frontend_inflight_requests: gauge("Requests from HTTP entry to the last byte", ["model"]),
  dynamo_frontend_active_requests: gauge("Requests from HTTP entry to the last byte", ["model"]),
  dynamo_frontend_queued_requests: gauge("Requests from HTTP entry to the first token", ["model"]),
  dynamo_frontend_disconnected_clients: gauge("Clients that went away before the end; only rises"),
  dynamo_frontend_request_duration_seconds: histogram("HTTP entry to the end", buckets.duration, [
    "model",
  ]),
  dynamo_frontend_time_to_first_token_seconds: histogram(
    "HTTP entry to the first chunk with tokens",
    buckets.ttft,
    ["model"],
  ),
  dynamo_frontend_inter_token_latency_seconds: histogram("Gap between tokens", buckets.itl, [
    "model",
  ]),
  dynamo_frontend_input_sequence_tokens: histogram("Prompt tokens", buckets.isl, ["model"]),
  dynamo_frontend_cached_tokens: histogram("Prompt tokens the engine had cached", buckets.isl, [
    "model",
  ]),
  dynamo_frontend_output_sequence_tokens: histogram("Generated tokens", buckets.osl, ["model"]),
  dynamo_frontend_output_tokens_total: counter("Generated tokens, as they arrive", ["model"]),
  dynamo_frontend_tokenizer_latency_ms: histogram("Tokenizer time", buckets.tokenizerMs, [
    "operation",
  ]),
  dynamo_frontend_stage_duration_seconds: histogram("Time in a stage", buckets.stage, ["stage"]),
  dynamo_frontend_template_seconds: histogram("Chat template time", buckets.template),
  dynamo_frontend_model_migration_total: counter("Requests moved to another worker", [
    "model",
    "migration_type",
  ]),
  dynamo_frontend_model_cancellation_total: counter("Requests cancelled by the client", [
    "model",
    "endpoint",
    "request_type",
  ]),
  dynamo_frontend_model_rejection_total: counter("Requests refused for lack of room", [
    "model",
    "endpoint",
  ]),
  dynamo_frontend_model_workers: gauge("Workers of a model", ["model"]),
  dynamo_frontend_model_context_length: gauge("Prompt and output tokens at most", ["model"]),
  dynamo_frontend_model_kv_cache_block_size: gauge("Tokens per block", ["model"]),
  dynamo_frontend_model_migration_limit: gauge("Migrations of one request at most", ["model"]),
  tiergrid_sla_target_rejected_total: counter("SLA targets that could not be read", ["reason"]),
  tiergrid_hashed_dispatches_total: counter("Dispatches whose prompt went as hashes"),
  tiergrid_prompts_handed_out_total: counter("Prompts handed out to the workers that asked"),
  tiergrid_stream_resumes_total: counter("Streams resumed after a gap"),
  tiergrid_stream_fenced_frames_total: counter("Frames of an attempt that was given up"),
  tiergrid_stream_duplicate_tokens_total: counter("Tokens that came twice and were dropped"),
  tiergrid_stream_gaps_total: counter("Gaps in the numbering of a stream"),
  tiergrid_stream_unknown_frames_total: counter("Frames of an unknown type", ["type"]),
  tiergrid_stream_stall_seconds: histogram("Silence inside a stream", buckets.stall),
  tiergrid_disagg_fallback_total: counter("Disaggregated requests served by one worker", ["why"]),
  tiergrid_prefill_complete_answers_total: counter("Requests answered by the prefill leg alone"),
  tiergrid_sse_write_stalls_total: counter("Waits for a slow HTTP client"),
};

/** What global router, local router and worker serve; their automatic labels are constants. */
export const componentMetrics = {
  dynamo_component_requests_total: counter("Requests, counted at receipt"),
  dynamo_component_inflight_requests: gauge("Requests from receipt to the end of the handler"),
  dynamo_component_request_duration_seconds: histogram("Receipt to the end", buckets.work),
  dynamo_component_request_bytes_total: counter("Bytes of request payloads"),
  dynamo_component_response_bytes_total: counter("Bytes of response payloads; 0 when delegated"),
  dynamo_component_errors_total: counter("Failed requests", ["error_type"]),
  dynamo_component_cancellation_total: counter("Cancelled requests"),
  dynamo_component_uptime_seconds: gauge("Seconds since the start"),
};

/** Callers on the bus: frontend and both routers. */
export const requestPlaneMetrics = {
  dynamo_request_plane_queue_seconds: histogram("Entry to published", buckets.short),
  dynamo_request_plane_send_seconds: histogram("Published to accepted", buckets.short),
  dynamo_request_plane_roundtrip_ttft_seconds: histogram("To the first token", buckets.planeTtft),
  dynamo_request_plane_inflight_requests: gauge("Requests under way"),
};

/** Labels of one data-parallel rank of a worker. */
const rankLabels = ["worker_id", "dp_rank", "worker_type"] as const;
const queueLabels = ["model", "worker_type", "policy_class"] as const;

/** The local router of one pool. */
export const localRouterMetrics = {
  dynamo_frontend_worker_active_decode_blocks: gauge("Blocks booked on a worker", rankLabels),
  dynamo_frontend_worker_active_prefill_tokens: gauge("Prompt tokens not yet done", rankLabels),
  dynamo_frontend_worker_last_time_to_first_token_seconds: gauge("Last TTFT", rankLabels),
  dynamo_frontend_worker_last_input_sequence_tokens: gauge("Prompt of the last TTFT", rankLabels),
  dynamo_frontend_worker_last_inter_token_latency_seconds: gauge("Last mean ITL", rankLabels),
  dynamo_component_kv_cache_events_applied: counter("KV events taken into the index", [
    "event_type",
    "status",
  ]),
  dynamo_component_kv_cache_event_warnings: counter("KV events that say what is known", [
    "warning_kind",
  ]),
  dynamo_component_router_requests_started_total: counter("Requests, counted at routing"),
  dynamo_component_router_requests_total: counter("Requests, counted at the end of the stream"),
  dynamo_component_router_time_to_first_token_seconds: histogram(
    "Receipt to the first-output notice",
    buckets.ttft,
  ),
  dynamo_component_router_inter_token_latency_seconds: histogram(
    "Gaps between tokens, merged from the end notice",
    buckets.itl,
  ),
  dynamo_component_router_input_sequence_tokens: histogram("Prompt tokens", buckets.isl),
  dynamo_component_router_output_sequence_tokens: histogram("Generated tokens", buckets.osl),
  dynamo_component_router_kv_hit_rate: histogram(
    "Prompt blocks believed cached on the chosen worker",
    buckets.rate,
  ),
  dynamo_component_router_worker_registered: gauge("1 for a worker that may be chosen", [
    "router_worker_id",
    "dp_rank",
    "worker_type",
  ]),
  tiergrid_workers_refused_total: counter("Workers that do not fit the pool", ["reason"]),
  dynamo_router_overhead_block_hashing_ms: histogram("Block hashes", buckets.computeMs),
  dynamo_router_overhead_seq_hashing_ms: histogram("Sequence hashes", buckets.computeMs),
  dynamo_router_overhead_indexer_find_matches_ms: histogram("Index match", buckets.asyncMs),
  dynamo_router_overhead_scheduling_ms: histogram("Cost, choice, booking", buckets.asyncMs),
  dynamo_router_overhead_total_ms: histogram("The whole decision", buckets.asyncMs),
  tiergrid_index_nodes: gauge("Blocks known to the index, each counted once"),
  tiergrid_index_blocks: gauge("(worker, block) pairs in the index"),
  tiergrid_index_bytes_estimate: gauge("Bytes of the index tables"),
  tiergrid_index_bytes_per_block: gauge("Bytes of the index tables per (worker, block) pair"),
  tiergrid_held_requests: gauge("Booked requests that wait for their turn at their worker"),
  tiergrid_hold_seconds: histogram("How long those waited that were held", buckets.ttft),
  dynamo_frontend_router_queue_pending_requests: gauge("Requests that wait for room", queueLabels),
  dynamo_frontend_router_queue_pending_isl_tokens: gauge("Their prompt tokens", queueLabels),
  dynamo_frontend_router_queue_pending_cached_tokens: gauge(
    "Their prompt tokens that some worker had cached when they came",
    queueLabels,
  ),
  dynamo_frontend_router_queue_wait_seconds: histogram(
    "Time in the queue of requests that left it for a worker",
    buckets.ttft,
    queueLabels,
  ),
  dynamo_frontend_router_queue_backpressure_total: counter(
    "Requests refused because they would have had to wait, or too many did",
    [...queueLabels, "reason"],
  ),
  tiergrid_predicted_blocks: gauge("(worker, block) pairs believed cached since a prompt was sent"),
  tiergrid_predicted_bytes: gauge("Bytes of the tables of predicted blocks"),
  tiergrid_predicted_blocks_forgotten_total: counter("Predicted blocks dropped, by what", ["by"]),
  tiergrid_prune_runs_total: counter("Times that the predicted blocks were pruned to their target"),
  tiergrid_index_worker_lag_events: gauge("KV events known missing", ["worker_id", "dp_rank"]),
  tiergrid_index_resyncs_total: counter("Recoveries of a worker's event stream", ["cause"]),
  tiergrid_index_recoveries_total: counter("Ended recoveries of a rank's blocks", ["outcome"]),
  tiergrid_index_recovery_seconds: histogram(
    "Time from the need to recover a rank's blocks to the end of it",
    buckets.ttft,
  ),
  tiergrid_index_recovery_failures_total: counter("Failed attempts of recoveries"),
  tiergrid_kv_event_streams: gauge("Ranks by the state of their event stream", ["state"]),
  tiergrid_kv_events_silent_workers: gauge("Workers that serve but send no KV events"),
  tiergrid_replica_peers: gauge("Other routers of the pool that tell their bookings"),
  tiergrid_replica_bookings: gauge("Open bookings of other routers; held: of unknown workers", [
    "state",
  ]),
  tiergrid_replica_messages_total: counter("Changes of bookings between replicas", ["direction"]),
  tiergrid_replica_dropped_total: counter("Messages of replicas not taken", ["cause"]),
  tiergrid_replica_resyncs_total: counter("Bookings of a replica asked for as a whole", ["cause"]),
  tiergrid_replica_delta_age_seconds: histogram(
    "Age of a replica's oldest change at its arrival, over the fastest message's way",
    buckets.accept,
  ),
  tiergrid_durable_following: gauge("1 while the durable stream is followed"),
  tiergrid_durable_sequence: gauge("Newest message of the stream that was applied"),
  tiergrid_durable_snapshot_sequence: gauge("Newest message that the snapshot contains"),
  tiergrid_durable_stream_messages: gauge("Messages the stream keeps"),
  tiergrid_durable_absent_workers: gauge("Restored workers that have not appeared"),
  tiergrid_durable_messages_total: counter("Messages of the stream by what became of them", [
    "outcome",
  ]),
  tiergrid_durable_snapshots_total: counter("Snapshots by what became of them", ["outcome"]),
  tiergrid_durable_restored_ranks_total: counter("Ranks restored from a snapshot"),
  tiergrid_durable_rebuilds_total: counter("Times the stream began anew"),
  tiergrid_latency_model_coefficient: gauge(
    "Latency model: ms per pass, 10^3 tokens, 10^6 token^2; step, KV memory, sequence; bend shares",
    ["worker_id", "dp_rank", "coefficient"],
  ),
  tiergrid_latency_model_periods_total: counter("Busy periods the latency model has learnt from", [
    "worker_id",
    "dp_rank",
  ]),
  tiergrid_latency_model_median_error: gauge(
    "Median relative error of the last 64 predicted periods",
    ["worker_id", "dp_rank"],
  ),
  tiergrid_latency_model_calibrated: gauge("1 while the fit predicts, 0 while the profile does", [
    "worker_id",
    "dp_rank",
  ]),
  tiergrid_latency_model_output_tokens: gauge("Output expected of requests without a hint"),
  tiergrid_kv_prediction_error_tokens: histogram(
    "Distance of predicted and reported cached tokens",
    buckets.isl,
  ),
};

/** The worker sidecar. */
export const workerMetrics = {
  dynamo_component_kvstats_active_blocks: gauge("Blocks in use", ["dp_rank"]),
  dynamo_component_kvstats_total_blocks: gauge("Blocks of the engine", ["dp_rank"]),
  dynamo_component_kvstats_gpu_cache_usage_percent: gauge("Share in use, 0 to 1", ["dp_rank"]),
  dynamo_component_kvstats_gpu_prefix_cache_hit_rate: gauge("Prefix hits, 0 to 1", ["dp_rank"]),
  tiergrid_durable_events_total: counter("KV events for the durable stream", ["outcome"]),
  tiergrid_durable_appends_total: counter("Messages with KV events the durable stream took"),
  tiergrid_durable_append_failures_total: counter("Messages with KV events it did not take"),
  tiergrid_stream_orphans_total: counter("Streams whose owner went away"),
  tiergrid_stream_credit_stalls_total: counter("Waits for a slow stream owner"),
  tiergrid_prompt_fetches_total: counter("Prompts that came as hashes, asked of their owner", [
    "outcome",
  ]),
  tiergrid_prompt_fetch_seconds: histogram("Accepted to prompt had", buckets.short),
};

/** The grids of a global router: changes, versions, what the cells measure. */
const gridMetrics = {
  tiergrid_grid_changes_total: counter("Changes of grid", ["action"]),
  tiergrid_grid_canary_percent: gauge("Share of requests on trial; 0 without a trial"),
  tiergrid_grid_version_ended_total: counter("Ended requests by version of the grid", [
    "version",
    "outcome",
  ]),
  tiergrid_grid_version_sla_total: counter("Requests against their targets, by version", [
    "version",
    "target",
    "result",
  ]),
  tiergrid_cell_latency_seconds: gauge("Latency of the last 10 minutes, from 20 requests on", [
    "role",
    "cell",
    "pool",
    "target",
    "quantile",
  ]),
  tiergrid_cell_attainment_ratio: gauge("Share of targets met in the last 10 minutes", [
    "role",
    "cell",
    "target",
  ]),
  tiergrid_quote_measured_ratio: histogram(
    "Measured latency over the one that the pool had quoted",
    buckets.quoteRatio,
    ["role", "pool", "target"],
  ),
  tiergrid_grid_stale: gauge("1 while a pool's latency in a cell is not what it was", [
    "role",
    "cell",
    "pool",
  ]),
  tiergrid_grid_drift_total: counter("Cells that left their band, or came back", ["role", "to"]),
};

/** The global router: pool choice, attempts, pools. */
export const globalRouterMetrics = {
  ...gridMetrics,
  tiergrid_pool_selections_total: counter("Attempts dispatched", [
    "model",
    "role",
    "pool",
    "reason",
  ]),
  tiergrid_grid_cell_selections_total: counter("Requests per grid cell", ["role", "cell"]),
  tiergrid_axis_clamped_total: counter("Axis values outside the grid", ["role", "axis", "side"]),
  tiergrid_sla_target_source_total: counter("Where a target came from", ["target", "source"]),
  tiergrid_priority_override_total: counter("Priority rules that decided", ["role", "rule"]),
  tiergrid_selection_seconds: histogram("Time to choose a pool", buckets.selection, ["role"]),
  tiergrid_pool_quotes_total: counter("Quotes asked of a pool, by what came", [
    "role",
    "pool",
    "outcome",
  ]),
  tiergrid_live_choices_total: counter("Choices by quotes: left = left the grid", [
    "role",
    "outcome",
  ]),
  tiergrid_live_choice_seconds: histogram("Time a request waited for quotes", buckets.accept, [
    "role",
  ]),
  tiergrid_explain_requests_total: counter("Explained decisions", ["result"]),
  tiergrid_spill_total: counter("Attempts moved to a spill pool", [
    "role",
    "from_pool",
    "to_pool",
    "cause",
  ]),
  tiergrid_spill_exhausted_total: counter("Requests no spill pool could take", ["role", "pool"]),
  tiergrid_retry_total: counter("Attempts made again", ["role", "from_pool", "to_pool", "cause"]),
  tiergrid_retry_refused_total: counter("Faults that were not retried", ["role", "why"]),
  tiergrid_attempts_per_request: histogram("Attempts of a request", buckets.attempts, ["role"]),
  tiergrid_pool_state: gauge("1 for the state a pool is in", ["role", "pool", "state"]),
  tiergrid_pool_workers: gauge("Workers a pool reports", ["role", "pool"]),
  tiergrid_pool_routers: gauge("Local routers of a pool", ["role", "pool"]),
  tiergrid_pool_inflight: gauge("Requests in a pool", ["role", "pool"]),
  tiergrid_pool_error_ratio: gauge("Share of recent attempts that failed", ["role", "pool"]),
  tiergrid_pool_state_changes_total: counter("Changes of state", ["role", "pool", "to"]),
  tiergrid_pool_accept_seconds: histogram("Dispatch to accepted", buckets.accept, ["role", "pool"]),
  tiergrid_cell_requests_total: counter("Ended requests", ["role", "cell", "pool", "outcome"]),
  tiergrid_cell_sla_total: counter("Ended requests against their targets", [
    "role",
    "cell",
    "pool",
    "target",
    "result",
    "explicit",
  ]),
};

/** Notices and bookings of both routers. */
export const bookingMetrics = {
  tiergrid_lifecycle_notices_total: counter("Notices by what became of them", ["kind", "state"]),
  tiergrid_bookings_freed_total: counter("Bookings closed", ["by"]),
  tiergrid_bookings_active: gauge("Open bookings; 0 when idle", ["role"]),
};

/** Every process: config, bus, runtime. */
export const processMetrics = {
  tiergrid_build_info: gauge("1, labelled with the build", ["version", "node", "commit"]),
  tiergrid_core_info: gauge("1 for the core that hashes and indexes: wasm, ts", ["core"]),
  tiergrid_config_info: gauge("1 for the active config", ["kind", "version"]),
  tiergrid_config_reloads_total: counter("Reloads", ["kind", "result"]),
  tiergrid_config_last_applied_timestamp_seconds: gauge("When the config was applied", ["kind"]),
  tiergrid_config_errors: gauge("Errors of the last file seen", ["kind"]),
  tiergrid_config_warnings: gauge("Warnings of the active config", ["kind"]),
  tiergrid_bus_connected: gauge("1 while the bus is connected"),
  tiergrid_bus_reconnects_total: counter("Reconnects"),
  tiergrid_bus_forced_closes_total: counter("Connections cut because they hung"),
  tiergrid_bus_watchdog_swaps_total: counter("Connections replaced by the watchdog"),
  tiergrid_bus_echo_seconds: histogram("Round trip to ourselves", buckets.echo),
  tiergrid_bus_gate_frozen: gauge("1 while our own echo does not come back"),
  tiergrid_bus_gate_freezes_total: counter("Times our own echo stayed away"),
  tiergrid_bus_outbound_bytes: gauge("Bytes accepted but not taken by the socket"),
  tiergrid_bus_shed_total: counter("Messages refused above a mark"),
  tiergrid_bus_messages_total: counter("Messages", ["direction"]),
  tiergrid_bus_bytes_total: counter("Payload bytes", ["direction"]),
  tiergrid_bus_handler_errors_total: counter("Handlers that threw"),
  tiergrid_instances: gauge("Instances seen", ["component", "state"]),
  tiergrid_inhibitions_total: counter("Instances held out for a while", ["cause"]),
  tiergrid_event_loop_delay_seconds: histogram("Lateness of common timers", buckets.loopDelay),
  tiergrid_event_loop_stalls_total: counter("Common timers more than 5 ms late"),
  tiergrid_event_loop_utilization: gauge("Busy share of the event loop since the last scrape"),
  tiergrid_heap_used_bytes: gauge("JavaScript heap in use"),
  tiergrid_rss_bytes: gauge("Resident memory"),
  tiergrid_external_bytes: gauge("Buffers outside the heap"),
  tiergrid_unhandled_errors_total: counter("Rejections and exceptions nobody caught"),
  tiergrid_log_dropped_total: counter("Log lines dropped because the pipe was full"),
  tiergrid_metrics_dropped_series_total: counter("Label sets beyond the cap", ["metric"]),
};

/** All of them, by who emits them, for the docs. */
export const metricTables = {
  frontend: frontendMetrics,
  "global router": globalRouterMetrics,
  "local router": localRouterMetrics,
  "both routers": bookingMetrics,
  worker: workerMetrics,
  "routers and workers": componentMetrics,
  "callers on the bus": requestPlaneMetrics,
  "every process": processMetrics,
} as const satisfies Readonly<Record<string, MetricTable>>;
