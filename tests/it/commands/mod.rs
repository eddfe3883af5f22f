//! Commands beyond single calls: many clients, several servers, faults, and how long it takes.

mod accounts;
mod batches;
mod faults;
mod plans;
mod rolling;
mod servers;
mod worker;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Client, Failure, LIMIT};

const COMMAND: &str = "id aggregateId type status reason attempts createdAt notBefore processedAt events { id version data metadata }";

/// Executes a command: the command as it is then.
async fn execute(client: &Client, input: Value) -> Result<Value, Failure> {
    let query = format!(
        "mutation($input: CreateCommandInput!) {{ executeCommand(input: $input) {{ command {{ {COMMAND} }} events {{ id }} }} }}"
    );
    let mut data = client.query(&query, json!({ "input": input })).await?;
    Ok(data["executeCommand"]["command"].take())
}

/// Records a command: as it is then.
async fn create(client: &Client, input: Value) -> Value {
    let query = format!(
        "mutation($input: CreateCommandInput!) {{ createCommand(input: $input) {{ command {{ {COMMAND} }} }} }}"
    );
    let data = client.query(&query, json!({ "input": input })).await;
    data.unwrap()["createCommand"]["command"].take()
}

async fn command(client: &Client, id: &Value) -> Value {
    let query = format!("query($id: UUID!) {{ command(id: $id) {{ {COMMAND} }} }}");
    let data = client.query(&query, json!({ "id": id })).await;
    data.unwrap()["command"].take()
}

/// Waits until this holds for a command.
async fn until(client: &Client, id: &Value, holds: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let found = command(client, id).await;
        if holds(&found) {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "it does not come about: {found}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_settled(client: &Client, id: &Value) -> Value {
    until(client, id, |command| command["status"] != "PENDING").await
}
