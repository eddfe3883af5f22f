// GraphQL clients that others wrote, as their users use them: graphql-ws, the older subscriptions-transport-ws, urql, Apollo.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { ApolloClient, ApolloLink, HttpLink, InMemoryCache, gql } from "@apollo/client";
import { GraphQLWsLink } from "@apollo/client/link/subscriptions";
import { OperationTypeNode } from "graphql";
import { Client as UrqlClient, fetchExchange, subscriptionExchange } from "@urql/core";
import { createClient } from "graphql-ws";
import { SubscriptionClient } from "subscriptions-transport-ws";
import WebSocket from "ws";
import { graphql, graphqlUrl, run, until, websocketUrl } from "./lib.mjs";

const SERVER = "query { server { version database headCursor } }";
const APPEND_EVENT = `mutation ($aggregateId: UUID!, $number: Int!, $data: JSON!) {
  appendEvent(input: { aggregateId: $aggregateId, aggregateType: "client_test", type: "counted", data: $data, expectedVersion: $number }) {
    event { id version data }
    duplicate
  }
}`;
const APPEND_ENTRY = `mutation ($streamName: String!, $eventId: UUID!, $data: JSON!) {
  appendToStream(input: { streamName: $streamName, eventId: $eventId, type: "counted", data: $data }) {
    entry { position data }
    duplicate
  }
}`;
const STREAM_ENTRIES = `subscription ($streamName: String!, $after: Long) {
  streamEntries(streamName: $streamName, after: $after) { position eventId data }
}`;
const EVENTS = `subscription ($aggregateId: UUID!, $after: String) {
  events(filter: { aggregateId: $aggregateId }, after: $after) { cursor caughtUp event { id version data } }
}`;

const newStream = () => `clients-${randomUUID()}`;

/** Appends the entries numbered `from` to `to`; returns their event ids. */
async function appendEntries(streamName, from, to) {
  const ids = [];
  for (let number = from; number <= to; number += 1) {
    const eventId = randomUUID();
    const { appendToStream } = await graphql(APPEND_ENTRY, { streamName, eventId, data: { number } });
    assert.deepEqual(appendToStream, { entry: { position: number, data: { number } }, duplicate: false });
    ids.push(eventId);
  }
  return ids;
}

/** Appends the events with the versions `from` to `to`; returns their ids. */
async function appendEvents(aggregateId, from, to) {
  const ids = [];
  for (let version = from; version <= to; version += 1) {
    const data = { version };
    const { appendEvent } = await graphql(APPEND_EVENT, { aggregateId, number: version - 1, data });
    assert.equal(appendEvent.event.version, version);
    ids.push(appendEvent.event.id);
  }
  return ids;
}

const entriesOf = (ids, first) => ids.map((eventId, index) => ({ position: first + index, eventId, data: { number: first + index } }));
const eventsOf = (ids, first) => ids.map((id, index) => ({ id, version: first + index, data: { version: first + index } }));

/** Subscribes on a connection of its own; `results` fills, `leave` drops the connection. */
function subscribeWithGraphqlWs(query, variables) {
  const client = createClient({ url: websocketUrl, webSocketImpl: WebSocket, retryAttempts: 0 });
  const subscription = { results: [], error: null, leave: () => client.terminate() };
  client.subscribe(
    { query, variables },
    {
      next: (result) => subscription.results.push(result),
      error: (error) => (subscription.error = error),
      complete() {},
    },
  );
  return subscription;
}

/** Waits for `count` results and returns their data. */
async function take(subscription, count) {
  await until(`${count} results`, () => {
    if (subscription.error) throw new Error(`the subscription failed: ${JSON.stringify(subscription.error)}`);
    return subscription.results.length >= count;
  });
  for (const result of subscription.results) assert.equal(result.errors, undefined, JSON.stringify(result.errors));
  assert.equal(subscription.results.length, count);
  return subscription.results.map(({ data }) => data);
}

