// A page that shows read models, with graphql-ws in a real browser: it lists them, subscribes behind a place that it took before the
// list, loses its connection five times, resumes each time behind its newest cursor, and ends with exactly the true list.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { graphql, launchBrowser, runInOrder, serverUrl, until } from "./lib.mjs";

const CUTS = 5;
const APPEND = `mutation ($id: UUID!, $type: String!, $data: JSON!) {
  appendEvent(input: { aggregateId: $id, aggregateType: "user", type: $type, data: $data }) { event { version } }
}`;
const UPDATE = `mutation ($id: UUID!, $version: Int!, $data: JSON!) {
  updateReadModel(input: { aggregateId: $id, aggregateType: "user", version: $version, data: $data }) { updated }
}`;
const MODEL = "aggregateId data version source updatedAt";
const LIST = `query ($after: String) {
  readModels(first: 7, after: $after, orderBy: CREATED_OLDEST_FIRST) { nodes { ${MODEL} } pageInfo { hasNextPage endCursor } }
}`;
const CHANGES = `subscription ($after: String!) { readModels(after: $after) { cursor aggregateId readModel { ${MODEL} } } }`;

/** Stands between the page and the server, so that connections can be cut as a network does it. */
const sockets = new Set();
const between = createServer((near) => {
  const far = connect({ host: serverUrl.hostname, port: Number(serverUrl.port) });
  for (const [from, to] of [[near, far], [far, near]]) {
    sockets.add(from);
    from.on("error", () => {});
    from.on("close", () => (sockets.delete(from), to.destroy()));
    from.pipe(to);
  }
});
await new Promise((resolve) => between.listen(0, "127.0.0.1", resolve));
const cutConnections = () => sockets.forEach((socket) => socket.destroy());
const site = `http://127.0.0.1:${between.address().port}`;

const browser = await launchBrowser();
const page = await browser.newPage();
await page.route(`${site}/graphql-ws/*`, async (route) => {
  const name = new URL(route.request().url()).pathname.split("/").pop();
  const path = new URL(`./node_modules/graphql-ws/dist/${name}`, import.meta.url);
  await route.fulfill({ contentType: "text/javascript", body: await readFile(path) });
});

/** Runs in the page: what an application does. Keeps what it shows in `window.shown`. */
async function show({ LIST, CHANGES, pause }) {
  const { createClient } = await import("/graphql-ws/client.js");
  const ask = async (query, variables) => {
    const response = await fetch("/graphql", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ query, variables }) });
    const { data, errors } = await response.json();
    if (errors) throw new Error(JSON.stringify(errors));
    return data;
  };
  const shown = (window.shown = { models: {}, changes: 0, resumed: [], failure: null });
  let cursor = (await ask("{ server { headCursor } }")).server.headCursor;
  window.hasCursor = true;
  await window.mayList;
  for (let after = null, more = true; more; ) {
    const { nodes, pageInfo } = (await ask(LIST, { after })).readModels;
    for (const model of nodes) shown.models[model.aggregateId] = model;
    [after, more] = [pageInfo.endCursor, pageInfo.hasNextPage];
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  const follow = async () => {
    const client = createClient({ url: location.origin.replace(/^http/, "ws") + "/graphql", retryAttempts: 0 });
    for await (const { data, errors } of client.iterate({ query: CHANGES, variables: { after: cursor } })) {
      if (errors) throw errors;
      const { aggregateId, readModel } = data.readModels;
      if (readModel) shown.models[aggregateId] = readModel;
      else delete shown.models[aggregateId];
      cursor = data.readModels.cursor;
      shown.changes += 1;
    }
  };
  for (;;) {
    try {
      await follow();
    } catch (error) {
      // A lost connection is a close event; anything else is a failure of the server.
      if (!(error instanceof CloseEvent)) return void (shown.failure = String(error?.message ?? JSON.stringify(error)));
      shown.resumed.push(cursor);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

const shown = () => page.evaluate(() => window.shown);
const users = Array.from({ length: 40 }, () => ({ id: randomUUID(), version: 0, isThere: false }));
const random = (count) => Math.floor(Math.random() * count);

/** One of the things that happen to read models: an event, a deletion, a write from outside. */
async function change() {
  const user = users[random(users.length)];
  const kind = user.isThere ? random(10) : 0;
  if (kind === 9) {
    await graphql(UPDATE, { id: user.id, version: user.version, data: { written: random(1000) } });
    return;
  }
  const type = !user.isThere ? "user_created" : kind === 8 ? "user_deleted" : "user_updated";
  const { appendEvent } = await graphql(APPEND, { id: user.id, type, data: { username: `user ${random(1000)}`, [`key${random(3)}`]: random(1000) } });
  user.version = appendEvent.event.version;
  user.isThere = type !== "user_deleted";
}

async function changes(count) {
  for (let done = 0; done < count; done += 1) await change();
}

/** Every read model that there is, as soon as nothing is left to be folded. */
async function trueList() {
  await until("everything to be folded", async () => (await graphql("{ projection { lagEvents } }")).projection.lagEvents === 0);
  const { readModels } = await graphql(`{ readModels(first: 1000) { nodes { ${MODEL} } } }`);
  return Object.fromEntries(readModels.nodes.map((model) => [model.aggregateId, model]));
}

await runInOrder({
  async "the page takes a place, and then lists while changes go on"() {
    await changes(60);
    // A page that is not the server's own may not open a websocket to this machine.
    await page.goto(`${site}/healthz`);
    await page.evaluate(() => void (window.mayList = new Promise((resolve) => (window.list = resolve))));
    page.evaluate(show, { LIST, CHANGES, pause: 30 }).catch((error) => console.error(error.message));
    await until("the page's place", () => page.evaluate(() => window.hasCursor));
    await changes(10);
    await page.evaluate(() => window.list());
    await changes(30);
    await until("changes on the page", async () => (await shown()).changes > 10);
  },

  async [`it loses its connection ${CUTS} times and resumes behind its newest cursor`]() {
    for (let cut = 1; cut <= CUTS; cut += 1) {
      const before = (await shown()).changes;
      await changes(15);
      await until("more changes on the page", async () => (await shown()).changes > before);
      const during = changes(15);
      cutConnections();
      await during;
      await until("the page to have noticed", async () => (await shown()).resumed.length === cut);
    }
  },

  async "it ends with exactly the true list"() {
    await changes(20);
    const expected = await trueList();
    await until("the true list on the page", async () => {
      const { models, failure } = await shown();
      assert.equal(failure, null);
      try {
        assert.deepEqual(models, expected);
        return true;
      } catch {
        return false;
      }
    });
    const { models, resumed, changes: count } = await shown();
    assert.deepEqual(models, expected);
    assert.equal(resumed.length, CUTS);
    assert.equal(new Set(resumed).size, CUTS, "each time behind another place");
    console.log(`${Object.keys(models).length} read models after ${count} changes on the page`);
  },
});
