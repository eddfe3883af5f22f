// The playground as a newcomer uses it, in a real browser: start the first example's subscription, append, see it arrive.
// SCREENSHOT names the PNG to write.
import assert from "node:assert/strict";
import { launchBrowser, runInOrder, serverUrl, until } from "./lib.mjs";

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
// The editor draws the visible lines only, with hard spaces; these results fit.
const shownResult = async () => {
  const lines = await page.locator(".graphiql-response .result-window .view-line").allInnerTexts();
  return lines.join("\n").replaceAll("\u00a0", " ");
};
const resultWith = (pattern) =>
  until(`a result with ${pattern}`, async () => {
    const result = await shownResult();
    assert.doesNotMatch(result, /"errors"/);
    return result.match(pattern);
  });
const liveRows = () => page.getByRole("region", { name: "Live results" }).locator("li").allInnerTexts();

const CREATED_AT = /"createdAt": "([^"]+)"/;

await runInOrder({
  async "the page opens, with the schema read"() {
    const response = await page.goto(serverUrl.href);
    assert.equal(response.status(), 200);
    assert.equal(await page.title(), "Tidings");
    const policy = response.headers()["content-security-policy"];
    assert.match(policy, /default-src 'self'/);
    assert.match(policy, /frame-ancestors 'none'/);
    await page.getByRole("button", { name: /show documentation explorer/i }).click();
    await page.locator(".graphiql-doc-explorer").getByRole("link", { name: "Subscription", exact: true }).waitFor();
    await page.getByRole("button", { name: /hide documentation explorer/i }).click();
  },

  async "a running subscription delivers what another tab appends"() {
    await openTab("Watch");
    await runOperation();
    await page.getByText("Watch live").waitFor();

    await openTab("Append");
    await runOperation();
    const [, createdAt] = await resultWith(CREATED_AT);
    const [, version] = await resultWith(/"version": (\d+)/);
    await until("the event in the live list", async () => {
      const [newest] = await liveRows();
      return newest?.includes(`version:${version},`) && newest.includes(createdAt);
    });
    if (process.env.SCREENSHOT) {
      await page.mouse.move(640, 640);
      await page.screenshot({ path: process.env.SCREENSHOT, animations: "disabled" });
    }

    await openTab("Watch");
    await resultWith(new RegExp(`"createdAt": "${createdAt}"`));
  },

  async "a subscription ends when it is stopped"() {
    await page.getByRole("button", { name: /^stop query/i }).click();
    await page.getByText("Watch stopped").waitFor();
  },

  async "all examples work from left to right, and again"() {
    for (let round = 1; round <= 2; round += 1) {
      for (const [tab, sign] of [
        ["Watch", /"caughtUp": true/],
        ["Append", /"version": \d+/],
        ["Aggregate", /"item": "tea"/],
        ["Events", /"nodes": \[/],
        ["Create", /"created": true/],
      ]) {
        await openTab(tab);
        await runOperation();
        await resultWith(sign);
      }
      await openTab("WatchStream");
      await runOperation();
      await page.getByText("WatchStream live").waitFor();
      await openTab("AppendEntry");
      await runOperation();
      await resultWith(/"duplicate": false/);
      const [, position] = await resultWith(/"position": (\d+)/);
      await openTab("WatchStream");
      await resultWith(new RegExp(`"position": ${position}\\b`));
      await openTab("Server");
      await runOperation();
      await resultWith(/"headCursor": "/);
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
