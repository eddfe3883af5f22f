// The subscriptions that run in this page. GraphiQL itself ends a subscription when another tab is opened; here it goes on
// as a feed, until it is stopped or its tab is closed. A tab that is opened again joins its feed.
import { createClient } from "graphql-ws";

// Results that a feed keeps; older ones are only counted.
const RESULTS_KEPT = 200;
// New results are shown together, at most once in this time.
const SHOW_EVERY_MS = 50;

let feeds = [];
let activeTab = null;
let nextId = 1;
let announcement = null;
const listeners = new Set();
const clients = new Map();

export const subscribeToFeeds = (listener) => {
  listeners.add(listener);
  return () => listeners.delete(listener);
};
export const currentFeeds = () => feeds;

/** Tells which tabs there are and which one is in front: feeds of closed tabs end. */
export function setTabs({ tabs, activeTabIndex }) {
  activeTab = tabs[activeTabIndex]?.id ?? null;
  const open = new Set(tabs.map((tab) => tab.id));
  for (const feed of feeds) {
    if (!open.has(feed.tab)) removeFeed(feed);
  }
  announce();
}

/** The running feed of a tab, if it has one for this query. */
export const feedOf = (tab, query) =>
  feeds.find((feed) => feed.tab === tab && feed.query === query && feed.state === "live");

/**
 * Joins the feed that the front tab has for this request, or starts it. Yields the newest result now and after each change,
 * as long as the tab stays in front.
 */
export function joinFeed({ name, request, headers }) {
  const key = JSON.stringify([request, headers]);
  const running = feeds.find((feed) => feed.tab === activeTab && feed.key === key && feed.state === "live");
  return resultsOf(running ?? startFeed({ key, name, request, headers }));
}

export function removeFeed(feed) {
  stopFeed(feed);
  feeds = feeds.filter((other) => other !== feed);
  announce();
}

function stopFeed(feed) {
  if (feed.state !== "live") return;
  feed.state = "stopped";
  feed.end();
  announce();
}

function startFeed({ key, name, request, headers }) {
  const feed = { id: nextId++, tab: activeTab, key, name, query: request.query, results: [], count: 0, state: "live", error: null };
  for (const old of feeds.filter((other) => other.tab === activeTab)) removeFeed(old);
  feeds = [...feeds, feed];
  feed.end = clientFor(headers).subscribe(request, {
    next(result) {
      feed.count += 1;
      feed.results = [...feed.results.slice(1 - RESULTS_KEPT), { number: feed.count, at: new Date(), result }];
      announceSoon();
    },
    error(cause) {
      feed.state = "failed";
      feed.error = toErrors(cause);
      announce();
    },
    complete() {
      if (feed.state === "live") feed.state = "ended";
      announce();
    },
  });
  announce();
  return feed;
}

function clientFor(headers) {
  const key = JSON.stringify(headers);
  if (!clients.has(key)) {
    const url = new URL("/graphql", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    // No retries: a subscription that starts anew would repeat what it has shown.
    clients.set(key, createClient({ url: url.href, connectionParams: headers, retryAttempts: 0 }));
  }
  return clients.get(key);
}

function toErrors(cause) {
  if (Array.isArray(cause)) return cause;
  if (cause instanceof CloseEvent) {
    return [{ message: `The connection was closed: ${cause.code} ${cause.reason}`.trim() }];
  }
  return [{ message: cause?.message ?? "There is no connection to the server." }];
}

// A plain object and not an async generator: `return` must take effect while `next` is waiting.
function resultsOf(feed) {
  let shown = 0;
  let left = false;
  const isOver = () => left || feed.tab !== activeTab;
  const iterator = {
    [Symbol.asyncIterator]: () => iterator,
    async next() {
      while (!isOver()) {
        if (feed.count > shown) {
          shown = feed.count;
          return { done: false, value: feed.results.at(-1).result };
        }
        if (feed.state === "failed") throw feed.error;
        if (feed.state !== "live") break;
        await nextAnnouncement();
      }
      return { done: true, value: undefined };
    },
    async return() {
      left = true;
      // GraphiQL leaves for two reasons: another tab comes to the front (known a moment later), or its stop button.
      setTimeout(() => (feed.tab === activeTab ? stopFeed(feed) : announce()));
      return { done: true, value: undefined };
    },
  };
  return iterator;
}

const nextAnnouncement = () =>
  new Promise((resolve) => {
    const unsubscribe = subscribeToFeeds(() => {
      unsubscribe();
      resolve();
    });
  });

function announceSoon() {
  announcement ??= setTimeout(announce, SHOW_EVERY_MS);
}

function announce() {
  clearTimeout(announcement);
  announcement = null;
  // A new list, so that React sees the change.
  feeds = [...feeds];
  for (const listener of [...listeners]) listener();
}
