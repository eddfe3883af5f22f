// The playground as a newcomer uses it, in a real browser: start the first example's subscription, append, see it arrive.
// SCREENSHOT names the PNG to write. With TOKEN, the server needs a token: it is typed into the headers of the first tab.
import assert from "node:assert/strict";
import { launchBrowser, runInOrder, serverUrl, until } from "./lib.mjs";

const token = process.env.TOKEN;
const browser = await launchBrowser();
const page = await browser.newPage({ viewport: { width: 1280, height: 800 }, colorScheme: "light" });
page.setDefaultTimeout(15_000);

const complaints = [];
page.on("console", (entry) => entry.type() === "error" && complaints.push(`console: ${entry.text()}`));
page.on("pageerror", (error) => complaints.push(`uncaught: ${error}`));
page.on("requestfailed", (request) => complaints.push(`no answer: ${request.url()} (${request.failure()?.errorText})`));
page.on("response", (response) => response.status() >= 400 && complaints.push(`HTTP ${response.status()}: ${response.url()}`));
const visited = [];
page.on("request", (request) => visited.push(request.url()));
page.on("websocket", (socket) => visited.push(socket.url()));

const openTab = (name) => page.locator(".graphiql-tab").getByTitle(name, { exact: true }).click();
const runOperation = () => page.getByRole("button", { name: /^execute query/i }).click();
// The result as it is drawn: without spaces, and without the lines that one would have to scroll to.
const shownResult = () =>
  page.locator(".graphiql-response .result-window .view-line").evaluateAll((lines) =>
    lines
      .sort((a, b) => parseInt(a.style.top) - parseInt(b.style.top))
      .map((line) => line.innerText)
      .join("")
      .replaceAll(/\s/g, ""),
  );
const withoutSpaces = (json) => JSON.stringify(json).replaceAll(/\s/g, "");
const resultWith = (pattern) => until(`a result with ${pattern}`, async () => pattern.test(await shownResult()));

/** Runs the query or mutation of the front tab; returns its data once they are shown. */
async function runOverHttp() {
  const answered = page.waitForResponse((response) => response.request().method() === "POST" && new URL(response.url()).pathname === "/graphql");
  await runOperation();
  const answer = await (await answered).json();
  assert.equal(answer.errors, undefined, JSON.stringify(answer.errors));
  await until("the answer in the result pane", async () => {
    const shown = await shownResult();
    return shown.length > 1 && withoutSpaces(answer).startsWith(shown);
  });
  return answer.data;
}

const liveRows = () => page.getByRole("region", { name: "Live results" }).locator("li").allInnerTexts();

// Without a token even the schema is refused; with it, the first answer makes the page read the schema.
async function enterToken() {
  await openTab("Server");
  await runOperation();
  await resultWith(/"code":"UNAUTHENTICATED"/);
  await page.getByRole("button", { name: "Headers", exact: true }).click();
  await page.locator('section[aria-label="Headers"] .monaco-editor').last().click();
  await page.keyboard.insertText(JSON.stringify({ Authorization: `Bearer ${token}` }));
  await runOverHttp();
  await page.getByRole("button", { name: "Hide editor tools" }).click();
  complaints.length = 0;
}

await runInOrder({
  async "the page opens, with the schema read"() {
    const response = await page.goto(serverUrl.href);
    assert.equal(response.status(), 200);
    assert.equal(await page.title(), "Tidings");
    const policy = response.headers()["content-security-policy"];
    assert.match(policy, /default-src 'self'/);
    assert.match(policy, /frame-ancestors 'none'/);
    if (token) await enterToken();
    await page.getByRole("button", { name: /show documentation explorer/i }).click();
    await page.locator(".graphiql-doc-explorer").getByRole("link", { name: "Subscription", exact: true }).waitFor();
    await page.getByRole("button", { name: /hide documentation explorer/i }).click();
  },

  async "a running subscription delivers what another tab appends"() {
    await openTab("Watch");
    await runOperation();
    await page.getByText("Watch live").waitFor();

    await openTab("Append");
    let event;
    for (let append = 1; append <= 3; append += 1) {
      ({ event } = (await runOverHttp()).appendEvent);
      await until("the event in the live list", async () => {
        const [newest] = await liveRows();
        return newest?.includes(`version:${event.version},`) && newest.includes(`createdAt:"${event.createdAt}"`);
      });
    }
    if (process.env.SCREENSHOT) {
      await page.mouse.move(640, 640);
      await page.screenshot({ path: process.env.SCREENSHOT, animations: "disabled" });
    }

    await openTab("Watch");
    await resultWith(new RegExp(`"createdAt":"${event.createdAt}"`));
  },

  async "a subscription ends when it is stopped"() {
    await page.getByRole("button", { name: /^stop query/i }).click();
    await page.getByText("Watch stopped").waitFor();
  },

  async "all examples work from left to right, and again"() {
    for (let round = 1; round <= 2; round += 1) {
      await openTab("Watch");
      await runOperation();
      await resultWith(/"caughtUp":true/);
      await openTab("Append");
      const { appendEvent } = await runOverHttp();
      await openTab("Aggregate");
      const { aggregate } = await runOverHttp();
      assert.equal(aggregate.version, appendEvent.event.version);
      assert.equal(aggregate.events[0].version, 1);
      await openTab("Events");
      const { events } = await runOverHttp();
      assert.equal(events.nodes[0].createdAt, appendEvent.event.createdAt);
      await openTab("Create");
      assert.equal((await runOverHttp()).createAggregate.created, true);
      await openTab("WatchStream");
      await runOperation();
      await page.getByText("WatchStream live").waitFor();
      await openTab("AppendEntry");
      const { appendToStream } = await runOverHttp();
      assert.equal(appendToStream.duplicate, false);
      await openTab("WatchStream");
      await resultWith(new RegExp(`"position":${appendToStream.entry.position},`));
      await openTab("Server");
      assert.equal(typeof (await runOverHttp()).server.headCursor, "string");
      for (const name of ["Watch", "WatchStream"]) await page.getByRole("button", { name: `Stop ${name}`, exact: true }).click();
    }
  },

  async "nothing was asked of another host, and nothing was complained about"() {
    assert.ok(visited.some((url) => url.startsWith("ws")), "the websocket was seen");
    const foreign = visited.filter((url) => !["data:", "blob:"].includes(new URL(url).protocol) && new URL(url).host !== serverUrl.host);
    assert.deepEqual(foreign, []);
    assert.deepEqual(complaints, []);
  },
});
