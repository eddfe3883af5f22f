// The tabs that a new visitor finds. They work when they are run from left to right, and again. Lines are short: the editor
// has half of the window.

const ORDER = "5f0f3a52-7c1e-4b8e-9d52-1a6c3e2b9f10";

const WATCH = `# 1. Run this and leave it running (Ctrl-Enter).
#    Every event so far is delivered, then each
#    new one. Go on to the next tab meanwhile.
#
#    Does the server need a token? Put it under
#    "Headers" below, once, for all tabs:
#    {"Authorization": "Bearer …"}

subscription Watch {
  events(after: "") {
    event {
      type
      version
      data
      createdAt
    }
    # As \`after\`, it continues behind this event.
    cursor
    caughtUp
  }
}
`;

const APPEND = `# 2. Run this a few times: each run appends an
#    event to one order, and the subscription of
#    the first tab delivers it (bottom right).

mutation Append {
  appendEvent(
    input: {
      aggregateId: "${ORDER}"
      aggregateType: "order"
      type: "item_added"
      data: { item: "tea", quantity: 2 }
      # Of several writers only one succeeds with
      # expectedVersion: 0
    }
  ) {
    event {
      id
      version
      createdAt
    }
  }
}
`;

const AGGREGATE = `# 3. The order with its events. Their versions
#    count 1, 2, 3 … without a gap.

query Aggregate {
  aggregate(
    id: "${ORDER}"
  ) {
    type
    version
    updatedAt
    events(first: 10) {
      version
      type
      data
    }
  }
}
`;

const EVENTS = `# 4. The log over all aggregates, newest first.

query Events {
  events(
    filter: { aggregateTypes: ["order"] }
    order: NEWEST_FIRST
    first: 5
  ) {
    nodes {
      type
      data
      version
      aggregateId
      createdAt
    }
    pageInfo {
      hasNextPage
      # As \`after\`, it gets the next page.
      endCursor
    }
  }
}
`;

const CREATE = `# 5. An aggregate without an event yet. The server
#    makes its id, unless you give one.
#    (appendEvent needs no such step.)

mutation Create {
  createAggregate(input: { type: "order" }) {
    aggregate {
      id
      version
    }
    created
  }
}
`;

const WATCH_STREAM = `# 6. A stream is a named log of its own. Run this,
#    then the next tab: it delivers the entries
#    behind position 0 and goes on with new ones.

subscription WatchStream {
  streamEntries(streamName: "news", after: 0) {
    position
    type
    data
    createdAt
  }
}
`;

const APPEND_ENTRY = `# 7. Appends an entry. The same eventId again would
#    return the first entry, so this page puts a
#    new UUID where {{uuid}} stands.

mutation AppendEntry {
  appendToStream(
    input: {
      streamName: "news"
      eventId: "{{uuid}}"
      type: "headline_published"
      data: { title: "Tea is ready" }
    }
  ) {
    entry {
      position
      eventId
    }
    duplicate
  }
}
`;

const SERVER = `# 8. What you are talking to. The first icon on the
#    left opens the documentation of the whole API.

query Server {
  server {
    version
    database
    partitions
    startedAt
    headCursor
  }
}
`;

export const EXAMPLES = [WATCH, APPEND, AGGREGATE, EVENTS, CREATE, WATCH_STREAM, APPEND_ENTRY, SERVER].map((query) => ({ query }));
