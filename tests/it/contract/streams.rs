//! appendToStream, and the queries stream and streams.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, entry, event, list, pick, with};

cases!(
    entries_get_positions_1_2_3_in_each_stream,
    a_repeat_of_an_event_id_answers_the_position_that_it_has,
    an_event_id_with_another_payload_or_type_is_reused_in_its_stream_only,
    an_expected_position_is_met_or_refused_with_the_true_one,
    a_stream_that_is_not_there_is_null,
    entries_go_on_behind_a_position,
    wrong_arguments_of_entries_are_refused,
    streams_are_listed_by_name_and_paged,
    wrong_arguments_of_streams_are_refused,
    an_entry_leads_to_its_event_where_there_is_one,
);

async fn entries_get_positions_1_2_3_in_each_stream(contract: Contract) {
    let names = ["user_events", "orders", "ä ö ü", "日本"];
    for position in 1..=3 {
        for name in names {
            let input = entry(name);
            let payload = contract.append_entry(input.clone()).await;
            assert_eq!(payload["duplicate"], false);
            let appended = &payload["entry"];
            assert_eq!(appended["position"], position);
            assert_eq!(appended["streamName"], name);
            for field in ["eventId", "type", "data"] {
                assert_eq!(appended[field], input[field]);
            }
            let stream = contract.stream(name).await;
            assert_eq!(stream["entries"][position - 1], *appended);
            assert_eq!(stream["lastPosition"], position);
        }
    }
}

async fn a_repeat_of_an_event_id_answers_the_position_that_it_has(contract: Contract) {
    let input = with(
        entry("a"),
        json!({ "expectedPosition": 0, "data": { "x": 1, "y": [2.5] } }),
    );
    let first = contract.append_entry(input.clone()).await;
    contract.append_entry(entry("a")).await;
    for repeat in [
        input.clone(),
        with(input.clone(), json!({ "expectedPosition": null })),
        with(input.clone(), json!({ "expectedPosition": 7 })),
        with(input.clone(), json!({ "data": { "y": [2.5], "x": 1 } })),
    ] {
        let payload = contract.append_entry(repeat).await;
        assert_eq!(payload["duplicate"], true);
        assert_eq!(payload["entry"], first["entry"]);
    }
    assert_eq!(contract.stream("a").await["lastPosition"], 2);
}

async fn an_event_id_with_another_payload_or_type_is_reused_in_its_stream_only(contract: Contract) {
    let input = entry("a");
    let first = contract.append_entry(input.clone()).await;
    for other in [
        json!({ "data": { "page": 2 } }),
        json!({ "type": "x" }),
        json!({ "data": [], "expectedPosition": 9 }),
    ] {
        let failure = contract
            .append_entry_is_refused(with(input.clone(), other))
            .await;
        assert_eq!(failure.code(), "ID_REUSED", "{failure:?}");
    }
    assert_eq!(
        contract.stream("a").await["entries"],
        json!([first["entry"]])
    );
    for other in ["b", "c", "d", "e", "A"] {
        let elsewhere = with(input.clone(), json!({ "streamName": other, "type": "x" }));
        let payload = contract.append_entry(elsewhere).await;
        assert_eq!(payload["duplicate"], false);
        assert_eq!(payload["entry"]["position"], 1);
    }
}

async fn an_expected_position_is_met_or_refused_with_the_true_one(contract: Contract) {
    let conflict = async |expected: i64, actual: i64| {
        let input = with(entry("a"), json!({ "expectedPosition": expected }));
        let failure = contract.append_entry_is_refused(input).await;
        assert_eq!(failure.code(), "VERSION_CONFLICT", "{failure:?}");
        assert_eq!(failure.extension("expected"), expected);
        assert_eq!(failure.extension("actual"), actual);
        assert_eq!(failure.extension("field"), "input.expectedPosition");
    };
    conflict(1, 0).await;
    conflict((1 << 53) - 1, 0).await;
    assert_eq!(
        contract.stream("a").await,
        Value::Null,
        "a refused entry makes no stream"
    );
    for expected in 0..3 {
        let input = with(entry("a"), json!({ "expectedPosition": expected }));
        contract.append_entry(input).await;
    }
    for expected in [0, 2, 4] {
        conflict(expected, 3).await;
    }
    assert_eq!(contract.stream("a").await["lastPosition"], 3);
}

async fn a_stream_that_is_not_there_is_null(contract: Contract) {
    contract.append_entry(entry("a")).await;
    assert_eq!(contract.stream("A").await, Value::Null);
    assert_eq!(contract.stream("a ").await, Value::Null);
    assert_eq!(contract.stream("b").await, Value::Null);
}

const ENTRIES: &str = "query($after: Long! = 0, $first: Int! = 100) {
    stream(name: \"a\") { entries(after: $after, first: $first) { position } }
}";

