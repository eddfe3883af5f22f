// What the scripts share: where the server is, a plain GraphQL call, checks, and the browser. Each script is run by the Rust tests
// with TIDINGS_URL set, and exits with 0 only if everything that it checks held.
import { inspect } from "node:util";
import { chromium } from "playwright-core";

export const serverUrl = new URL(process.env.TIDINGS_URL ?? fail("TIDINGS_URL is not set: the address of the server, such as http://127.0.0.1:8080"));
export const graphqlUrl = new URL("/graphql", serverUrl).href;
export const websocketUrl = graphqlUrl.replace(/^http/, "ws");

const DEADLINE_MS = 60_000;

/** Runs checks that do not build on each other, says how each went, and exits. */
export const run = (checks) => runChecks(checks, { goOn: true });

/** Runs steps of which each builds on the one before, up to the first that fails, and exits. */
export const runInOrder = (steps) => runChecks(steps, { goOn: false });

async function runChecks(steps, { goOn }) {
  const deadline = setTimeout(() => fail(`not done after ${DEADLINE_MS / 1000} seconds`), DEADLINE_MS);
  let failed = 0;
  for (const [name, step] of Object.entries(steps)) {
    try {
      await step();
      console.log(`ok      ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${name}\n${indent(inspect(error, { depth: 6 }))}`);
      if (!goOn) break;
    }
  }
  clearTimeout(deadline);
  const count = Object.keys(steps).length;
  console.log(failed ? `${failed} of ${count} failed` : `all ${count} passed`);
  process.exit(failed ? 1 : 0);
}

export function fail(reason) {
  console.error(`FAILED  ${reason}`);
  process.exit(1);
}

/** A query or mutation by HTTP, without an Origin, as any program sends it. Throws what is not plain success. */
export async function graphql(query, variables = {}) {
  const response = await fetch(graphqlUrl, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "application/graphql-response+json" },
    body: JSON.stringify({ query, variables }),
  });
  const text = await response.text();
  const answer = JSON.parse(text);
  if (!response.ok || answer.errors) throw new Error(`HTTP ${response.status}: ${text}`);
  return answer.data;
}

/** Waits until `read` gives something true, and returns it. */
export async function until(what, read, timeoutMs = 15_000) {
  const end = Date.now() + timeoutMs;
  for (;;) {
    const value = await read();
    if (value) return value;
    if (Date.now() > end) throw new Error(`waited ${timeoutMs / 1000} seconds in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** A new browser without a profile and without requests of its own; `hosts` maps names to addresses. */
export function launchBrowser(hosts = {}) {
  const rules = [...Object.entries(hosts).map(([name, address]) => `MAP ${name} ${address}`), "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"];
  return chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      `--host-resolver-rules=${rules.join(", ")}`,
    ],
  });
}

const indent = (text) => text.replaceAll(/^/gm, "        ");
