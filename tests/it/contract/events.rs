//! The queries event and events: filters, orders, pages and cursors.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, EVENT, by_id, event, list, pick, with};

cases!(
    an_event_that_is_not_there_is_null,
    each_part_of_a_filter_works_alone_and_together,
    created_from_is_inside_and_created_before_is_not,
    both_orders_are_the_order_of_the_log_in_each_partition,
    paging_gives_each_event_once_in_both_orders,
    paging_with_a_filter_gives_each_event_once_in_both_orders,
    a_cursor_may_be_used_with_another_filter,
    an_empty_page_has_a_cursor_behind_which_only_newer_events_lie,
    the_first_cursor_of_newest_first_reads_forward_to_newer_events_only,
    events_that_come_while_pages_are_read_are_not_missed,
    an_empty_cursor_is_the_beginning,
    first_is_from_1_to_1000,
    cursors_that_do_not_belong_here_are_refused,
);

async fn page(contract: &Contract, arguments: Value) -> Value {
    let query = format!(
        "query($filter: EventFilter, $order: Order! = OLDEST_FIRST, $first: Int! = 100, $after: String) {{
            events(filter: $filter, order: $order, first: $first, after: $after) {{
                edges {{ cursor node {{ {EVENT} }} }} nodes {{ id }} pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }}
            }}
        }}"
    );
    let page = contract.ask(&query, arguments).await["events"].take();
    let edges = list(page["edges"].clone());
    let ids: Vec<Value> = edges
        .iter()
        .map(|edge| json!({ "id": edge["node"]["id"] }))
        .collect();
    assert_eq!(page["nodes"], json!(ids), "nodes are the edges' nodes");
    if let Some(first) = edges.first() {
        assert_eq!(page["pageInfo"]["startCursor"], first["cursor"]);
    }
    page
}

async fn nodes(contract: &Contract, arguments: Value) -> Vec<Value> {
    nodes_of(&page(contract, arguments).await)
}

fn nodes_of(page: &Value) -> Vec<Value> {
    pick(&list(page["edges"].clone()), "node")
}

async fn refusal(contract: &Contract, arguments: Value) -> crate::support::client::Failure {
    let query = "query($order: Order! = OLDEST_FIRST, $first: Int! = 100, $after: String) {
        events(order: $order, first: $first, after: $after) { nodes { id } }
    }";
    contract.refused(query, arguments).await
}

/// Pages through everything and checks what each page says about its place.
async fn page_through(contract: &Contract, arguments: Value) -> Vec<Value> {
    let mut all = Vec::new();
    let mut after = Value::Null;
    loop {
        let page = page(contract, with(arguments.clone(), json!({ "after": after }))).await;
        assert_eq!(page["pageInfo"]["hasPreviousPage"], !after.is_null());
        let nodes = nodes_of(&page);
        assert!(nodes.len() as u64 <= arguments["first"].as_u64().unwrap());
        all.extend(nodes);
        after = page["pageInfo"]["endCursor"].clone();
        assert!(after.is_string());
        if page["pageInfo"]["hasNextPage"] == false {
            return all;
        }
    }
}

/// The events of each partition, in the order given.
fn by_partition(contract: &Contract, events: &[Value]) -> Vec<Vec<Value>> {
    let mut partitions = vec![Vec::new(); usize::from(contract.partitions)];
    for event in events {
        let id = Uuid::parse_str(event["aggregateId"].as_str().unwrap()).unwrap();
        partitions[usize::from(contract.partition_of(id))].push(event["id"].clone());
    }
    partitions
}

async fn an_event_that_is_not_there_is_null(contract: Contract) {
    contract.fill(2).await;
    assert_eq!(contract.event(&json!(Uuid::new_v4())).await, Value::Null);
}

