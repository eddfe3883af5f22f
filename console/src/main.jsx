// The playground: GraphiQL with examples in its tabs and with subscriptions that go on in the background.
import "./workers.js";
import "@graphiql/react/style.css";
import "graphiql/graphiql.css";
import "@graphiql/plugin-doc-explorer/style.css";
import "@graphiql/plugin-history/style.css";
import "./style.css";
import { useGraphiQL, useGraphiQLActions } from "@graphiql/react";
import { createLocalStorage } from "@graphiql/toolkit";
import { GraphiQL } from "graphiql";
import { useEffect, useRef } from "react";
import { createRoot } from "react-dom/client";
import { EXAMPLES } from "./examples.js";
import { feedOf, setTabs } from "./feeds.js";
import { createFetcher } from "./fetcher.js";
import { Live } from "./Live.jsx";

let answered = () => {};
const fetcher = createFetcher({ onAnswer: () => answered() });
// A name of its own: other playgrounds may have been at this address.
const storage = createLocalStorage({ namespace: "tidings" });

/** Keeps feeds and tabs together, and reads the schema once a token has made that possible. */
function Conductor() {
  const { tabs, activeTabIndex, hasSchema } = useGraphiQL((state) => ({
    tabs: state.tabs,
    activeTabIndex: state.activeTabIndex,
    hasSchema: Boolean(state.schema),
  }));
  const { run, introspect } = useGraphiQLActions();
  const activeTab = tabs[activeTabIndex];
  const query = useRef(activeTab?.query);
  query.current = activeTab?.query;

  useEffect(() => {
    answered = () => hasSchema || introspect();
  }, [hasSchema, introspect]);
  useEffect(() => setTabs({ tabs, activeTabIndex }), [tabs, activeTabIndex]);
  useEffect(() => {
    // Not at once: the tab before is still taking its leave.
    const timer = setTimeout(() => feedOf(activeTab?.id, query.current) && run(), 50);
    return () => clearTimeout(timer);
  }, [activeTab?.id, run]);
  return null;
}

createRoot(document.getElementById("console")).render(
  <GraphiQL fetcher={fetcher} storage={storage} defaultTabs={EXAMPLES} onTabChange={setTabs}>
    <GraphiQL.Logo>
      <img src="/favicon.svg" alt="" /> Tidings
    </GraphiQL.Logo>
    <GraphiQL.Footer>
      <Live />
    </GraphiQL.Footer>
    <Conductor />
  </GraphiQL>,
);
