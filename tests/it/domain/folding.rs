//! Folding in any split equals folding at once, through whatever a state goes in between.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidings::domain::{
    AggregateId, AggregateType, Domain, Event, EventId, EventType, FoldFault, Json, Partition,
    Position, State, Timestamp, Version,
};
use uuid::Uuid;

use super::merge::{document, members};

fn event(aggregate_type: &str, version: usize, event_type: &str, data: &Value) -> Event {
    Event {
        partition: Partition(0),
        position: Position(version as i64),
        id: EventId(Uuid::from_u128(version as u128)),
        aggregate_id: AggregateId(Uuid::nil()),
        aggregate_type: AggregateType::new(aggregate_type).unwrap(),
        event_type: EventType::new(event_type).unwrap(),
        data: Json::of_value(data).unwrap(),
        metadata: Json::empty_object(),
        version: Version(i32::try_from(version).unwrap()),
        created_at: Timestamp::from_micros(0),
    }
}

fn fold(domain: &Domain, state: State, events: &[Event]) -> Result<State, FoldFault> {
    events
        .iter()
        .try_fold(state, |state, event| domain.fold(state, event))
}

/// Events of a user, and of an aggregate that nobody has declared.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let event_type = prop_oneof![
        Just("user_created"),
        Just("user_updated"),
        Just("user_deleted"),
        Just("user_seen"),
    ];
    let data = prop_oneof![9 => members(document()).boxed(), 1 => document().boxed()];
    let aggregate_type = prop_oneof![Just("user"), Just("order")];
    (
        aggregate_type,
        proptest::collection::vec((event_type, data), 0..12),
    )
        .prop_map(|(aggregate_type, events)| {
            let numbered = events.iter().enumerate();
            numbered
                .map(|(no, (event_type, data))| event(aggregate_type, no + 1, event_type, data))
                .collect()
        })
}

proptest! {
    #[test]
    fn folding_in_any_split_equals_folding_at_once(events in events(), cuts in proptest::collection::vec(0_usize..13, 0..4)) {
        let domain = Domain::guide();
        let at_once = fold(&domain, State::Null, &events);

        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(events.len())).collect();
        cuts.sort_unstable();
        cuts.push(events.len());
        let mut state = Ok(State::Null);
        let mut done = 0;
        for cut in cuts {
            state = state.and_then(|state| fold(&domain, state, &events[done..cut]));
            // Between two parts the state is stored, and read again.
            state = state.map(|state| {
                Domain::state_to_json(&state).unwrap().to_value().unwrap()
            });
            done = cut;
        }
        prop_assert_eq!(&state, &at_once);
        if let Ok(state) = state {
            prop_assert!(state.is_null() || state.is_object());
        }
    }

    #[test]
    fn the_newest_event_alone_says_whether_a_user_is_there(events in events()) {
        let domain = Domain::guide();
        if let Ok(state) = fold(&domain, State::Null, &events) {
            let is_there = events.last().is_some_and(|event| {
                event.aggregate_type.as_str() != "user" || event.event_type.as_str() != "user_deleted"
            });
            prop_assert_eq!(!state.is_null(), is_there);
        }
    }
}

#[test]
fn a_state_keeps_keys_and_numbers_as_they_are() {
    let domain = Domain::guide();
    let data = Json::stored(
        r#"{"z":9007199254740993,"$serde_json::private::RawValue":"[1]","a":1.0,"$serde_json::private::Number":"5","e":1e300,"u":18446744073709551615}"#.to_owned(),
    );
    let mut created = event("user", 1, "user_created", &json!({}));
    created.data = data.clone();
    let state = domain.fold(State::Null, &created).unwrap();
    let written = Domain::state_to_json(&state).unwrap();
    assert!(written.same_value(&data), "{}", written.as_str());
    let mut seen = event("user", 2, "user_seen", &json!({}));
    seen.data = data.clone();
    let state = domain.fold(json!({}), &seen).unwrap();
    assert!(Domain::state_to_json(&state).unwrap().same_value(&data));
}

#[test]
fn a_state_that_is_too_deep_or_too_large_is_a_fault() {
    let deep = (0..64).fold(json!({}), |inner, _| json!({ "a": inner }));
    let fault = Domain::state_to_json(&deep).unwrap_err().to_string();
    assert!(
        fault.starts_with("the state has more than 64 levels"),
        "{fault}"
    );
    let large = json!({ "a": "x".repeat(17 << 20) });
    let fault = Domain::state_to_json(&large).unwrap_err().to_string();
    assert!(fault.contains("16777216 are allowed"), "{fault}");
}
