//! The registry of event handlers, and handlers whose effects are entries.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::domain::{Cursor, Place, Position};
use uuid::Uuid;

use super::{Contract, database::execute, event, list, pick, with};
use crate::support::{
    client::LIMIT,
    in_process::{Engine, TestServer},
};

cases!(
    a_handler_is_registered_and_listed,
    registering_again_changes_the_handler_and_keeps_its_place,
    a_function_that_is_not_there_is_refused_with_what_would_be_right,
    names_that_other_programs_give_a_meaning_to_are_refused_and_do_nothing,
    a_new_handler_begins_with_the_next_event_or_where_it_is_told,
    a_place_that_is_none_is_refused,
    a_place_behind_the_newest_event_is_refused_and_the_newest_is_named,
    a_change_in_the_table_is_known_within_a_second,
    handlers_publish_each_wanted_event_once,
    an_inactive_handler_is_given_nothing_and_goes_on_where_it_stopped,
    a_removed_handler_leaves_nothing_behind,
    an_event_that_its_stream_does_not_take_is_a_dead_delivery,
    what_names_no_handler_is_not_found,
    what_one_server_changes_another_one_knows_within_a_second,
    where_there_are_ten_thousand_handlers_no_other_one_is_registered,
);

const HANDLER: &str = "id name eventTypes function isActive isPaused createdAt";

impl Contract {
    /// Registers a handler: as it is then.
    pub async fn register(&self, input: Value) -> Value {
        let query = register();
        self.ask(&query, json!({ "input": input })).await["registerEventHandler"]["eventHandler"]
            .take()
    }

    pub async fn register_is_refused(&self, input: Value) -> crate::support::client::Failure {
        self.refused(&register(), json!({ "input": input })).await
    }

    /// A handler by its name.
    pub async fn handler(&self, name: &str) -> Value {
        let query = format!(
            "query($name: String!) {{ eventHandler(name: $name) {{ {HANDLER} lagEvents }} }}"
        );
        self.ask(&query, json!({ "name": name })).await["eventHandler"].take()
    }

    /// Every handler.
    pub async fn handlers(&self) -> Vec<Value> {
        let query = format!("{{ eventHandlers {{ {HANDLER} }} }}");
        list(self.ask(&query, json!({})).await["eventHandlers"].take())
    }

    pub async fn set_active(&self, name: &str, is_active: bool) -> Value {
        let query = format!(
            "mutation($input: SetEventHandlerActiveInput!) {{ setEventHandlerActive(input: $input) {{ eventHandler {{ {HANDLER} }} }} }}"
        );
        let input = json!({ "name": name, "isActive": is_active });
        self.ask(&query, json!({ "input": input })).await["setEventHandlerActive"]["eventHandler"]
            .take()
    }

    pub async fn remove_handler(&self, name: &str) -> bool {
        let query = "mutation($input: RemoveEventHandlerInput!) { removeEventHandler(input: $input) { removed } }";
        let data = self.ask(query, json!({ "input": { "name": name } })).await;
        data["removeEventHandler"]["removed"].as_bool().unwrap()
    }

    /// Waits until a handler has looked at every event.
    pub async fn handled(&self, name: &str) {
        let wait = async {
            while self.handler(name).await["lagEvents"] != 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, wait).await;
        assert!(
            waited.is_ok(),
            "{name} stays behind: {}",
            self.handler(name).await
        );
    }

    /// The deliveries of a handler that are not done, by aggregate and version of their events.
    pub async fn deliveries(&self, name: &str) -> Vec<Value> {
        let query = "query($name: String!) { eventHandler(name: $name) { deliveries(first: 1000) { nodes { \
                     id status attempts lastError nextAttemptAt updatedAt handler { name } event { id aggregateId version } } } } }";
        let data = self.ask(query, json!({ "name": name })).await;
        let mut deliveries = list(data["eventHandler"]["deliveries"]["nodes"].clone());
        deliveries.sort_by_key(|delivery| {
            let event = &delivery["event"];
            (event["aggregateId"].to_string(), event["version"].as_i64())
        });
        deliveries
    }
}

