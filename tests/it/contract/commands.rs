//! The queries command, commands and commandTypes, and the commands of an aggregate.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{COMMAND, Contract, create_user, list, pick, update_user, with};

cases!(
    a_command_that_is_not_there_is_null,
    commands_are_listed_in_the_order_in_which_they_were_made,
    commands_of_some_statuses_and_types_are_listed,
    paging_gives_each_command_once_in_both_orders,
    wrong_arguments_of_commands_are_refused,
    an_aggregate_has_its_commands_in_pages,
    the_types_of_commands_are_told,
);

const LIST: &str = "query($statuses: [CommandStatus!], $types: [String!], $order: Order! = OLDEST_FIRST, $first: Int! = 100, $after: String) {
    commands(statuses: $statuses, types: $types, order: $order, first: $first, after: $after) {
        edges { cursor node { id } } nodes { id status type createdAt }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
}";

async fn page(contract: &Contract, arguments: Value) -> Value {
    contract.ask(LIST, arguments).await["commands"].take()
}

async fn ids(contract: &Contract, arguments: Value) -> Vec<Value> {
    pick(&list(page(contract, arguments).await["nodes"].take()), "id")
}

/// Commands of every status but FAILED over several partitions, in turn processed, rejected and pending; in their order.
async fn fill(contract: &Contract, count: u8) -> Vec<Value> {
    let mut made = Vec::new();
    for (number, aggregate) in contract.aggregates(count).into_iter().enumerate() {
        let command = match number % 3 {
            0 => contract.execute(create_user(aggregate, "ada")).await["command"].clone(),
            1 => contract.execute(update_user(aggregate, json!({}))).await["command"].clone(),
            _ => {
                let far = json!({ "notBefore": "2999-01-01T00:00:00Z" });
                contract
                    .create(with(create_user(aggregate, "far"), far))
                    .await
            }
        };
        made.push(command);
    }
    made
}

async fn a_command_that_is_not_there_is_null(contract: Contract) {
    fill(&contract, 3).await;
    assert_eq!(contract.command(&json!(Uuid::new_v4())).await, Value::Null);
}

async fn commands_are_listed_in_the_order_in_which_they_were_made(contract: Contract) {
    assert!(ids(&contract, json!({})).await.is_empty());
    let made = pick(&fill(&contract, 12).await, "id");
    assert_eq!(ids(&contract, json!({})).await, made);
    let mut newest = ids(&contract, json!({ "order": "NEWEST_FIRST" })).await;
    newest.reverse();
    assert_eq!(newest, made);
    // What is processed later keeps its place.
    contract.process(&made[2]).await;
    assert_eq!(ids(&contract, json!({})).await, made);
}

async fn commands_of_some_statuses_and_types_are_listed(contract: Contract) {
    let made = fill(&contract, 12).await;
    let those = |is_asked: fn(&Value) -> bool| {
        let asked: Vec<Value> = made
            .iter()
            .filter(|command| is_asked(command))
            .cloned()
            .collect();
        pick(&asked, "id")
    };
    for (arguments, expected) in [
        (
            json!({ "statuses": ["PENDING"] }),
            those(|command| command["status"] == "PENDING"),
        ),
        (
            json!({ "statuses": ["REJECTED", "PROCESSED", "REJECTED"] }),
            those(|command| command["status"] != "PENDING"),
        ),
        (json!({ "statuses": ["FAILED"] }), Vec::new()),
        (json!({ "statuses": [] }), Vec::new()),
        (
            json!({ "types": ["update_user"] }),
            those(|command| command["type"] == "update_user"),
        ),
        (
            json!({ "types": ["update_user", "create_user"] }),
            those(|_| true),
        ),
        (json!({ "types": ["nothing"] }), Vec::new()),
        (json!({ "types": [] }), Vec::new()),
        (
            json!({ "types": ["create_user"], "statuses": ["PROCESSED", "FAILED"] }),
            those(|command| command["status"] == "PROCESSED"),
        ),
    ] {
        assert_eq!(
            ids(&contract, arguments.clone()).await,
            expected,
            "{arguments}"
        );
        let mut newest = ids(
            &contract,
            with(arguments, json!({ "order": "NEWEST_FIRST" })),
        )
        .await;
        newest.reverse();
        assert_eq!(newest, expected);
    }
}

