//! Many clients at once on few aggregates: no rule is broken, and a repeat has one effect.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidings::domain::Domain;
use uuid::Uuid;

use super::{create, execute, until_settled};
use crate::domain::bank_account::BankAccount;
use crate::support::client::Client;
use crate::support::deciders::Accounts;
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::log::StoredLog;
use crate::support::on_every_database;

const CLIENTS: usize = 64;

on_every_database!(
    no_account_is_ever_overdrawn,
    a_command_that_is_sent_fifty_times_at_once_has_one_effect,
);

async fn start(engine: Engine, partitions: u8) -> TestServer {
    let database = Arc::new(Database::make(engine));
    TestServer::with_domain(database, Accounts::domain(), |config| {
        config.database.partitions = Some(partitions);
    })
    .await
}

/// The amounts in the events of an account, in their order, by their signs.
async fn movements(client: &Client, account: Uuid) -> Vec<(String, i64)> {
    let query = "query($id: UUID!, $after: Int) { aggregate(id: $id) { version events(first: 1000, afterVersion: $after) { type data } } }";
    let mut movements = Vec::new();
    loop {
        let variables = json!({ "id": account, "after": movements.len() });
        let data = client.query(query, variables).await.unwrap();
        for event in data["aggregate"]["events"].as_array().unwrap() {
            let amount = event["data"]["amount"].as_i64().unwrap_or_default();
            movements.push((event["type"].as_str().unwrap().to_owned(), amount));
        }
        if movements.len() as u64 >= data["aggregate"]["version"].as_u64().unwrap() {
            return movements;
        }
    }
}

async fn no_account_is_ever_overdrawn(engine: Engine, partitions: u8) {
    const ACCOUNTS: usize = 10;
    const COMMANDS: usize = 15;
    let domain = Domain::new(vec![Arc::new(BankAccount)]).unwrap();
    let database = Arc::new(Database::make(engine));
    let server = TestServer::with_domain(database, domain, |config| {
        config.database.partitions = Some(partitions);
    })
    .await;
    let client = server.client();
    let accounts: Vec<Uuid> = (0..ACCOUNTS).map(|_| Uuid::new_v4()).collect();
    for account in &accounts {
        let open =
            json!({ "aggregateId": account, "type": "open_account", "data": { "owner": "Ada" } });
        assert_eq!(execute(&client, open).await.unwrap()["status"], "PROCESSED");
    }
    let clients = (0..CLIENTS).map(|number| {
        let (client, accounts) = (&client, &accounts);
        async move {
            let mut told = Vec::new();
            for call in 0..COMMANDS {
                let account = accounts[(number * 7 + call) % ACCOUNTS];
                let amount = (number * 31 + call * 17) % 50 + 1;
                let kind = ["deposit", "withdraw", "withdraw"][(number + call) % 3];
                let input =
                    json!({ "aggregateId": account, "type": kind, "data": { "amount": amount } });
                // Some go by way of the worker.
                let command = if call % 5 == 4 {
                    let id = create(client, input).await["id"].clone();
                    until_settled(client, &id).await
                } else {
                    execute(client, input).await.unwrap()
                };
                told.push((account, command));
            }
            told
        }
    });
    let told: Vec<(Uuid, Value)> = join_all(clients).await.into_iter().flatten().collect();
    assert_eq!(told.len(), CLIENTS * COMMANDS);

    let mut rejected = 0;
    let mut caused: HashSet<String> = HashSet::new();
    for (_, command) in &told {
        let events = command["events"].as_array().unwrap();
        match command["status"].as_str().unwrap() {
            "PROCESSED" => {
                assert_eq!(events.len(), 1, "{command}");
                assert_eq!(events[0]["metadata"]["commandId"], command["id"]);
                assert!(caused.insert(events[0]["id"].to_string()), "{command}");
            }
            "REJECTED" => {
                assert!(events.is_empty(), "{command}");
                assert!(
                    command["reason"]
                        .as_str()
                        .unwrap()
                        .contains("the balance is")
                );
                rejected += 1;
            }
            _ => panic!("{command}"),
        }
    }
    println!("{rejected} of {} were rejected", told.len());
    assert!(rejected > 0, "the rule came to be needed");

    for account in &accounts {
        let mut balance = 0;
        let movements = movements(&client, *account).await;
        let version = movements.len();
        for (kind, amount) in movements {
            match kind.as_str() {
                "money_deposited" => balance += amount,
                "money_withdrawn" => balance -= amount,
                _ => {}
            }
            assert!(balance >= 0, "the account is overdrawn by {balance}");
        }
        // What clients were told comes to the same.
        let told: i64 = told
            .iter()
            .filter(|(of, command)| of == account && command["status"] == "PROCESSED")
            .map(|(_, command)| {
                let amount = command["events"][0]["data"]["amount"].as_i64().unwrap();
                if command["type"] == "deposit" {
                    amount
                } else {
                    -amount
                }
            })
            .sum();
        assert_eq!(balance, told);
        let query = "query($id: UUID!, $version: Int!) { aggregate(id: $id) { state } readModel(aggregateId: $id, minVersion: $version, waitMs: 20000) { data } }";
        let variables = json!({ "id": account, "version": version });
        let data = client.query(query, variables).await.unwrap();
        let expected = json!({ "owner": "Ada", "balance": balance });
        assert_eq!(data["aggregate"]["state"], expected);
        assert_eq!(data["readModel"]["data"], expected);
    }
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), ACCOUNTS + caused.len());
}

async fn a_command_that_is_sent_fifty_times_at_once_has_one_effect(engine: Engine, partitions: u8) {
    const TIMES: usize = 50;
    let server = start(engine, partitions).await;
    let client = server.client();
    let account = Uuid::new_v4();
    let open =
        json!({ "aggregateId": account, "type": "open_account", "data": {}, "id": Uuid::new_v4() });
    let deposit = json!({ "aggregateId": account, "type": "deposit_money", "data": { "amount": 5 }, "id": Uuid::new_v4() });
    let withdraw = json!({ "aggregateId": account, "type": "withdraw_money", "data": { "amount": 9 }, "id": Uuid::new_v4() });
    for (input, status) in [
        (open, "PROCESSED"),
        (deposit, "PROCESSED"),
        (withdraw, "REJECTED"),
    ] {
        let answers = join_all((0..TIMES).map(|_| execute(&client, input.clone()))).await;
        let first = answers[0].as_ref().unwrap().clone();
        assert_eq!(first["status"], status);
        for answer in answers {
            assert_eq!(answer.unwrap(), first);
        }
    }
    assert_eq!(movements(&client, account).await.len(), 2);
    let data = client
        .query("{ commands { nodes { id } } }", json!({}))
        .await
        .unwrap();
    assert_eq!(data["commands"]["nodes"].as_array().unwrap().len(), 3);
}
