// How the playground talks to the server: queries and mutations by HTTP, subscriptions by websocket, both at /graphql.
import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { Kind, OperationTypeNode, parse } from "graphql";
import { joinFeed } from "./feeds.js";

const overHttp = createGraphiQLFetcher({ url: "/graphql", enableIncrementalDelivery: false });

// Headers are a matter of one tab in GraphiQL and are not stored. A token typed once counts for all tabs that have no headers.
let lastHeaders = {};

/** A fetcher for GraphiQL; calls `onAnswer` after each answer to anything but the introspection. */
export const createFetcher = ({ onAnswer }) => async (params, { headers } = {}) => {
  if (headers && Object.keys(headers).length > 0) lastHeaders = headers;
  const query = params.query.replaceAll("{{uuid}}", newUuid);
  const operation = findOperation(query, params.operationName);
  const request = { query, variables: params.variables, operationName: operation?.name?.value };
  if (operation?.operation === OperationTypeNode.SUBSCRIPTION) {
    return joinFeed({ name: request.operationName ?? "subscription", request, headers: lastHeaders });
  }
  const answer = await overHttp(request, { headers: lastHeaders }).catch((cause) => {
    throw [{ message: `The server gave no answer that could be read: ${cause.message}` }];
  });
  if (params.operationName !== "IntrospectionQuery") onAnswer();
  return answer;
};

// GraphiQL's own `operationName` can still be that of the tab before; a single operation needs none.
function findOperation(query, operationName) {
  try {
    const operations = parse(query).definitions.filter(({ kind }) => kind === Kind.OPERATION_DEFINITION);
    return operations.length === 1 ? operations[0] : operations.find(({ name }) => name?.value === operationName);
  } catch {
    // The server says what is wrong with it.
    return undefined;
  }
}

// A version 4 UUID; `crypto.randomUUID` is there on https and localhost only.
function newUuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
