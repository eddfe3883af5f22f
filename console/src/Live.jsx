// The list below the result: what the running subscriptions deliver, newest first, whichever tab is in front.
import { useSyncExternalStore } from "react";
import { currentFeeds, removeFeed, subscribeToFeeds } from "./feeds.js";

const ROWS_SHOWN = 200;

export function Live() {
  const feeds = useSyncExternalStore(subscribeToFeeds, currentFeeds);
  if (feeds.length === 0) {
    return <p className="live-hint">A subscription that you run stays on, and its results are listed here, while you work in other tabs.</p>;
  }
  const rows = feeds
    .flatMap((feed) => feed.results.map((entry) => ({ ...entry, feed })))
    .sort((a, b) => b.at - a.at || b.number - a.number)
    .slice(0, ROWS_SHOWN);
  return (
    <section className="live" aria-label="Live results">
      <header>
        {feeds.map((feed) => (
          <FeedChip key={feed.id} feed={feed} />
        ))}
      </header>
      <ol>
        {rows.map((row) => (
          <Row key={`${row.feed.id}-${row.number}`} {...row} showName={feeds.length > 1} />
        ))}
      </ol>
    </section>
  );
}

function FeedChip({ feed }) {
  const label = feed.state === "live" ? `Stop ${feed.name}` : `Clear ${feed.name}`;
  return (
    <span className="live-feed" data-state={feed.state} title={feed.error?.map(({ message }) => message).join("\n")}>
      <b>{feed.name}</b> {feed.state} · {feed.count} received
      <button type="button" aria-label={label} title={label} onClick={() => removeFeed(feed)}>
        ×
      </button>
    </span>
  );
}

function Row({ number, at, result, feed, showName }) {
  const summary = result.errors ? result.errors.map(({ message }) => message).join("; ") : oneLine(theOnlyField(result.data));
  return (
    <li className={result.errors ? "failed" : undefined}>
      <details>
        <summary>
          <time dateTime={at.toISOString()}>{at.toLocaleTimeString([], { hour12: false })}</time>
          <span className="live-name">
            {showName && feed.name} #{number}
          </span>
          <code>{summary}</code>
        </summary>
        <pre>{JSON.stringify(result, null, 2)}</pre>
      </details>
    </li>
  );
}

// A subscription has one root field; its name says nothing new.
const theOnlyField = (data) => Object.values(data ?? {})[0];

// JSON with bare keys and without the outer braces, to fit more into a line; the row opens to the exact result.
const oneLine = (value) => JSON.stringify(value)?.replaceAll(/(?<!\\)"(\w+)":/g, "$1:").replace(/^\{(.*)\}$/, "$1");
