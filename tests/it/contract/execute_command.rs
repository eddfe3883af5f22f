//! executeCommand: a command and its events are one, rejections are data, and ids make it idempotent.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Contract, create_user, event, list, update_user, with};

cases!(
    a_command_and_its_events_are_stored_together,
    a_rejection_is_data_and_is_stored,
    a_life_of_an_aggregate_goes_by_its_rules,
    an_unknown_type_is_refused_with_those_that_there_are,
    data_against_the_schema_is_refused_with_what_would_be_right,
    a_repeat_of_an_id_answers_the_first_outcome_whatever_has_happened_since,
    an_id_of_another_command_is_reused,
    an_aggregate_of_another_type_takes_no_command,
    what_others_append_in_between_is_decided_on,
    metadata_goes_to_the_events,
    a_repeat_with_an_instant_that_lies_ahead_answers_the_first_outcome,
    wrong_arguments_of_execute_command_are_refused,
);

/// All commands of the database.
async fn all(contract: &Contract) -> Vec<Value> {
    let data = contract
        .ask("{ commands(first: 1000) { nodes { id } } }", json!({}))
        .await;
    list(data["commands"]["nodes"].clone())
}

async fn a_command_and_its_events_are_stored_together(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let payload = contract.execute(create_user(aggregate, "ada")).await;
    let command = &payload["command"];
    assert_eq!(command["type"], "create_user");
    assert_eq!(command["data"], json!({ "username": "ada" }));
    assert_eq!(command["aggregateId"], aggregate.to_string());
    assert_eq!(command["status"], "PROCESSED");
    assert_eq!(command["reason"], Value::Null);
    assert_eq!(command["attempts"], 1);
    assert_eq!(command["notBefore"], Value::Null);
    assert_eq!(command["processedAt"], command["createdAt"]);
    assert_eq!(command["events"], payload["events"]);

    let event = &payload["events"][0];
    assert_eq!(event["type"], "user_created");
    assert_eq!(event["data"], json!({ "username": "ada" }));
    assert_eq!(event["version"], 1);
    assert_eq!(event["aggregateType"], "user");
    assert_eq!(event["createdAt"], command["createdAt"]);
    let id = &command["id"];
    let metadata = json!({ "commandId": id, "correlationId": id, "causationId": id });
    assert_eq!(event["metadata"], metadata);

    assert_eq!(contract.command(id).await, *command);
    assert_eq!(contract.event(&event["id"]).await, *event);
    let stored = contract.aggregate(aggregate).await;
    assert_eq!(
        (&stored["type"], &stored["version"]),
        (&json!("user"), &json!(1))
    );
    assert_eq!(contract.all_events().await, std::slice::from_ref(event));
}

async fn a_rejection_is_data_and_is_stored(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let payload = contract.execute(update_user(aggregate, json!({}))).await;
    let command = &payload["command"];
    assert_eq!(command["status"], "REJECTED");
    let reason = command["reason"].as_str().unwrap();
    assert!(reason.contains("user"), "{reason}");
    assert_eq!(command["attempts"], 1);
    assert_eq!(command["processedAt"], command["createdAt"]);
    assert_eq!(payload["events"], json!([]));
    assert_eq!(contract.command(&command["id"]).await, *command);
    assert_eq!(contract.aggregate(aggregate).await, Value::Null);
    assert!(contract.all_events().await.is_empty());
}

async fn a_life_of_an_aggregate_goes_by_its_rules(contract: Contract) {
    let aggregate = Uuid::new_v4();
    let delete = json!({ "aggregateId": aggregate, "type": "delete_user", "data": {} });
    let mut outcomes = Vec::new();
    for input in [
        create_user(aggregate, "ada"),
        create_user(aggregate, "again"),
        update_user(aggregate, json!({ "email": "ada@example.org" })),
        delete.clone(),
        delete,
        update_user(aggregate, json!({ "email": "gone@example.org" })),
        create_user(aggregate, "back"),
    ] {
        let payload = contract.execute(input).await;
        outcomes.push((
            payload["command"]["status"].as_str().unwrap().to_owned(),
            payload["events"][0]["version"].as_i64(),
        ));
    }
    let expected = [
        ("PROCESSED", Some(1)),
        ("REJECTED", None),
        ("PROCESSED", Some(2)),
        ("PROCESSED", Some(3)),
        ("REJECTED", None),
        ("REJECTED", None),
        ("PROCESSED", Some(4)),
    ];
    assert_eq!(
        outcomes,
        expected.map(|(status, version)| (status.to_owned(), version))
    );
    assert_eq!(contract.aggregate(aggregate).await["version"], 4);
}