fn register() -> String {
    format!(
        "mutation($input: RegisterEventHandlerInput!) {{ registerEventHandler(input: $input) {{ eventHandler {{ {HANDLER} }} }} }}"
    )
}

async fn a_handler_is_registered_and_listed(contract: Contract) {
    let input = json!({ "name": "welcome", "function": "log", "eventTypes": ["user_seen", "user_created", "user_seen"] });
    let handler = contract.register(input).await;
    assert_eq!(handler["name"], "welcome");
    assert_eq!(handler["eventTypes"], json!(["user_created", "user_seen"]));
    assert_eq!(handler["function"], "log");
    assert_eq!(handler["isActive"], true);
    assert_eq!(handler["isPaused"], false);
    let all = contract
        .register(json!({ "name": "audit", "function": "publish:audit" }))
        .await;
    assert_eq!(all["eventTypes"], json!([]));
    assert_eq!(contract.handlers().await, [all.clone(), handler.clone()]);
    assert_eq!(
        contract.handler("welcome").await,
        with(handler, json!({ "lagEvents": 0 }))
    );
    assert_eq!(contract.handler("nobody").await, Value::Null);
    for (event_type, expected) in [
        ("user_seen", vec!["audit", "welcome"]),
        ("other", vec!["audit"]),
    ] {
        let query = "query($type: String) { eventHandlers(eventType: $type) { name } }";
        let found = contract.ask(query, json!({ "type": event_type })).await;
        assert_eq!(
            pick(&list(found["eventHandlers"].clone()), "name"),
            expected
        );
    }
}

async fn registering_again_changes_the_handler_and_keeps_its_place(contract: Contract) {
    contract.fill(3).await;
    let input = json!({ "name": "copy", "function": "publish:one", "startAfter": "" });
    let first = contract.register(input).await;
    contract.handled("copy").await;
    let input = json!({ "name": "copy", "function": "publish:two", "eventTypes": ["user_created"], "startAfter": "" });
    let second = contract.register(input).await;
    assert_eq!(second["id"], first["id"]);
    assert_eq!(second["function"], "publish:two");
    assert_eq!(contract.handlers().await, [second]);
    let newest = contract.fill(1).await;
    contract.handled("copy").await;
    assert_eq!(contract.stream("one").await["lastPosition"], 3);
    let two = contract.stream("two").await;
    assert_eq!(
        pick(&list(two["entries"].clone()), "eventId"),
        pick(&newest, "id")
    );
}

async fn a_function_that_is_not_there_is_refused_with_what_would_be_right(contract: Contract) {
    for (function, hint) in [
        ("", "publish:STREAM"),
        ("send_mail", "none of this server's functions in Rust"),
        ("publish:", "must not be empty"),
        ("ftp://example.com/", "https://"),
        ("https://example.com/", "TIDINGS_WEBHOOK_SECRET"),
        ("sql:", "the name alone"),
    ] {
        let input = json!({ "name": "wrong", "function": function });
        let failure = contract.register_is_refused(input).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT");
        assert_eq!(failure.extension("field"), "input.function");
        assert!(
            failure.message().contains(hint),
            "{function}: {}",
            failure.message()
        );
    }
    let input = json!({ "name": "wrong", "function": "sql:not_there" });
    let failure = contract.register_is_refused(input).await;
    assert_eq!(failure.extension("field"), "input.function");
    let hint = match contract.engine {
        Engine::Sqlite => "this database is SQLite",
        Engine::Postgres => "no function not_there(uuid, uuid, jsonb)",
    };
    assert!(failure.message().contains(hint), "{}", failure.message());
    assert_eq!(contract.handlers().await, [Value::Null; 0]);
}

