//! Lists of what is large: pages end early and say so, and lists that have no pages are refused. So no answer takes more memory
//! than a few connections may have.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};
use tidings::domain::{AggregateId, HandlerName};
use uuid::Uuid;

use super::{Contract, create_user, database::execute, entry, event, list, pick};
use crate::support::in_process::Engine;

cases!(
    a_page_of_large_events_ends_early_and_leads_on,
    a_page_of_large_read_models_ends_early_and_leads_on,
    what_is_large_and_has_no_pages_is_refused,
    large_commands_are_listed_and_taken_a_part_at_a_time,
    the_large_events_of_deliveries_are_read_a_part_at_a_time,
);

/// So many events of an aggregate are large, a million bytes each.
const LARGE: usize = 8;
/// What fits into a page of 16 MiB, with the last one of each of four partitions, and the small ones.
const MOST_ON_A_PAGE: usize = 24;

/// What the two databases spell differently.
struct Spelling {
    large: &'static str,
    numbers: String,
    new_id: &'static str,
    id: String,
}

fn spelling(contract: &Contract, count: usize, id: Uuid) -> Spelling {
    match contract.engine {
        Engine::Sqlite => Spelling {
            large: "'{\"big\":1,\"x\":\"' || hex(zeroblob(500000)) || '\"}'",
            numbers: format!(
                "(WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count}) SELECT n FROM n)"
            ),
            new_id: "randomblob(16)",
            id: format!("x'{}'", id.simple()),
        },
        Engine::Postgres => Spelling {
            large: "jsonb_build_object('big', 1, 'x', repeat('x', 1000000))",
            numbers: format!("(SELECT * FROM generate_series(1, {count}) AS s(n))"),
            new_id: "gen_random_uuid()",
            id: format!("'{id}'"),
        },
    }
}

/// Appends large events to an aggregate that has one, past the server: it would have to take them all.
async fn append_large(contract: &Contract, id: Uuid, count: usize) {
    let Spelling {
        large,
        numbers,
        new_id,
        id,
    } = spelling(contract, count, id);
    let sql = format!(
        "INSERT INTO events SELECT e.partition_no, h.position + n, {new_id}, e.aggregate_id, e.aggregate_type, e.event_type, \
         {large}, e.event_metadata, e.version + n, h.created_at FROM events e \
         JOIN (SELECT partition_no, MAX(position) AS position, MAX(created_at) AS created_at FROM events GROUP BY partition_no) h \
         ON h.partition_no = e.partition_no CROSS JOIN {numbers} m WHERE e.aggregate_id = {id} AND e.version = 1"
    );
    let sql = sql.replace(
        "INSERT INTO events",
        "INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, event_metadata, version, created_at)",
    );
    execute(&contract.server.database, sql).await.unwrap();
    let sql = format!(
        "UPDATE aggregates SET current_version = current_version + {count} WHERE id = {id}"
    );
    execute(&contract.server.database, sql).await.unwrap();
}

/// The ids on each page of a list, up to its end.
async fn pages(contract: &Contract, field: &str, id: &str, arguments: &str) -> Vec<Vec<Value>> {
    let query = format!(
        "query($after: String) {{ {field}(first: 1000, after: $after, {arguments}) {{ nodes {{ {id} }} pageInfo {{ endCursor hasNextPage }} }} }}"
    );
    let mut pages = Vec::new();
    let mut after = Value::Null;
    loop {
        let mut page = contract.ask(&query, json!({ "after": after })).await[field].take();
        pages.push(pick(&list(page["nodes"].take()), id));
        after = page["pageInfo"]["endCursor"].take();
        if page["pageInfo"]["hasNextPage"] == false {
            return pages;
        }
    }
}

fn assert_short(pages: &[Vec<Value>]) {
    let lengths: Vec<usize> = pages.iter().map(Vec::len).collect();
    assert!(lengths.len() > 1, "{lengths:?}");
    assert!(
        lengths.iter().all(|length| *length <= MOST_ON_A_PAGE),
        "{lengths:?}"
    );
}

async fn a_page_of_large_events_ends_early_and_leads_on(contract: Contract) {
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    let aggregates = contract.aggregates(4);
    for id in &aggregates {
        contract.append(event(*id)).await;
    }
    for id in &aggregates {
        append_large(&contract, *id, LARGE).await;
    }
    let oldest = pages(&contract, "events", "id", "order: OLDEST_FIRST").await;
    assert_short(&oldest);
    let all = oldest.concat();
    let mut once = all.clone();
    once.sort_by_key(ToString::to_string);
    once.dedup();
    assert_eq!((all.len(), once.len()), (4 * (LARGE + 1), 4 * (LARGE + 1)));

    let newest = pages(&contract, "events", "id", "order: NEWEST_FIRST").await;
    assert_short(&newest);
    let reversed: Vec<Value> = newest.concat().into_iter().rev().collect();
    assert_eq!(reversed, all);

    // Of one aggregate they fit.
    let filter = format!("filter: {{ aggregateId: \"{}\" }}", aggregates[0]);
    let of_one = pages(&contract, "events", "version", &filter).await;
    assert_eq!(
        of_one.concat(),
        (1..=9).map(Value::from).collect::<Vec<_>>()
    );
}