async fn each_part_of_a_filter_works_alone_and_together(contract: Contract) {
    let aggregates = contract.aggregates(4);
    let mut all = Vec::new();
    for (no, aggregate) in aggregates.iter().enumerate() {
        for kind in ["created", "renamed", "closed"] {
            let aggregate_type = ["user", "order"][no % 2];
            let metadata = match kind {
                "created" => json!({}),
                _ => json!({ "correlationId": format!("trace {no}") }),
            };
            let input = with(
                event(*aggregate),
                json!({ "aggregateType": aggregate_type, "type": kind, "metadata": metadata }),
            );
            all.push(contract.append(input).await["event"].take());
        }
    }
    let expect = async |filter: Value, passes: &dyn Fn(&Value) -> bool| {
        let expected: Vec<Value> = all.iter().filter(|event| passes(event)).cloned().collect();
        for order in ["OLDEST_FIRST", "NEWEST_FIRST"] {
            let found = nodes(&contract, json!({ "filter": filter, "order": order })).await;
            assert_eq!(by_id(found), by_id(expected.clone()), "{filter} in {order}");
        }
    };
    let one = aggregates[1];
    expect(json!({}), &|_| true).await;
    expect(json!({ "aggregateId": one }), &|event| {
        event["aggregateId"] == one.to_string()
    })
    .await;
    expect(json!({ "aggregateId": Uuid::new_v4() }), &|_| false).await;
    expect(json!({ "aggregateTypes": ["order"] }), &|event| {
        event["aggregateType"] == "order"
    })
    .await;
    expect(json!({ "aggregateTypes": ["order", "user", "x"] }), &|_| {
        true
    })
    .await;
    expect(json!({ "aggregateTypes": ["x"] }), &|_| false).await;
    expect(json!({ "eventTypes": ["closed", "created"] }), &|event| {
        event["type"] != "renamed"
    })
    .await;
    expect(json!({ "correlationId": "trace 2" }), &|event| {
        event["metadata"]["correlationId"] == "trace 2"
    })
    .await;
    expect(json!({ "correlationId": "trace" }), &|_| false).await;
    expect(
        json!({ "aggregateTypes": ["order"], "eventTypes": ["closed"], "correlationId": "trace 1" }),
        &|event| {
            event["type"] == "closed" && event["aggregateId"] == one.to_string()
        },
    )
    .await;
    expect(
        json!({ "aggregateId": one, "aggregateTypes": ["user"] }),
        &|_| false,
    )
    .await;
    expect(
        json!({ "aggregateId": null, "aggregateTypes": null, "eventTypes": null, "correlationId": null, "createdFrom": null, "createdBefore": null }),
        &|_| true,
    )
    .await;
    let from = all[6]["createdAt"].clone();
    expect(
        json!({ "createdFrom": from, "eventTypes": ["created"], "aggregateTypes": ["user"] }),
        &|event| {
            event["createdAt"].as_str() >= from.as_str()
                && event["type"] == "created"
                && event["aggregateType"] == "user"
        },
    )
    .await;
}

async fn created_from_is_inside_and_created_before_is_not(contract: Contract) {
    let all = contract.fill(8).await;
    let time = |event: &Value| event["createdAt"].as_str().unwrap().to_owned();
    let (from, before) = (time(&all[2]), time(&all[5]));
    let found = nodes(
        &contract,
        json!({ "filter": { "createdFrom": from, "createdBefore": before } }),
    )
    .await;
    let inside = all
        .iter()
        .filter(|event| (from.clone()..before.clone()).contains(&time(event)));
    assert_eq!(by_id(found), by_id(inside.cloned().collect()));

    // The same instant in another time zone, with more digits than are kept.
    let mut shifted = from.replace('Z', "999+00:00");
    let found = nodes(&contract, json!({ "filter": { "createdFrom": shifted } })).await;
    let inside = all.iter().filter(|event| time(event) >= from);
    assert_eq!(by_id(found), by_id(inside.cloned().collect()));
    shifted = "1969-12-31T23:00:00-01:00".to_owned();
    let filter = json!({ "createdFrom": shifted, "createdBefore": "9999-12-31T23:59:59Z" });
    assert_eq!(nodes(&contract, json!({ "filter": filter })).await.len(), 8);
    let filter = json!({ "createdBefore": "0001-01-01T00:00:00Z" });
    assert!(
        nodes(&contract, json!({ "filter": filter }))
            .await
            .is_empty()
    );
    let filter = json!({ "createdFrom": before, "createdBefore": from });
    assert!(
        nodes(&contract, json!({ "filter": filter }))
            .await
            .is_empty()
    );
}