async fn paging_gives_each_command_once_in_both_orders(contract: Contract) {
    let made = pick(&fill(&contract, 13).await, "id");
    for (order, first) in [
        ("OLDEST_FIRST", 1),
        ("OLDEST_FIRST", 4),
        ("OLDEST_FIRST", 13),
        ("NEWEST_FIRST", 1),
        ("NEWEST_FIRST", 5),
    ] {
        let mut found = Vec::new();
        let mut after = Value::Null;
        loop {
            let arguments = json!({ "order": order, "first": first, "after": after });
            let page = page(&contract, arguments).await;
            assert_eq!(page["pageInfo"]["hasPreviousPage"], !after.is_null());
            let edges = list(page["edges"].clone());
            assert_eq!(
                page["pageInfo"]["endCursor"],
                edges.last().unwrap()["cursor"]
            );
            found.extend(pick(&list(page["nodes"].clone()), "id"));
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
        }
        if order == "NEWEST_FIRST" {
            found.reverse();
        }
        assert_eq!(found, made, "pages of {first} in {order}");
    }
    assert_eq!(ids(&contract, json!({ "after": "" })).await, made);
}

async fn wrong_arguments_of_commands_are_refused(contract: Contract) {
    fill(&contract, 3).await;
    let another = contract.another().await;
    fill(&another, 1).await;
    let foreign = page(&another, json!({})).await["pageInfo"]["endCursor"].take();
    for (arguments, field) in [
        (json!({ "first": 0 }), "first"),
        (json!({ "first": 1001 }), "first"),
        (json!({ "after": "x" }), "after"),
        (json!({ "after": contract.head().await }), "after"),
        (json!({ "after": foreign }), "after"),
        (json!({ "types": ["create_user", ""] }), "types[1]"),
        (json!({ "types": vec!["x"; 1001] }), "types"),
    ] {
        let failure = contract.refused(LIST, arguments.clone()).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{arguments}: {failure:?}");
        assert_eq!(failure.extension("field"), field);
    }
}

async fn an_aggregate_has_its_commands_in_pages(contract: Contract) {
    let (one, other) = (contract.aggregate_in(0), contract.aggregate_in(1));
    let mut made = [Vec::new(), Vec::new()];
    for number in 0..7 {
        for (aggregate, made) in [one, other].iter().zip(&mut made) {
            let input = if number == 0 {
                create_user(*aggregate, "ada")
            } else {
                update_user(*aggregate, json!({ "username": number.to_string() }))
            };
            made.push(contract.execute(input).await["command"]["id"].clone());
        }
    }
    let query = format!(
        "query($first: Int! = 20, $after: String) {{ aggregates {{ nodes {{ id commands(first: $first, after: $after) {{ \
         nodes {{ {COMMAND} events {{ version }} aggregate {{ id }} }} \
         pageInfo {{ hasNextPage hasPreviousPage endCursor }} }} }} }} }}"
    );
    let ask = async |arguments: Value| {
        list(contract.ask(&query, arguments).await["aggregates"]["nodes"].take())
    };
    for (aggregate, made) in ask(json!({})).await.iter().zip(&made) {
        let commands = list(aggregate["commands"]["nodes"].clone());
        assert_eq!(pick(&commands, "id"), *made);
        for (number, command) in commands.iter().enumerate() {
            assert_eq!(command["events"], json!([{ "version": number + 1 }]));
            assert_eq!(command["aggregate"]["id"], aggregate["id"]);
            assert_eq!(command["aggregateId"], aggregate["id"]);
        }
        assert_eq!(aggregate["commands"]["pageInfo"]["hasNextPage"], false);
    }
    for (aggregate, made) in ask(json!({ "first": 3 })).await.iter().zip(&made) {
        assert_eq!(
            pick(&list(aggregate["commands"]["nodes"].clone()), "id"),
            made[..3]
        );
        assert_eq!(aggregate["commands"]["pageInfo"]["hasNextPage"], true);
        let after = &aggregate["commands"]["pageInfo"]["endCursor"];
        let rest = ask(json!({ "first": 3, "after": after })).await;
        let rest = rest
            .iter()
            .find(|rest| rest["id"] == aggregate["id"])
            .unwrap();
        assert_eq!(
            pick(&list(rest["commands"]["nodes"].clone()), "id"),
            made[3..6]
        );
        assert_eq!(rest["commands"]["pageInfo"]["hasPreviousPage"], true);
    }
    for (arguments, field) in [
        (json!({ "first": 0 }), "first"),
        (json!({ "after": contract.head().await }), "after"),
    ] {
        let failure = contract.refused(&query, arguments).await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
        assert_eq!(failure.extension("field"), field);
    }
}

async fn the_types_of_commands_are_told(contract: Contract) {
    let query = "{ commandTypes { name aggregateType eventTypes dataSchema } }";
    let types = list(contract.ask(query, json!({})).await["commandTypes"].take());
    assert_eq!(
        pick(&types, "name"),
        ["create_user", "delete_user", "update_user"]
    );
    assert_eq!(types[0]["aggregateType"], "user");
    assert_eq!(types[0]["eventTypes"], json!(["user_created"]));
    assert_eq!(types[0]["dataSchema"]["required"], json!(["username"]));
}