async fn a_page_of_large_read_models_ends_early_and_leads_on(contract: Contract) {
    contract.fill(40).await;
    contract.projected().await;
    let all = pages(
        &contract,
        "readModels",
        "aggregateId",
        "orderBy: CREATED_OLDEST_FIRST",
    )
    .await;
    assert_eq!(all.len(), 1, "small ones are one page");
    let all = all.concat();
    let large = spelling(&contract, 0, Uuid::nil()).large;
    let sql = format!("UPDATE read_models SET model_data = {large}");
    execute(&contract.server.database, sql).await.unwrap();
    for (order, is_reversed) in [
        ("CREATED_OLDEST_FIRST", false),
        ("CREATED_NEWEST_FIRST", true),
        ("UPDATED_OLDEST_FIRST", false),
        ("UPDATED_NEWEST_FIRST", true),
    ] {
        for filter in ["", ", filter: { contains: { big: 1 } }"] {
            let arguments = format!("orderBy: {order}{filter}");
            let found = pages(&contract, "readModels", "aggregateId", &arguments).await;
            assert_short(&found);
            let mut found = found.concat();
            if is_reversed {
                found.reverse();
            }
            assert_eq!(found, all, "{arguments}");
        }
    }
}

async fn what_is_large_and_has_no_pages_is_refused(contract: Contract) {
    let ids = contract.fill(70).await;
    let id: Uuid = serde_json::from_value(ids[0]["aggregateId"].clone()).unwrap();
    contract.append_entry(entry("log")).await;
    contract.projected().await;
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    let Spelling {
        large,
        numbers,
        new_id,
        ..
    } = spelling(&contract, 69, id);
    let sql = format!("UPDATE read_models SET model_data = {large}");
    execute(&contract.server.database, sql).await.unwrap();
    append_large(&contract, id, 69).await;
    let sql = format!(
        "INSERT INTO event_streams (partition_no, stream_name, position, entry_position, event_id, event_type, event_data, event_partition_no, created_at) \
         SELECT partition_no, stream_name, position + n, h.head + n, {new_id}, event_type, {large}, NULL, created_at \
         FROM event_streams e \
         JOIN (SELECT partition_no AS no, MAX(entry_position) AS head FROM event_streams GROUP BY partition_no) h ON h.no = e.partition_no \
         CROSS JOIN {numbers} m WHERE stream_name = 'log'"
    );
    execute(&contract.server.database, sql).await.unwrap();

    for (query, path, field) in [
        (
            "query($id: UUID!, $first: Int!) { aggregates(first: $first) { nodes { id readModel { version } } } aggregate(id: $id) { id } }",
            "/aggregates/nodes",
            "readModel",
        ),
        (
            "query($id: UUID!, $first: Int!) { aggregate(id: $id) { events(first: $first) { version } } }",
            "/aggregate/events",
            "events",
        ),
        (
            "query($id: UUID!, $first: Int!) { stream(name: \"log\") { entries(first: $first) { position } } aggregate(id: $id) { id } }",
            "/stream/entries",
            "entries",
        ),
    ] {
        let failure = contract
            .refused(query, json!({ "id": id, "first": 100 }))
            .await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field, "{failure:?}");
        assert!(failure.message().contains("64 MiB"), "{failure:?}");
        let found = contract.ask(query, json!({ "id": id, "first": 50 })).await;
        assert_eq!(found.pointer(path).unwrap().as_array().unwrap().len(), 50);
    }
}