async fn names_that_other_programs_give_a_meaning_to_are_refused_and_do_nothing(
    contract: Contract,
) {
    let stored = contract.fill(2).await;
    for bad in [
        "a'b",
        "a\"b",
        "a; DROP TABLE events; --",
        "a..b",
        "../../etc/passwd",
        "$(id)",
        "a\\b",
        "",
    ] {
        let names = json!({ "name": bad, "function": "log" });
        let types = json!({ "name": "right", "function": "log", "eventTypes": ["right", bad] });
        for (input, field) in [(names, "input.name"), (types, "input.eventTypes[1]")] {
            let failure = contract.register_is_refused(input).await;
            assert_eq!(
                failure.code(),
                "BAD_USER_INPUT",
                "{bad}: {}",
                failure.message()
            );
            assert_eq!(failure.extension("field"), field, "{bad}");
        }
        let input = json!({ "name": "right", "function": format!("sql:{bad}") });
        let failure = contract.register_is_refused(input).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT");
        assert_eq!(failure.extension("field"), "input.function");
        for operation in [
            "mutation($name: String!) { removeEventHandler(input: { name: $name }) { removed } }",
            "mutation($name: String!) { setEventHandlerActive(input: { name: $name, isActive: false }) { eventHandler { id } } }",
            "mutation($name: String!) { retryDeadDeliveries(input: { handlerName: $name }) { count } }",
            "query($name: String!) { eventHandler(name: $name) { id } }",
        ] {
            let failure = contract.refused(operation, json!({ "name": bad })).await;
            assert_eq!(failure.code(), "BAD_USER_INPUT", "{operation}");
        }
    }
    assert_eq!(contract.handlers().await, [Value::Null; 0]);
    assert_eq!(contract.all_events().await.len(), stored.len());
}

async fn a_new_handler_begins_with_the_next_event_or_where_it_is_told(contract: Contract) {
    let before = contract.fill(4).await;
    let cursor = contract.newest_place().await;
    let between = contract.fill(4).await;
    for (name, start) in [
        ("all", json!("")),
        ("later", json!(cursor)),
        ("next", Value::Null),
    ] {
        let input =
            json!({ "name": name, "function": format!("publish:{name}"), "startAfter": start });
        contract.register(input).await;
    }
    let after = contract.fill(4).await;
    for (name, expected) in [
        ("all", [&before, &between, &after].as_slice()),
        ("later", &[&between, &after]),
        ("next", &[&after]),
    ] {
        contract.handled(name).await;
        let stream = contract.stream(name).await;
        let mut ids: Vec<String> = list(stream["entries"].clone())
            .iter()
            .map(|entry| entry["eventId"].to_string())
            .collect();
        let mut expected: Vec<String> = expected
            .iter()
            .flat_map(|events| events.iter().map(|event| event["id"].to_string()))
            .collect();
        if contract.partitions > 1 {
            // Between partitions no order is promised.
            ids.sort();
            expected.sort();
        }
        assert_eq!(ids, expected, "{name}");
    }
}

async fn a_place_that_is_none_is_refused(contract: Contract) {
    let other = contract.another().await;
    other.fill(1).await;
    let streams = {
        contract.append_entry(super::entry("s")).await;
        let data = contract
            .ask("{ streams { pageInfo { endCursor } } }", json!({}))
            .await;
        data["streams"]["pageInfo"]["endCursor"].clone()
    };
    for (start, hint) in [
        (json!("nonsense"), "not a cursor"),
        (streams, "another kind"),
        (json!(other.newest_place().await), "another database"),
    ] {
        let input = json!({ "name": "a", "function": "log", "startAfter": start });
        let failure = contract.register_is_refused(input).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT");
        assert_eq!(failure.extension("field"), "input.startAfter");
        assert!(failure.message().contains(hint), "{}", failure.message());
    }
    assert_eq!(contract.handlers().await, [Value::Null; 0]);
}

async fn a_place_behind_the_newest_event_is_refused_and_the_newest_is_named(contract: Contract) {
    contract.fill(3).await;
    let beyond = {
        let store = contract.server.app.store();
        let behind = vec![Position(1000); usize::from(contract.partitions)];
        let place = Cursor::Events(Place::behind(behind));
        place.encode(store.database_id(), store.partitions())
    };
    let input = json!({ "name": "copy", "function": "publish:copy", "startAfter": beyond });
    let failure = contract.register_is_refused(input).await;
    assert_eq!(failure.code(), "PLACE_NOT_REACHED");
    assert_eq!(contract.handlers().await, [Value::Null; 0]);
    // The head that it names is a place to begin at.
    let head = failure.extension("head");
    let input = json!({ "name": "copy", "function": "publish:copy", "startAfter": head });
    contract.register(input).await;
    contract.fill(2).await;
    contract.handled("copy").await;
    assert_eq!(contract.stream("copy").await["lastPosition"], 2);
}

