/** What a cancellable wait needs of an AbortSignal; `CancelSwitch` is the cheap one. */
export interface CancelSignal {
  readonly aborted: boolean;
  addEventListener(type: "abort", listener: () => void, options?: { once?: boolean }): void;
  removeEventListener(type: "abort", listener: () => void): void;
}

/**
 * Signal and controller in one plain object, for waits of which every request has several: an
 * AbortController with one listener costs some 10 µs, mostly in events and weak references.
 * Each listener is called once, in order; one that comes after the abort is never called, so a wait
 * looks at `aborted` first.
 */
export class CancelSwitch implements CancelSignal {
  #aborted = false;
  #listeners: readonly (() => void)[] = noListeners;

  get aborted(): boolean {
    return this.#aborted;
  }

  abort(): void {
    if (this.#aborted) return;
    this.#aborted = true;
    const listeners = this.#listeners;
    this.#listeners = noListeners;
    for (const listener of listeners) listener();
  }

  addEventListener(_type: "abort", listener: () => void): void {
    if (!this.#aborted) this.#listeners = [...this.#listeners, listener];
  }

  removeEventListener(_type: "abort", listener: () => void): void {
    const held = this.#listeners;
    if (held.length === 1 && held[0] === listener) this.#listeners = noListeners;
    else if (held.length > 0) this.#listeners = held.filter((other) => other !== listener);
  }
}

const noListeners: readonly (() => void)[] = [];
