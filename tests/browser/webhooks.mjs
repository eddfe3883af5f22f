// A receiver of webhooks that others wrote: signatures are verified by the Standard Webhooks library, documents are parsed by the
// CloudEvents SDK. It fails at every third, hangs at some, is killed for a while, and has every event in the end: of each aggregate
// in order. Run without RECEIVER it is the test, which starts itself again as the receiver.
import assert from "node:assert/strict";
import { fork } from "node:child_process";
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { HTTP } from "cloudevents";
import { Webhook } from "standardwebhooks";

const secret = process.env.WEBHOOK_SECRET;
const AGGREGATES = 12;
const EVENTS = 15;
const DEADLINE_MS = 90_000;

if (process.env.RECEIVER) receive(Number(process.env.RECEIVER));
else await test();

/** Answers on a port, and tells its parent what it has taken. */
function receive(port) {
  const webhook = new Webhook(secret);
  let count = 0;
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks).toString();
    count += 1;
    if (count % 3 === 0) return response.writeHead(500).end();
    // Longer than it is waited for.
    if (count % 20 === 7) await sleep(2_000);
    try {
      webhook.verify(body, request.headers);
      const event = HTTP.toEvent({ headers: request.headers, body });
      event.validate();
      const { id, type, subject, specversion, aggregateversion, data } = event;
      process.send({ id, type, subject, specversion, version: aggregateversion, data, webhookId: request.headers["webhook-id"] });
      response.writeHead(204).end();
    } catch (error) {
      process.send({ error: String(error) });
      response.writeHead(400).end();
    }
  });
  server.listen(port, "127.0.0.1", () => process.send({ port: server.address().port }));
}

/** Starts the receiver; once it listens, its process and its port. */
async function startReceiver(port, taken) {
  const child = fork(fileURLToPath(import.meta.url), { env: { ...process.env, RECEIVER: String(port) } });
  const listening = await new Promise((resolve, reject) => {
    child.once("exit", (code) => reject(new Error(`the receiver has ended with ${code}`)));
    child.on("message", (message) => {
      if (message.port) resolve(message.port);
      else taken.push(message);
    });
  });
  child.removeAllListeners("exit");
  return { child, port: listening };
}

async function ask(query, variables) {
  const response = await fetch(new URL("/graphql", process.env.TIDINGS_URL), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  assert.equal(errors, undefined, JSON.stringify(errors));
  return data;
}

async function test() {
  const taken = [];
  let receiver = await startReceiver(0, taken);
  const input = { name: "hook", function: `http://127.0.0.1:${receiver.port}/hook` };
  await ask("mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }", { input });
  const aggregates = Array.from({ length: AGGREGATES }, () => randomUUID());
  const expected = new Map(aggregates.map((id) => [id, []]));
  for (let round = 0; round < EVENTS; round += 1) {
    const events = aggregates.map((aggregateId) => ({
      aggregateId,
      aggregateType: "user",
      type: "user_renamed",
      data: { round, name: "Ädä \"A\" 🦀", nested: [null, 1.5, { a: [] }] },
    }));
    const data = await ask("mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id aggregateId } } }", { input: { events } });
    for (const event of data.appendEvents.events) expected.get(event.aggregateId).push(event.id);
    if (round === 5) receiver.child.kill("SIGKILL");
    if (round === 10) {
      await sleep(1_500);
      receiver = await startReceiver(receiver.port, taken);
    }
  }
  const started = Date.now();
  for (;;) {
    const query = '{ eventHandler(name: "hook") { lagEvents deliveries(first: 1000) { nodes { status attempts lastError } } } }';
    const { eventHandler } = await ask(query);
    if (eventHandler.lagEvents === 0 && eventHandler.deliveries.nodes.length === 0) break;
    if (Date.now() - started > DEADLINE_MS) fail(`not done in time: ${JSON.stringify(eventHandler)}`);
    await sleep(100);
  }
  const wrong = taken.filter((message) => message.error);
  assert.deepEqual(wrong, [], "every signature and every document is right");
  for (const [aggregate, ids] of expected) {
    const given = taken.filter((message) => message.subject === aggregate);
    const firstTimes = [...new Set(given.map((message) => message.id))];
    assert.deepEqual(firstTimes, ids, "every event at least once, and in order");
    for (const message of given) {
      assert.equal(message.specversion, "1.0");
      assert.equal(message.type, "user_renamed");
      assert.equal(message.version, ids.indexOf(message.id) + 1);
      assert.equal(message.data.name, "Ädä \"A\" 🦀");
      assert.ok(message.webhookId.startsWith(message.id), "a repeat has the same id");
    }
  }
  console.log(`ok: ${taken.length} taken of ${AGGREGATES * EVENTS} events`);
  receiver.child.kill();
  process.exit(0);
}

function fail(reason) {
  console.error(`FAILED  ${reason}`);
  process.exit(1);
}