async fn an_unknown_type_is_refused_with_those_that_there_are(contract: Contract) {
    let input = with(
        create_user(Uuid::new_v4(), "ada"),
        json!({ "type": "greet" }),
    );
    let known = json!(["create_user", "delete_user", "update_user"]);
    for failure in [
        contract.execute_is_refused(input.clone()).await,
        contract.create_is_refused(input).await,
    ] {
        assert_eq!(failure.code(), "UNKNOWN_COMMAND_TYPE", "{failure:?}");
        assert_eq!(failure.extension("known"), known);
        assert!(failure.message().contains("update_user"), "{failure:?}");
    }
    assert!(all(&contract).await.is_empty());
}

async fn data_against_the_schema_is_refused_with_what_would_be_right(contract: Contract) {
    for (data, hint) in [
        (json!({}), "username"),
        (json!({ "username": "" }), "username"),
        (json!({ "username": 7 }), "username"),
        (json!({ "username": "ada", "email": [] }), "email"),
        (json!("ada"), "object"),
        (Value::Null, "object"),
    ] {
        let input = with(
            create_user(Uuid::new_v4(), "ada"),
            json!({ "data": data, "id": Uuid::new_v4() }),
        );
        for failure in [
            contract.execute_is_refused(input.clone()).await,
            contract.create_is_refused(input).await,
        ] {
            assert_eq!(failure.code(), "BAD_USER_INPUT", "{data}: {failure:?}");
            assert_eq!(failure.extension("field"), "input.data");
            assert!(failure.message().contains(hint), "{data}: {failure:?}");
        }
    }
    assert!(all(&contract).await.is_empty());
    assert!(contract.all_events().await.is_empty());
}

async fn a_repeat_of_an_id_answers_the_first_outcome_whatever_has_happened_since(
    contract: Contract,
) {
    let aggregate = Uuid::new_v4();
    let with_id = |input: Value| with(input, json!({ "id": Uuid::new_v4() }));
    let rejected = with_id(update_user(aggregate, json!({ "email": "a@example.org" })));
    let create = with_id(create_user(aggregate, "ada"));
    let delete = with_id(json!({ "aggregateId": aggregate, "type": "delete_user", "data": {} }));
    let inputs = [rejected, create, delete];
    let mut first = Vec::new();
    for input in &inputs {
        first.push(contract.execute(input.clone()).await);
    }
    assert_eq!(first[0]["command"]["status"], "REJECTED");
    assert_eq!(first[1]["command"]["status"], "PROCESSED");
    for (input, first) in inputs.iter().zip(&first) {
        assert_eq!(contract.execute(input.clone()).await, *first, "{input}");
        let same = contract.create(input.clone()).await;
        assert_eq!(same["status"], first["command"]["status"]);
        // Metadata and the spelling of a number do not make another command of it.
        let other = with(input.clone(), json!({ "metadata": { "try": 2 } }));
        assert_eq!(contract.execute(other).await, *first);
    }
    assert_eq!(all(&contract).await.len(), 3);
    assert_eq!(contract.all_events().await.len(), 2);
}

async fn an_id_of_another_command_is_reused(contract: Contract) {
    let (aggregate, id) = (contract.aggregate_in(0), Uuid::new_v4());
    let first = with(create_user(aggregate, "ada"), json!({ "id": id }));
    contract.execute(first.clone()).await;
    for other in [
        json!({ "aggregateId": contract.aggregate_in(0) }),
        json!({ "aggregateId": contract.aggregate_in(1) }),
        json!({ "type": "update_user" }),
        json!({ "data": { "username": "bob" } }),
    ] {
        let input = with(first.clone(), other.clone());
        for failure in [
            contract.execute_is_refused(input.clone()).await,
            contract.create_is_refused(input).await,
        ] {
            assert_eq!(failure.code(), "ID_REUSED", "{other}: {failure:?}");
            assert_eq!(failure.extension("field"), "input.id");
        }
    }
    assert_eq!(all(&contract).await.len(), 1);
    assert_eq!(contract.all_events().await.len(), 1);
}

async fn an_aggregate_of_another_type_takes_no_command(contract: Contract) {
    let (with_events, without) = (Uuid::new_v4(), Uuid::new_v4());
    let other = json!({ "aggregateType": "order" });
    contract.append(with(event(with_events), other)).await;
    let make =
        "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { created } }";
    let variables = json!({ "input": { "id": without, "type": "order" } });
    contract.ask(make, variables).await;
    for aggregate in [with_events, without] {
        for input in [
            create_user(aggregate, "ada"),
            update_user(aggregate, json!({})),
        ] {
            for failure in [
                contract.execute_is_refused(input.clone()).await,
                contract.create_is_refused(input.clone()).await,
            ] {
                assert_eq!(failure.code(), "AGGREGATE_TYPE_MISMATCH", "{failure:?}");
                assert_eq!(failure.extension("expected"), "user");
                assert_eq!(failure.extension("actual"), "order");
            }
        }
    }
    assert!(all(&contract).await.is_empty());
    assert_eq!(contract.all_events().await.len(), 1);
}

