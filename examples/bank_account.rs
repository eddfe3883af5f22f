//! A domain in Rust, as a complete server: bank accounts, whose balance is never below zero. A domain file cannot say that.

use std::sync::Arc;

use serde_json::{Value, json};
use tidings::{app::App, config::Config, domain::*, graphql::Graphql, http};

/// The rules of an account. Its state is `{ "owner": "Ada", "balance": 0 }`, in cents.
pub struct BankAccount;

impl Decider for BankAccount {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("bank_account").expect("a name")
    }

    fn commands(&self) -> Vec<CommandDescription> {
        let owner = json!({ "owner": { "type": "string", "minLength": 1 } });
        let amount = json!({ "amount": { "type": "integer", "minimum": 1, "maximum": 1e9 } });
        let owner = json!({ "type": "object", "required": ["owner"], "properties": owner });
        let amount = json!({ "type": "object", "required": ["amount"], "properties": amount });
        let command = CommandDescription::new;
        vec![
            command("open_account", &["account_opened"]).with_schema(owner),
            command("deposit", &["money_deposited"]).with_schema(amount.clone()),
            command("withdraw", &["money_withdrawn"]).with_schema(amount),
            command("close_account", &["account_closed"]),
        ]
    }

    fn decide(&self, state: &State, command: &CommandInHand<'_>) -> Decision {
        let amount = cents(command.data).unwrap_or_default();
        let event = match (command.command_type.as_str(), state["balance"].as_i64()) {
            ("open_account", None) => "account_opened",
            ("open_account", Some(_)) => return Err(Rejection::new("the account is open already")),
            (_, None) => return Err(Rejection::new("there is no open account of this id")),
            ("deposit", _) => "money_deposited",
            ("withdraw", Some(balance)) if balance >= amount => "money_withdrawn",
            ("close_account", Some(0)) => "account_closed",
            (_, Some(balance)) => return Err(Rejection(format!("the balance is {balance} cents"))),
        };
        Ok(vec![DecidedEvent::new(event, command.data.clone())])
    }

    fn evolve(&self, mut state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        let sign = match event.event_type.as_str() {
            "account_opened" => return Ok(json!({ "owner": event.data["owner"], "balance": 0 })),
            "account_closed" => return Ok(State::Null),
            "money_deposited" => 1,
            "money_withdrawn" => -1,
            _ => return event.merge_into(state),
        };
        let (Some(balance), Some(amount)) = (state["balance"].as_i64(), cents(&event.data)) else {
            return Err(FoldFault::new("there is no open account, or no amount"));
        };
        state["balance"] = json!(balance.saturating_add(amount.saturating_mul(sign)));
        Ok(state)
    }
}

/// JSON Schema takes 5.0 for an integer, too.
fn cents(data: &Value) -> Option<i64> {
    data["amount"].as_f64().map(|amount| amount as i64)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::default();
    let listener = http::bind(&config).await?;
    let domain = Domain::new(vec![Arc::new(BankAccount)])?;
    let app = App::start_with(&config, domain, Arc::new(SystemClock)).await?;
    let graphql = Graphql::new(app.clone(), &config.limits);
    let server = http::serve(listener, graphql, app.clone(), &config)?;
    println!("GraphQL is at http://{}/graphql", server.local_addr());
    tokio::signal::ctrl_c().await?;
    server.stop().await;
    app.stop().await;
    Ok(())
}