async fn a_change_in_the_table_is_known_within_a_second(contract: Contract) {
    contract
        .register(json!({ "name": "copy", "function": "publish:copy" }))
        .await;
    contract.fill(1).await;
    contract.handled("copy").await;
    let change =
        "UPDATE event_handlers SET handler_function = 'publish:other', revision = revision + 1";
    let written = super::database::execute(&contract.server.database, change).await;
    assert_eq!(written, Ok(1));
    // Nothing asks this server for its handlers meanwhile: that would tell it. A busy machine may need longer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    contract.fill(1).await;
    let started = std::time::Instant::now();
    while contract.stream("other").await.is_null() {
        assert!(started.elapsed() < LIMIT, "nothing is published there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(contract.stream("copy").await["lastPosition"], 1);
}

async fn handlers_publish_each_wanted_event_once(contract: Contract) {
    for (name, types) in [
        ("a", json!([])),
        ("b", json!(["user_created"])),
        ("c", json!(["other"])),
    ] {
        // Two of them to one stream, which takes each event once.
        let stream = if name == "c" { "others" } else { "both" };
        let input =
            json!({ "name": name, "function": format!("publish:{stream}"), "eventTypes": types });
        contract.register(input).await;
    }
    let events = contract.fill(8).await;
    let other = with(event(Uuid::new_v4()), json!({ "type": "other" }));
    let other = contract.append(other).await["event"].take();
    for name in ["a", "b", "c"] {
        contract.handled(name).await;
        assert_eq!(contract.deliveries(name).await, [Value::Null; 0]);
    }
    let both = contract.stream("both").await;
    assert_eq!(both["lastPosition"], 9);
    let mut expected = pick(&events, "id");
    expected.push(other["id"].clone());
    let mut ids = pick(&list(both["entries"].clone()), "eventId");
    if contract.partitions > 1 {
        ids.sort_by_key(ToString::to_string);
        expected.sort_by_key(ToString::to_string);
    }
    assert_eq!(ids, expected);
    let entry = contract.stream("others").await["entries"][0].take();
    assert_eq!(entry["eventId"], other["id"]);
    assert_eq!(entry["type"], other["type"]);
    assert_eq!(entry["data"], other["data"]);
}

async fn an_inactive_handler_is_given_nothing_and_goes_on_where_it_stopped(contract: Contract) {
    contract
        .register(json!({ "name": "copy", "function": "publish:copy" }))
        .await;
    contract.fill(2).await;
    contract.handled("copy").await;
    let handler = contract.set_active("copy", false).await;
    assert_eq!(handler["isActive"], false);
    // It stops within a second, on whatever server it runs; a busy machine may need longer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    contract.fill(3).await;
    contract.projected().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(contract.stream("copy").await["lastPosition"], 2);
    assert_eq!(contract.handler("copy").await["lagEvents"], 3);
    assert_eq!(contract.set_active("copy", true).await["isActive"], true);
    contract.handled("copy").await;
    let entries = list(contract.stream("copy").await["entries"].take());
    assert_eq!(entries.len(), 5);
}

async fn a_removed_handler_leaves_nothing_behind(contract: Contract) {
    contract
        .register(json!({ "name": "copy", "function": "publish:copy" }))
        .await;
    contract.fill(2).await;
    contract.handled("copy").await;
    assert!(contract.remove_handler("copy").await);
    assert!(!contract.remove_handler("copy").await);
    assert_eq!(contract.handlers().await, [Value::Null; 0]);
    contract.fill(2).await;
    // One of the same name begins anew.
    contract
        .register(json!({ "name": "copy", "function": "publish:copy" }))
        .await;
    contract.fill(1).await;
    contract.handled("copy").await;
    assert_eq!(contract.stream("copy").await["lastPosition"], 3);
}

async fn an_event_that_its_stream_does_not_take_is_a_dead_delivery(contract: Contract) {
    contract
        .register(json!({ "name": "copy", "function": "publish:copy" }))
        .await;
    let id = Uuid::new_v4();
    let taken = with(
        super::entry("copy"),
        json!({ "eventId": id, "data": "something else" }),
    );
    contract.append_entry(taken).await;
    let aggregate = Uuid::new_v4();
    contract
        .append(with(event(aggregate), json!({ "id": id })))
        .await;
    contract.append(event(aggregate)).await;
    contract.handled("copy").await;
    let dead = contract.deliveries("copy").await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0]["status"], "DEAD");
    assert_eq!(dead[0]["event"]["id"], json!(id));
    assert!(
        dead[0]["lastError"]
            .as_str()
            .unwrap()
            .contains("another entry")
    );
    // The aggregate has gone on.
    assert_eq!(contract.stream("copy").await["lastPosition"], 2);
}

