// What a page from another origin can do to the server, tried in a real browser: nothing, unless its origin is allowed.
// ORIGIN_PORT is the port that the page is served from (any free one otherwise); with ALLOWED=1 the server was started with
// `--allow-origin http://127.0.0.1:ORIGIN_PORT`, and what is tried by regular means must work. Prints what succeeded as JSON.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { randomUUID } from "node:crypto";
import { graphql, graphqlUrl, launchBrowser, runInOrder, serverUrl, websocketUrl } from "./lib.mjs";

const isAllowed = process.env.ALLOWED === "1";

// An empty page, and a trap for what the browser sends there by mistake.
const site = createServer((_request, response) => response.setHeader("content-type", "text/html").end("<!doctype html><title>another origin</title>"));
await new Promise((resolve) => site.listen(Number(process.env.ORIGIN_PORT ?? 0), "127.0.0.1", resolve));
const foreignPage = `http://127.0.0.1:${site.address().port}/`;

// A name that resolves to the server, as an attacker's DNS can do it once the page is loaded.
const REBOUND_HOST = "rebound.test";
const reboundUrl = new URL(serverUrl.href);
reboundUrl.hostname = REBOUND_HOST;

const browser = await launchBrowser({ [REBOUND_HOST]: "127.0.0.1" });

/** Runs in the page. Tries one way in; returns what the page could read. */
async function attempt({ way, url, socketUrl, query }) {
  const within = (promise) => Promise.race([promise, new Promise((resolve) => setTimeout(() => resolve("timed out"), 5_000))]);
  const send = async (options, address = url) => {
    try {
      const response = await fetch(address, options);
      return response.type === "opaque" ? "opaque" : await response.text();
    } catch (error) {
      return `threw ${error.name}`;
    }
  };
  const json = JSON.stringify({ query });
  const form = new URLSearchParams({ query });
  const multipart = new FormData();
  multipart.set("operations", json);
  multipart.set("map", "{}");
  const openSocket = (protocol, start) =>
    new Promise((resolve) => {
      const socket = new WebSocket(socketUrl, protocol);
      socket.onopen = () => socket.send(JSON.stringify({ type: "connection_init", payload: {} }));
      socket.onclose = ({ code }) => resolve(`closed ${code}`);
      socket.onmessage = ({ data }) => {
        const { type, payload } = JSON.parse(data);
        if (type === "connection_ack") socket.send(JSON.stringify({ type: start, id: "1", payload: { query } }));
        if (payload?.data) resolve(JSON.stringify(payload));
      };
    });
  const submitForm = (enctype) =>
    new Promise((resolve) => {
      const frame = Object.assign(document.createElement("iframe"), { name: "target" });
      document.body.append(frame);
      const form = Object.assign(document.createElement("form"), { action: url, method: "post", enctype, target: "target" });
      // As text/plain, a name and a value join to a JSON document.
      const [name, value] = enctype === "text/plain" ? [`${json.slice(0, -1)},"x":"`, '"}'] : ["query", query];
      form.append(Object.assign(document.createElement("input"), { name, value }));
      document.body.append(form);
      frame.onload = () => {
        let content = "unreadable";
        try {
          content = frame.contentDocument.body.innerText;
        } catch {}
        if (content !== "") resolve(content);
      };
      form.submit();
    });
  const ways = {
    "POST JSON": () => send({ method: "POST", headers: { "content-type": "application/json" }, body: json }),
    "POST GraphQL document": () => send({ method: "POST", headers: { "content-type": "application/graphql" }, body: query }),
    "POST text/plain": () => send({ method: "POST", headers: { "content-type": "text/plain" }, body: json }),
    "POST text/plain, no-cors": () => send({ method: "POST", mode: "no-cors", body: json }),
    "POST form": () => send({ method: "POST", body: form }),
    "POST form, no-cors": () => send({ method: "POST", mode: "no-cors", body: form }),
    "POST multipart": () => send({ method: "POST", body: multipart }),
    "POST multipart, no-cors": () => send({ method: "POST", mode: "no-cors", body: multipart }),
    "POST without a content type": () => send({ method: "POST", body: new Blob([json]) }),
    "form submission": () => submitForm("application/x-www-form-urlencoded"),
    "form submission as text/plain": () => submitForm("text/plain"),
    beacon: () => String(navigator.sendBeacon(url, json)),
    GET: () => send({ headers: { accept: "application/json" } }, `${url}?${form}`),
    "GET, no-cors": () => send({ mode: "no-cors" }, `${url}?${form}`),
    "websocket, graphql-transport-ws": () => openSocket("graphql-transport-ws", "subscribe"),
    "websocket, graphql-ws": () => openSocket("graphql-ws", "start"),
    "websocket without a subprotocol": () => openSocket([], "subscribe"),
  };
  return way ? within(ways[way]()) : Object.keys(ways);
}

