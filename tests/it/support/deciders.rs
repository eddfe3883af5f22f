//! Domains in Rust for tests: accounts with a rule about money, and machines that can be made to fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tidings::domain::{
    AggregateType, CommandDescription, CommandInHand, CommandType, DecidedEvent, Decider, Domain,
    EventType, FoldFault, PastEvent, Rejection, State,
};

fn command(name: &str, event: &str, creates: bool) -> CommandDescription {
    CommandDescription {
        name: CommandType::new(name).unwrap(),
        event_types: vec![EventType::new(event).unwrap()],
        data_schema: None,
        creates,
    }
}

fn event(name: &str, data: Value) -> DecidedEvent {
    DecidedEvent {
        event_type: EventType::new(name).unwrap(),
        data,
    }
}

/// Accounts: no more can be withdrawn than there is.
pub struct Accounts;

impl Accounts {
    pub fn domain() -> Domain {
        Domain::new(vec![Arc::new(Self)]).unwrap()
    }
}

impl Decider for Accounts {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("account").unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        vec![
            command("open_account", "account_opened", true),
            command("deposit_money", "money_deposited", false),
            command("withdraw_money", "money_withdrawn", false),
        ]
    }

    fn decide(
        &self,
        state: &State,
        command: &CommandInHand<'_>,
    ) -> Result<Vec<DecidedEvent>, Rejection> {
        let amount = command.data["amount"].as_i64().unwrap_or_default();
        let balance = state["balance"].as_i64();
        match (command.command_type.as_str(), balance) {
            ("open_account", None) => Ok(vec![event("account_opened", json!({ "balance": 0 }))]),
            ("open_account", Some(_)) => Err(Rejection("the account is open already".to_owned())),
            (_, None) => Err(Rejection("there is no such account".to_owned())),
            ("deposit_money", _) => Ok(vec![event("money_deposited", json!({ "amount": amount }))]),
            (_, Some(balance)) if amount > balance => Err(Rejection(format!(
                "{amount} is more than the {balance} that there are"
            ))),
            _ => Ok(vec![event("money_withdrawn", json!({ "amount": amount }))]),
        }
    }

    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        let amount = event.data["amount"].as_i64().unwrap_or_default();
        let balance = state["balance"].as_i64().unwrap_or_default();
        let balance = match event.event_type.as_str() {
            "money_deposited" => balance + amount,
            "money_withdrawn" => balance - amount,
            _ => balance,
        };
        Ok(json!({ "balance": balance }))
    }
}

/// Machines: `run_machine` causes as many events as its data says, and panics as often as it was told to before;
/// an event `jammed` cannot be folded.
#[derive(Default)]
pub struct Machines {
    panics: Arc<AtomicUsize>,
}

impl Machines {
    /// A domain, and how often its decider is to panic.
    pub fn domain(panics: usize) -> (Domain, Arc<AtomicUsize>) {
        let panics = Arc::new(AtomicUsize::new(panics));
        let machines = Self {
            panics: panics.clone(),
        };
        (Domain::new(vec![Arc::new(machines)]).unwrap(), panics)
    }
}

impl Decider for Machines {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("machine").unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        vec![
            command("run_machine", "machine_ran", false),
            command("stop_machine", "machine_stopped", false),
        ]
    }

    fn decide(
        &self,
        state: &State,
        command: &CommandInHand<'_>,
    ) -> Result<Vec<DecidedEvent>, Rejection> {
        if command.command_type.as_str() == "stop_machine" {
            return Ok(vec![event("machine_stopped", json!({}))]);
        }
        let left = self
            .panics
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        assert!(left.is_err(), "the machine stumbles");
        let turns = command.data["turns"].as_u64().unwrap_or(1);
        let ran = state["turns"].as_u64().unwrap_or_default();
        let filling = &command.data["filling"];
        Ok((0..turns)
            .map(|turn| {
                event(
                    "machine_ran",
                    json!({ "turn": ran + turn + 1, "filling": filling }),
                )
            })
            .collect())
    }

    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        match event.event_type.as_str() {
            "jammed" => Err(FoldFault("the machine is jammed".to_owned())),
            "machine_ran" => Ok(json!({ "turns": event.data["turn"] })),
            _ => Ok(state),
        }
    }
}