async fn entries_go_on_behind_a_position(contract: Contract) {
    for _ in 0..10 {
        contract.append_entry(entry("a")).await;
        contract.append_entry(entry("b")).await;
    }
    let positions = async |arguments: Value| {
        let data = contract.ask(ENTRIES, arguments).await;
        pick(&list(data["stream"]["entries"].clone()), "position")
    };
    assert_eq!(positions(json!({})).await.len(), 10);
    assert_eq!(positions(json!({ "first": 3 })).await, [1, 2, 3]);
    assert_eq!(
        positions(json!({ "after": 3, "first": 4 })).await,
        [4, 5, 6, 7]
    );
    assert_eq!(positions(json!({ "after": 8 })).await, [9, 10]);
    assert!(positions(json!({ "after": 10 })).await.is_empty());
}

async fn wrong_arguments_of_entries_are_refused(contract: Contract) {
    contract.append_entry(entry("a")).await;
    for (arguments, field) in [
        (json!({ "first": 0 }), "first"),
        (json!({ "first": 1001 }), "first"),
        (json!({ "first": -1 }), "first"),
    ] {
        let failure = contract.refused(ENTRIES, arguments).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field);
    }
    for after in [json!(-1), json!(1_u64 << 53), json!(1.5), json!("1")] {
        let failure = contract.refused(ENTRIES, json!({ "after": after })).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{after}: {failure:?}");
    }
    let failure = contract.refused(ENTRIES, json!({ "after": 2 })).await;
    assert_eq!(failure.code(), "PLACE_NOT_REACHED", "{failure:?}");
    assert_eq!(failure.extension("head"), 1);
}

const STREAMS: &str = "query($first: Int! = 100, $after: String) {
    streams(first: $first, after: $after) {
        edges { cursor node { name } } nodes { name lastPosition }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
}";

async fn streams_are_listed_by_name_and_paged(contract: Contract) {
    let page = async |arguments: Value| contract.ask(STREAMS, arguments).await["streams"].take();
    let empty = page(json!({})).await;
    assert_eq!(empty["nodes"], json!([]));
    assert_eq!(empty["pageInfo"]["hasNextPage"], false);

    let mut names = [
        "b", "a", "B", "a_b", "a b", "aa", "Ä", "ä", "z", "1", "-", "_", "日本", "Z",
    ];
    for name in names {
        contract.append_entry(entry(name)).await;
    }
    contract.append_entry(entry("z")).await;
    // By their code points, whatever the database's own order of texts is.
    names.sort_unstable();
    let all = list(page(json!({})).await["nodes"].take());
    assert_eq!(pick(&all, "name"), names);
    for stream in &all {
        let expected = if stream["name"] == "z" { 2 } else { 1 };
        assert_eq!(stream["lastPosition"], expected);
    }
    for first in [1, 3, 14, 15] {
        let mut found = Vec::new();
        let mut after = Value::Null;
        loop {
            let page = page(json!({ "first": first, "after": after })).await;
            assert_eq!(page["pageInfo"]["hasPreviousPage"], !after.is_null());
            found.extend(pick(&list(page["nodes"].clone()), "name"));
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
        }
        assert_eq!(found, names, "pages of {first}");
    }
    assert_eq!(
        pick(
            &list(page(json!({ "after": "" })).await["nodes"].take()),
            "name"
        ),
        names
    );
}

async fn wrong_arguments_of_streams_are_refused(contract: Contract) {
    contract.append_entry(entry("a")).await;
    let another = contract.another().await;
    another.append_entry(entry("a")).await;
    let foreign = another.ask(STREAMS, json!({})).await;
    for (arguments, field) in [
        (json!({ "first": 0 }), "first"),
        (json!({ "first": 1001 }), "first"),
        (json!({ "after": "x" }), "after"),
        (json!({ "after": contract.head().await }), "after"),
        (
            json!({ "after": foreign["streams"]["pageInfo"]["endCursor"] }),
            "after",
        ),
    ] {
        let failure = contract.refused(STREAMS, arguments).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field);
    }
}

async fn an_entry_leads_to_its_event_where_there_is_one(contract: Contract) {
    let mut known = Vec::new();
    for aggregate in contract.aggregates(4) {
        let id = Uuid::new_v4();
        contract
            .append(with(event(aggregate), json!({ "id": id })))
            .await;
        let input = with(entry("a"), json!({ "eventId": id }));
        contract.append_entry(input).await;
        contract.append_entry(entry("a")).await;
        known.push(id.to_string());
    }
    let query = "{ stream(name: \"a\") { entries { eventId event { id type } } } }";
    let data = contract.ask(query, json!({})).await;
    let entries = list(data["stream"]["entries"].clone());
    assert_eq!(entries.len(), 8);
    for (no, entry) in entries.iter().enumerate() {
        if no % 2 == 0 {
            assert_eq!(entry["event"]["id"], known[no / 2]);
            assert_eq!(entry["event"]["type"], "user_created");
        } else {
            assert_eq!(entry["event"], Value::Null);
        }
    }
}