async fn large_commands_are_listed_and_taken_a_part_at_a_time(contract: Contract) {
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    let aggregates = contract.aggregates(4);
    for id in &aggregates {
        contract.create(create_user(*id, "ada")).await;
    }
    // Some were put off and are due now: these lie elsewhere in the index.
    for not_before in ["NULL", "c.created_at"] {
        let Spelling {
            large,
            numbers,
            new_id,
            ..
        } = spelling(&contract, 9, Uuid::nil());
        let sql = format!(
            "INSERT INTO commands (partition_no, id, aggregate_id, command_type, command_data, command_metadata, status, attempts, not_before, created_at) \
             SELECT c.partition_no, {new_id}, c.aggregate_id, c.command_type, {large}, c.command_metadata, c.status, 0, {not_before}, c.created_at \
             FROM commands c CROSS JOIN {numbers} m WHERE LENGTH(CAST(c.command_data AS text)) < 1000"
        );
        execute(&contract.server.database, sql).await.unwrap();
    }
    let oldest = pages(&contract, "commands", "id", "order: OLDEST_FIRST").await;
    assert_short(&oldest);
    let all = oldest.concat();
    let once: HashSet<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!((all.len(), once.len()), (4 * 19, 4 * 19));
    let newest = pages(&contract, "commands", "id", "order: NEWEST_FIRST").await;
    assert_short(&newest);
    let reversed: Vec<Value> = newest.concat().into_iter().rev().collect();
    assert_eq!(reversed, all);

    // Those of one aggregate fit, and those of all four do not.
    for id in &aggregates {
        contract.append(event(*id)).await;
    }
    let query = "query($first: Int!) { aggregates { nodes { commands(first: $first) { nodes { type } } } } }";
    let failure = contract.refused(query, json!({ "first": 100 })).await;
    assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
    assert_eq!(failure.extension("field"), "commands", "{failure:?}");
    let query =
        "query($id: UUID!) { aggregate(id: $id) { commands(first: 100) { nodes { type } } } }";
    let found = contract.ask(query, json!({ "id": aggregates[0] })).await;
    let found = found.pointer("/aggregate/commands/nodes").unwrap();
    assert_eq!(found.as_array().unwrap().len(), 19);

    let store = contract.server.app.store();
    for partition in store.partitions().iter() {
        let due = store.due_commands(partition, 256, &[]).await.unwrap();
        assert!(!due.is_all);
        let due: Vec<Value> = due.commands.iter().map(|it| json!(it.id.0)).collect();
        assert!((1..=MOST_ON_A_PAGE).contains(&due.len()), "{}", due.len());
        // They are the oldest, without a hole, wherever they lie.
        let ids = aggregates.iter().map(|id| AggregateId(*id));
        let of_partition: Vec<AggregateId> = ids
            .filter(|id| store.partitions().of_aggregate(*id) == partition)
            .collect();
        let found = store
            .commands_of_aggregates(&of_partition, None, 100, usize::MAX)
            .await;
        let found = found.unwrap().unwrap().into_values().flatten();
        let here: HashSet<String> = found.map(|it| json!(it.id.0).to_string()).collect();
        let mut oldest = all.clone();
        oldest.retain(|id| here.contains(&id.to_string()));
        assert_eq!(due, oldest[..due.len()]);
    }
}

async fn the_large_events_of_deliveries_are_read_a_part_at_a_time(contract: Contract) {
    let contract = contract
        .restarted(None, |config| config.background.enabled = false)
        .await;
    let id = contract.aggregates(1)[0];
    contract.append(event(id)).await;
    append_large(&contract, id, 69).await;
    let input = json!({ "name": "copy", "function": "log" });
    contract.register(input).await;
    let Spelling {
        new_id,
        id: of_aggregate,
        ..
    } = spelling(&contract, 0, id);
    let sql = format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, next_attempt_at, updated_at) \
         SELECT e.partition_no, {new_id}, h.id, e.position, e.aggregate_id, 'RETRYING', 1, h.created_at, h.created_at \
         FROM event_handlers h CROSS JOIN events e WHERE e.aggregate_id = {of_aggregate}"
    );
    execute(&contract.server.database, sql).await.unwrap();

    let query = "query($first: Int!) { eventHandler(name: \"copy\") { deliveries(first: $first) { nodes { event { version } } } } }";
    let failure = contract.refused(query, json!({ "first": 100 })).await;
    assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
    assert_eq!(failure.extension("field"), "event", "{failure:?}");
    let found = contract.ask(query, json!({ "first": 50 })).await;
    let found = found.pointer("/eventHandler/deliveries/nodes").unwrap();
    assert_eq!(found.as_array().unwrap().len(), 50);

    let store = contract.server.app.store();
    let partition = store.partitions().of_aggregate(AggregateId(id));
    let name = HandlerName::new("copy").unwrap();
    let handler = store.event_handler(&name).await.unwrap().unwrap().id;
    let mut taken = HashSet::new();
    while taken.len() < 70 {
        let found = store.due_deliveries(partition, handler, &taken, 50).await;
        let found = found.unwrap();
        // A million bytes are less than a mebibyte, and two are more; one is small.
        assert!((1..=3).contains(&found.due.len()), "{}", found.due.len());
        let ids = found.due.iter().map(|(delivery, event)| {
            assert_eq!(delivery.position, event.position);
            delivery.id
        });
        taken.extend(ids);
        let is_all = taken.len() == 70;
        assert!(
            is_all || found.next == Some(Duration::ZERO),
            "{:?}",
            found.next
        );
    }
}