async fn what_others_append_in_between_is_decided_on(contract: Contract) {
    let aggregate = Uuid::new_v4();
    contract.execute(create_user(aggregate, "ada")).await;
    for round in 0..3 {
        // The executor knows the aggregate as it was before.
        let outside = with(
            event(aggregate),
            json!({ "type": "user_updated", "data": { "n": round } }),
        );
        contract.append(outside).await;
        let payload = contract
            .execute(update_user(aggregate, json!({ "email": "a" })))
            .await;
        assert_eq!(payload["events"][0]["version"], 3 + 2 * round);
    }
    contract
        .append(with(
            event(aggregate),
            json!({ "type": "user_deleted", "data": {} }),
        ))
        .await;
    let payload = contract
        .execute(update_user(aggregate, json!({ "email": "b" })))
        .await;
    assert_eq!(payload["command"]["status"], "REJECTED");

    // One that nobody has heard of here, and that a command takes for new.
    let made_outside = Uuid::new_v4();
    contract.append(event(made_outside)).await;
    let payload = contract.execute(create_user(made_outside, "ada")).await;
    assert_eq!(payload["command"]["status"], "REJECTED");
    assert_eq!(contract.aggregate(made_outside).await["version"], 1);
}

async fn metadata_goes_to_the_events(contract: Contract) {
    let metadata = json!({ "correlationId": "a story", "by": { "user": 7 }, "commandId": "x" });
    let input = with(
        create_user(Uuid::new_v4(), "ada"),
        json!({ "metadata": metadata, "id": Uuid::new_v4() }),
    );
    let payload = contract.execute(input.clone()).await;
    let expected = json!({
        "correlationId": "a story", "by": { "user": 7 }, "commandId": input["id"], "causationId": input["id"],
    });
    assert_eq!(payload["events"][0]["metadata"], expected);
    let of_story = contract
        .ask(
            "{ events(filter: { correlationId: \"a story\" }) { nodes { id } } }",
            json!({}),
        )
        .await;
    assert_eq!(
        of_story["events"]["nodes"][0]["id"],
        payload["events"][0]["id"]
    );
}

async fn wrong_arguments_of_execute_command_are_refused(contract: Contract) {
    let right = create_user(Uuid::new_v4(), "ada");
    let soon = "2999-01-01T00:00:00Z";
    for (wrong, field) in [
        (json!({ "metadata": [] }), "input.metadata"),
        (
            json!({ "metadata": { "correlationId": "x".repeat(600) } }),
            "input.metadata.correlationId",
        ),
        (json!({ "type": "" }), "input.type"),
        (
            json!({ "data": { "username": "x".repeat(2 << 20) } }),
            "input.data",
        ),
        (json!({ "notBefore": soon }), "input.notBefore"),
        (json!({ "id": "7" }), "input.id"),
    ] {
        let failure = contract
            .execute_is_refused(with(right.clone(), wrong))
            .await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{field}: {failure:?}");
        assert_eq!(failure.extension("field"), field);
    }
    assert!(all(&contract).await.is_empty());
    // An instant that has passed is none to wait for.
    let passed = with(right, json!({ "notBefore": "2020-01-01T00:00:00Z" }));
    let payload = contract.execute(passed).await;
    assert_eq!(payload["command"]["status"], "PROCESSED");
    assert_eq!(
        payload["command"]["notBefore"],
        "2020-01-01T00:00:00.000000Z"
    );
}

async fn a_repeat_with_an_instant_that_lies_ahead_answers_the_first_outcome(contract: Contract) {
    let far = json!({ "notBefore": "2999-01-01T00:00:00Z" });
    let id = json!({ "id": Uuid::new_v4() });
    // Recorded for an instant that is far, and processed by a call.
    let scheduled = with(with(create_user(Uuid::new_v4(), "ada"), far.clone()), id);
    let id = contract.create(scheduled.clone()).await["id"].clone();
    contract.process(&id).await;
    let first = contract.command(&id).await;
    assert_eq!(first["status"], "PROCESSED");
    let repeated = contract.execute(scheduled.clone()).await;
    assert_eq!(repeated["command"]["processedAt"], first["processedAt"]);
    assert_eq!(repeated["events"][0]["version"], 1);
    // Executed before, and now with an instant.
    let executed = with(
        create_user(Uuid::new_v4(), "bob"),
        json!({ "id": Uuid::new_v4() }),
    );
    let first = contract.execute(executed.clone()).await;
    let repeated = contract.execute(with(executed, far)).await;
    assert_eq!(repeated, first);
    // The id of another command is none that was taken with this one.
    let other = with(scheduled, json!({ "data": { "username": "eve" } }));
    let failure = contract.execute_is_refused(other).await;
    assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
    assert_eq!(failure.extension("field"), "input.notBefore");
    assert_eq!(all(&contract).await.len(), 2);
}
