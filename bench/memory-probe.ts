/** Preloaded into processes of the soak bench: collects garbage and tells what is left, when asked. */
process.on("message", (message: { readonly type: string }) => {
  if (message.type !== "memory") return;
  globalThis.gc?.();
  // Buffers are given back by a thread, after the collection.
  setTimeout(() => {
    globalThis.gc?.();
    const { heapUsed, arrayBuffers, rss } = process.memoryUsage();
    process.send?.({ type: "memory", heapUsed, arrayBuffers, rss });
  }, 50);
});
// It alone keeps no process from its end.
process.channel?.unref();