async fn what_names_no_handler_is_not_found(contract: Contract) {
    let active = "mutation { setEventHandlerActive(input: { name: \"nobody\", isActive: true }) { eventHandler { id } } }";
    let retry = "mutation { retryDeadDeliveries(input: { handlerName: \"nobody\" }) { count } }";
    for query in [active, retry] {
        assert_eq!(contract.refused(query, json!({})).await.code(), "NOT_FOUND");
    }
    assert!(!contract.remove_handler("nobody").await);
}

async fn what_one_server_changes_another_one_knows_within_a_second(contract: Contract) {
    if contract.engine == Engine::Sqlite {
        // There is one server.
        return;
    }
    // The first one has the leases; the second one is told what to do.
    let working = contract;
    let server = TestServer::on(working.server.database.clone(), |_| {}).await;
    let telling = Contract {
        engine: working.engine,
        partitions: working.partitions,
        client: server.client(),
        server,
    };
    let input = json!({ "name": "copy", "function": "publish:copy", "startAfter": "" });
    telling.register(input).await;
    working.fill(4).await;
    working.handled("copy").await;
    telling.set_active("copy", false).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    working.fill(4).await;
    working.projected().await;
    assert_eq!(working.stream("copy").await["lastPosition"], 4);
    telling.set_active("copy", true).await;
    working.handled("copy").await;
    assert_eq!(working.stream("copy").await["lastPosition"], 8);
    assert!(telling.remove_handler("copy").await);
    telling.server.stop().await;
    assert_eq!(working.handlers().await, [Value::Null; 0]);
}

async fn where_there_are_ten_thousand_handlers_no_other_one_is_registered(contract: Contract) {
    let input = json!({ "name": "first", "function": "log" });
    contract.register(input).await;
    let (numbers, new_id) = match contract.engine {
        Engine::Sqlite => (
            "(WITH RECURSIVE n(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 10000) SELECT n FROM n)",
            "randomblob(16)",
        ),
        Engine::Postgres => (
            "(SELECT * FROM generate_series(2, 10000) AS s(n))",
            "gen_random_uuid()",
        ),
    };
    let sql = format!(
        "INSERT INTO event_handlers (id, handler_name, event_types, handler_function, is_active, created_at) \
         SELECT {new_id}, 'no-' || n, h.event_types, h.handler_function, false, h.created_at \
         FROM event_handlers h CROSS JOIN {numbers} m"
    );
    execute(&contract.server.database, sql).await.unwrap();
    let other = json!({ "name": "zz", "function": "log" });
    let failure = contract.register_is_refused(other.clone()).await;
    assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
    assert_eq!(failure.extension("field"), "input.name", "{failure:?}");
    assert!(failure.message().contains("10000"), "{failure:?}");
    assert_eq!(contract.handler("zz").await, Value::Null);
    // Those that are there are changed as ever.
    let changed = json!({ "name": "first", "function": "publish:all" });
    assert_eq!(contract.register(changed).await["function"], "publish:all");
    assert!(contract.remove_handler("no-2").await);
    assert_eq!(contract.register(other).await["name"], "zz");
    contract.append(event(Uuid::new_v4())).await;
    contract.handled("zz").await;
}