async fn both_orders_are_the_order_of_the_log_in_each_partition(contract: Contract) {
    let aggregates = contract.aggregates(8);
    let mut all = Vec::new();
    for _ in 0..3 {
        for aggregate in &aggregates {
            all.push(contract.append(event(*aggregate)).await["event"].take());
        }
    }
    let expected = by_partition(&contract, &all);
    let oldest = nodes(&contract, json!({})).await;
    assert_eq!(by_partition(&contract, &oldest), expected);
    let mut newest = nodes(&contract, json!({ "order": "NEWEST_FIRST" })).await;
    newest.reverse();
    assert_eq!(by_partition(&contract, &newest), expected);
    if contract.partitions == 1 {
        assert_eq!(oldest, all);
        assert_eq!(newest, all);
    }
    let filter = json!({ "aggregateId": aggregates[3] });
    let mut newest = nodes(
        &contract,
        json!({ "filter": filter, "order": "NEWEST_FIRST" }),
    )
    .await;
    newest.reverse();
    assert_eq!(pick(&newest, "version"), [1, 2, 3]);
}

async fn paging_gives_each_event_once_in_both_orders(contract: Contract) {
    let all = contract.fill(23).await;
    let expected = by_partition(&contract, &all);
    for first in [1, 2, 5, 22, 23, 24] {
        let oldest = page_through(&contract, json!({ "first": first })).await;
        assert_eq!(
            by_partition(&contract, &oldest),
            expected,
            "pages of {first}"
        );
        let arguments = json!({ "first": first, "order": "NEWEST_FIRST" });
        let mut newest = page_through(&contract, arguments).await;
        newest.reverse();
        assert_eq!(
            by_partition(&contract, &newest),
            expected,
            "pages of {first}"
        );
    }
}

async fn paging_with_a_filter_gives_each_event_once_in_both_orders(contract: Contract) {
    let mut some = Vec::new();
    for (no, aggregate) in contract.aggregates(24).into_iter().enumerate() {
        let kind = if no % 3 == 0 { "wanted" } else { "other" };
        let payload = contract
            .append(with(event(aggregate), json!({ "type": kind })))
            .await;
        if no % 3 == 0 {
            some.push(payload["event"].clone());
        }
    }
    let expected = by_partition(&contract, &some);
    let filter = json!({ "eventTypes": ["wanted"] });
    for first in [1, 3, 8] {
        let arguments = json!({ "filter": filter, "first": first });
        let oldest = page_through(&contract, arguments.clone()).await;
        assert_eq!(by_partition(&contract, &oldest), expected);
        let arguments = with(arguments, json!({ "order": "NEWEST_FIRST" }));
        let mut newest = page_through(&contract, arguments).await;
        newest.reverse();
        assert_eq!(by_partition(&contract, &newest), expected);
    }
}

async fn a_cursor_may_be_used_with_another_filter(contract: Contract) {
    let aggregate = Uuid::new_v4();
    for no in 0..6 {
        let kind = ["odd", "even"][no % 2];
        contract
            .append(with(event(aggregate), json!({ "type": kind })))
            .await;
    }
    let filter = json!({ "eventTypes": ["odd"] });
    let page = page(&contract, json!({ "filter": filter, "first": 2 })).await;
    let cursors = pick(&list(page["edges"].clone()), "cursor");
    let versions = async |arguments: Value| pick(&nodes(&contract, arguments).await, "version");

    assert_eq!(
        versions(json!({ "after": cursors[1] })).await,
        [4, 5, 6],
        "behind the event with version 3"
    );
    let filter = json!({ "eventTypes": ["even"] });
    assert_eq!(
        versions(json!({ "after": cursors[1], "filter": filter })).await,
        [4, 6]
    );
    assert_eq!(
        versions(json!({ "after": cursors[1], "order": "NEWEST_FIRST" })).await,
        [2, 1]
    );
    assert_eq!(
        versions(json!({ "after": cursors[0], "order": "NEWEST_FIRST" })).await,
        Vec::<Value>::new()
    );
}

