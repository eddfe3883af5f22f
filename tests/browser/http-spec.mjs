// The audits of the GraphQL-over-HTTP specification that come with npm's graphql-http: every MUST and every SHOULD holds.
import { serverAudits } from "graphql-http";
import { fail, graphqlUrl } from "./lib.mjs";

const results = [];
for (const audit of serverAudits({ url: graphqlUrl, fetchFn: fetch })) results.push(await audit.fn());

const outcomes = { ok: "ok", notice: "MAY, not done", warn: "FAILED (SHOULD)", error: "FAILED (MUST)" };
for (const { status, id, name, reason } of results) {
  if (status !== "ok") console.log(`${outcomes[status]}  ${id} ${name}\n        ${reason}`);
}
const failed = results.filter(({ status }) => status !== "ok" && status !== "notice").length;
const passed = results.filter(({ status }) => status === "ok").length;
console.log(`${passed} of ${results.length} audits passed, ${failed} failed`);
if (passed < 50) fail("there should be more than 50 audits");
process.exit(failed ? 1 : 0);
