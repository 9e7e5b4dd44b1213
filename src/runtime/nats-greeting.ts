/** Whether a NATS server speaks at an address, asked with a socket of our own. */
import { once } from "node:events";
import { connect } from "node:net";
import type { Clock } from "../base/clock.ts";

/**
 * True when the server sends its INFO line within `timeoutMs`; the socket is gone afterwards. The
 * client leaves the socket of a timed-out dial open, so a hung server is asked here first.
 */
export async function greets(address: string, clock: Clock, timeoutMs: number): Promise<boolean> {
  const { hostname, port } = new URL(address.includes("://") ? address : `nats://${address}`);
  const host = hostname.replace(/^\[|\]$/g, "");
  const socket = connect({ host, port: Number(port || 4222) });
  const cancel = clock.after(timeoutMs, () => socket.destroy(new Error("no greeting")));
  try {
    const [greeting] = (await once(socket, "data")) as [Buffer];
    return greeting.toString("latin1").startsWith("INFO ");
  } catch {
    return false;
  } finally {
    cancel();
    socket.destroy();
  }
}