const READ = 'query { stream(name: "NAME") { lastPosition } server { version } }';
const WRITE = 'mutation { appendToStream(input: { streamName: "NAME", eventId: "ID", type: "intruded", data: {} }) { entry { position } } }';

/** Tries every way from a page at that address: first to read, then to write. */
async function tryEverything(address, target, preparePage = async () => {}) {
  const page = await browser.newPage();
  await preparePage(page);
  await page.goto(address);
  const outcomes = {};
  for (const way of await page.evaluate(attempt, {})) {
    const stream = `origin-test-${randomUUID()}`;
    const tryWith = async (query) => {
      const filled = query.replace("NAME", stream).replace("ID", randomUUID());
      const answer = await page.evaluate(attempt, { way, ...target, query: filled }).catch((error) => `failed: ${error.message}`);
      // Nothing of this try, such as a submitted form, may live on into the next one.
      await page.goto(address);
      return answer.slice(0, 200);
    };
    outcomes[way] = { stream, readAnswer: await tryWith(READ), writeAnswer: await tryWith(WRITE) };
  }
  await page.close();
  // Only now: a beacon, for example, is sent some time later.
  for (const outcome of Object.values(outcomes)) {
    outcome.read = outcome.readAnswer.includes('"version":');
    const { stream } = await graphql("query ($name: String!) { stream(name: $name) { lastPosition } }", { name: outcome.stream });
    outcome.wrote = stream !== null;
  }
  return outcomes;
}

const REGULAR = {
  "POST JSON": { read: true, wrote: true },
  GET: { read: true, wrote: false },
  "websocket, graphql-transport-ws": { read: true, wrote: true },
  "websocket, graphql-ws": { read: true, wrote: true },
};

function assertRegularWaysWork(outcomes) {
  for (const [way, expected] of Object.entries(REGULAR)) {
    const { read, wrote } = outcomes[way];
    assert.deepEqual({ read, wrote }, expected, `${way}: ${JSON.stringify(outcomes[way])}`);
  }
}

const succeeded = (outcomes) =>
  Object.fromEntries(
    Object.entries(outcomes)
      .filter(([, { read, wrote }]) => read || wrote)
      .map(([way, { read, wrote }]) => [way, { read, wrote }]),
  );

function assertNothingWorked(outcomes) {
  assert.ok(Object.keys(outcomes).length > 10);
  assert.deepEqual(succeeded(outcomes), {}, JSON.stringify(outcomes, null, 2));
}

const direct = { url: graphqlUrl, socketUrl: websocketUrl };
const reboundGraphql = new URL("/graphql", reboundUrl).href;
const rebound = { url: reboundGraphql, socketUrl: reboundGraphql.replace(/^http/, "ws") };

await runInOrder({
  async "a page of the server's own origin can do what is regular, so the tries are real"() {
    assertRegularWaysWork(await tryEverything(new URL("/healthz", serverUrl).href, direct));
  },

  async [`a page of another origin can do ${isAllowed ? "what is regular, since it is allowed" : "nothing"}`]() {
    const outcomes = await tryEverything(foreignPage, direct);
    console.log(JSON.stringify({ origin: new URL(foreignPage).origin, allowed: isAllowed, succeeded: succeeded(outcomes) }));
    if (isAllowed) assertRegularWaysWork(outcomes);
    else assertNothingWorked(outcomes);
  },

  async "a page whose host name was made to point at the server can do nothing"() {
    const address = new URL("/a-page-of-the-attacker", reboundUrl).href;
    const outcomes = await tryEverything(address, rebound, (page) =>
      page.route(address, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html><title>rebound</title>" })),
    );
    assertNothingWorked(outcomes);
  },
});