async fn an_empty_page_has_a_cursor_behind_which_only_newer_events_lie(contract: Contract) {
    let empty = page(&contract, json!({})).await;
    assert_eq!(empty["pageInfo"]["hasNextPage"], false);
    assert_eq!(empty["pageInfo"]["startCursor"], Value::Null);
    let beginning = empty["pageInfo"]["endCursor"].clone();
    assert!(beginning.is_string());

    let old = contract.fill(5).await;
    assert_eq!(
        by_id(nodes(&contract, json!({ "after": beginning })).await),
        by_id(old)
    );
    let filter = json!({ "eventTypes": ["nothing_has_this_type"] });
    let empty = page(&contract, json!({ "filter": filter })).await;
    let looked_through_to = empty["pageInfo"]["endCursor"].clone();
    assert!(
        nodes(&contract, json!({ "after": looked_through_to }))
            .await
            .is_empty()
    );
    let new = contract.fill(5).await;
    assert_eq!(
        by_id(nodes(&contract, json!({ "after": looked_through_to })).await),
        by_id(new)
    );
}

async fn the_first_cursor_of_newest_first_reads_forward_to_newer_events_only(contract: Contract) {
    contract.fill(9).await;
    for filter in [json!({}), json!({ "eventTypes": ["user_created"] })] {
        let newest = page(
            &contract,
            json!({ "filter": filter, "order": "NEWEST_FIRST", "first": 2 }),
        )
        .await;
        let cursor = newest["edges"][0]["cursor"].clone();
        assert!(
            nodes(&contract, json!({ "after": cursor }))
                .await
                .is_empty()
        );
        let new = contract.fill(6).await;
        let found = nodes(&contract, json!({ "after": cursor, "filter": filter })).await;
        assert_eq!(by_id(found), by_id(new));
    }
}

async fn events_that_come_while_pages_are_read_are_not_missed(contract: Contract) {
    let mut all = contract.fill(6).await;
    let mut read = Vec::new();
    let mut after = json!("");
    for round in 0..8 {
        if round < 5 {
            all.extend(contract.fill(3).await);
        }
        let page = page(&contract, json!({ "after": after, "first": 4 })).await;
        read.extend(nodes_of(&page));
        after = page["pageInfo"]["endCursor"].clone();
    }
    assert_eq!(
        by_partition(&contract, &read),
        by_partition(&contract, &all)
    );
}

async fn an_empty_cursor_is_the_beginning(contract: Contract) {
    let all = contract.fill(5).await;
    for order in ["OLDEST_FIRST", "NEWEST_FIRST"] {
        let with_it = nodes(&contract, json!({ "after": "", "order": order })).await;
        let without = nodes(&contract, json!({ "order": order })).await;
        assert_eq!(with_it, without);
        assert_eq!(by_id(with_it), by_id(all.clone()));
    }
}

async fn first_is_from_1_to_1000(contract: Contract) {
    contract.fill(3).await;
    for first in [0, -1, 1001, i32::MAX, i32::MIN] {
        let failure = refusal(&contract, json!({ "first": first })).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), "first");
    }
    assert_eq!(nodes(&contract, json!({ "first": 1 })).await.len(), 1);
    assert_eq!(nodes(&contract, json!({ "first": 1000 })).await.len(), 3);
}

async fn cursors_that_do_not_belong_here_are_refused(contract: Contract) {
    contract.fill(3).await;
    let another = contract.another().await;
    another.fill(1).await;
    let other_partitions = Contract::on(contract.engine, 5 - contract.partitions).await;
    let query = "{ aggregates(first: 1) { pageInfo { endCursor } } }";
    let of_aggregates = contract.ask(query, json!({})).await;
    let of_aggregates = &of_aggregates["aggregates"]["pageInfo"]["endCursor"];
    let own = contract.head().await;
    for cursor in [
        json!(another.head().await),
        json!(other_partitions.head().await),
        of_aggregates.clone(),
        json!("x"),
        json!("not a cursor"),
        json!("\0"),
        json!(own[1..]),
        json!(own[..own.len() - 1]),
        json!(format!("{own}AAAA")),
        json!("A".repeat(100_000)),
    ] {
        for order in ["OLDEST_FIRST", "NEWEST_FIRST"] {
            let failure = refusal(&contract, json!({ "after": cursor, "order": order })).await;
            assert_eq!(failure.code(), "BAD_USER_INPUT", "{cursor}: {failure:?}");
            assert_eq!(failure.extension("field"), "after");
        }
    }
}