await run({
  async "graphql-ws: entries arrive in order, history then live, and go on behind the last one after a lost connection"() {
    const streamName = newStream();
    const history = await appendEntries(streamName, 1, 3);
    const first = subscribeWithGraphqlWs(STREAM_ENTRIES, { streamName, after: 0 });
    await until("the history", () => first.results.length >= 3);
    const live = await appendEntries(streamName, 4, 6);
    const seen = (await take(first, 6)).map((data) => data.streamEntries);
    assert.deepEqual(seen, entriesOf([...history, ...live], 1));
    first.leave();

    const missed = await appendEntries(streamName, 7, 9);
    const second = subscribeWithGraphqlWs(STREAM_ENTRIES, { streamName, after: seen.at(-1).position });
    await until("what was missed", () => second.results.length >= 3);
    const later = await appendEntries(streamName, 10, 10);
    const resumed = (await take(second, 4)).map((data) => data.streamEntries);
    assert.deepEqual(resumed, entriesOf([...missed, ...later], 7));
    second.leave();
  },

  async "graphql-ws: events arrive in order and go on behind the last cursor"() {
    const aggregateId = randomUUID();
    const { server } = await graphql(SERVER);
    const history = await appendEvents(aggregateId, 1, 2);
    const first = subscribeWithGraphqlWs(EVENTS, { aggregateId, after: server.headCursor });
    await until("the history", () => first.results.length >= 2);
    const live = await appendEvents(aggregateId, 3, 5);
    const seen = (await take(first, 5)).map((data) => data.events);
    assert.deepEqual(seen.map(({ event }) => event), eventsOf([...history, ...live], 1));
    assert.equal(new Set(seen.map(({ cursor }) => cursor)).size, 5, "each step has a cursor of its own");
    first.leave();

    const missed = await appendEvents(aggregateId, 6, 8);
    const second = subscribeWithGraphqlWs(EVENTS, { aggregateId, after: seen.at(-1).cursor });
    const resumed = (await take(second, 3)).map((data) => data.events.event);
    assert.deepEqual(resumed, eventsOf(missed, 6));
    second.leave();

    const all = subscribeWithGraphqlWs(EVENTS, { aggregateId, after: "" });
    const fromTheBeginning = (await take(all, 8)).map((data) => data.events.event);
    assert.deepEqual(fromTheBeginning, eventsOf([...history, ...live, ...missed], 1));
    all.leave();
  },

  async "graphql-ws: queries, mutations and their errors go over the same connection"() {
    const aggregateId = randomUUID();
    const client = createClient({ url: websocketUrl, webSocketImpl: WebSocket, retryAttempts: 0, lazyCloseTimeout: 5_000 });
    const once = async (query, variables) => {
      const results = [];
      for await (const result of client.iterate({ query, variables })) results.push(result);
      assert.equal(results.length, 1);
      return results[0];
    };
    assert.equal(typeof (await once(SERVER)).data.server.version, "string");
    const append = { aggregateId, number: 0, data: [1, 2.5, "three", null, { four: true }] };
    const { data } = await once(APPEND_EVENT, append);
    assert.deepEqual({ version: data.appendEvent.event.version, data: data.appendEvent.event.data }, { version: 1, data: append.data });
    const refused = await once(APPEND_EVENT, append);
    assert.deepEqual(
      { code: refused.errors[0].extensions.code, expected: refused.errors[0].extensions.expected, actual: refused.errors[0].extensions.actual },
      { code: "VERSION_CONFLICT", expected: 0, actual: 1 },
    );
    await client.dispose();
  },

  async "subscriptions-transport-ws (the older protocol): query, mutation and subscription"() {
    const streamName = newStream();
    const history = await appendEntries(streamName, 1, 2);
    const client = new SubscriptionClient(websocketUrl, { reconnect: false }, WebSocket);
    const once = (query, variables) =>
      new Promise((next, error) => client.request({ query, variables }).subscribe({ next, error }));
    assert.equal(typeof (await once(SERVER)).data.server.version, "string");
    assert.equal(client.client.protocol, "graphql-ws");

    const subscription = { results: [], error: null };
    const running = client.request({ query: STREAM_ENTRIES, variables: { streamName, after: 0 } }).subscribe({
      next: (result) => subscription.results.push(result),
      error: (error) => (subscription.error = error),
    });
    await until("the history", () => subscription.results.length >= 2);
    const eventId = randomUUID();
    const { data } = await once(APPEND_ENTRY, { streamName, eventId, data: { number: 3 } });
    assert.equal(data.appendToStream.entry.position, 3);
    const seen = (await take(subscription, 3)).map((data) => data.streamEntries);
    assert.deepEqual(seen, entriesOf([...history, eventId], 1));
    running.unsubscribe();

    await appendEntries(streamName, 4, 4);
    await once(SERVER);
    assert.equal(subscription.results.length, 3, "nothing arrives after unsubscribing");
    client.close();
  },

  async "urql: query, mutation and subscription"() {
    const socket = createClient({ url: websocketUrl, webSocketImpl: WebSocket });
    const client = new UrqlClient({
      url: graphqlUrl,
      preferGetMethod: false,
      exchanges: [
        fetchExchange,
        subscriptionExchange({
          forwardSubscription: (request) => ({
            subscribe: (sink) => ({ unsubscribe: socket.subscribe({ ...request, query: request.query ?? "" }, sink) }),
          }),
        }),
      ],
    });
    const succeed = ({ data, error }) => {
      assert.equal(error, undefined, String(error));
      return data;
    };
    assert.equal(typeof succeed(await client.query(SERVER, {}).toPromise()).server.version, "string");
    // urql sends a query by GET where it is asked to.
    assert.equal(typeof succeed(await client.query(SERVER, {}, { preferGetMethod: "force" }).toPromise()).server.database, "string");

    const streamName = newStream();
    const subscription = { results: [], error: null };
    const running = client.subscription(STREAM_ENTRIES, { streamName, after: 0 }).subscribe(({ data, error }) => {
      if (error) subscription.error = error.message;
      else subscription.results.push({ data });
    });
    const ids = [randomUUID(), randomUUID()];
    for (const [index, eventId] of ids.entries()) {
      const { appendToStream } = succeed(await client.mutation(APPEND_ENTRY, { streamName, eventId, data: { number: index + 1 } }).toPromise());
      assert.equal(appendToStream.entry.position, index + 1);
    }
    const seen = (await take(subscription, 2)).map((data) => data.streamEntries);
    assert.deepEqual(seen, entriesOf(ids, 1));
    running.unsubscribe();

    const aggregateId = randomUUID();
    const append = { aggregateId, number: 0, data: {} };
    succeed(await client.mutation(APPEND_EVENT, append).toPromise());
    const { error } = await client.mutation(APPEND_EVENT, append).toPromise();
    assert.equal(error.graphQLErrors[0].extensions.code, "VERSION_CONFLICT");
    await socket.dispose();
  },

  async "Apollo Client: query, mutation and subscription"() {
    const socket = createClient({ url: websocketUrl, webSocketImpl: WebSocket });
    const client = new ApolloClient({
      cache: new InMemoryCache(),
      link: ApolloLink.split(
        ({ operationType }) => operationType === OperationTypeNode.SUBSCRIPTION,
        new GraphQLWsLink(socket),
        new HttpLink({ uri: graphqlUrl }),
      ),
    });
    const { data: answer } = await client.query({ query: gql(SERVER) });
    assert.equal(typeof answer.server.version, "string");

    const aggregateId = randomUUID();
    const subscription = { results: [], error: null };
    const running = client.subscribe({ query: gql(EVENTS), variables: { aggregateId, after: "" } }).subscribe({
      next: ({ data, error }) => (error ? (subscription.error = error.message) : subscription.results.push({ data })),
      error: (error) => (subscription.error = error.message),
    });
    const ids = [];
    for (let version = 1; version <= 2; version += 1) {
      const { data } = await client.mutate({
        mutation: gql(APPEND_EVENT),
        variables: { aggregateId, number: version - 1, data: { version } },
      });
      assert.equal(data.appendEvent.event.version, version);
      ids.push(data.appendEvent.event.id);
    }
    const seen = (await take(subscription, 2)).map((data) => data.events.event);
    assert.deepEqual(seen.map(({ id, version, data }) => ({ id, version, data })), eventsOf(ids, 1));
    running.unsubscribe();

    await assert.rejects(
      client.mutate({ mutation: gql(APPEND_EVENT), variables: { aggregateId, number: 0, data: {} } }),
      (error) => error.errors[0].extensions.code === "VERSION_CONFLICT",
    );
    client.stop();
    await socket.dispose();
  },
});
