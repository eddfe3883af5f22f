//! The example's bank accounts, and what a domain does with deciders that are wrong.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tidings::domain::{
    AggregateType, CommandDescription, CommandInHand, DecidedEvent, Decider, Decision, Domain,
    DomainError, FoldFault, PastEvent, State,
};

use super::{
    bank_account::BankAccount,
    given::{Then, event, given, rejected},
};

fn bank() -> Domain {
    Domain::new(vec![Arc::new(BankAccount)]).unwrap()
}

fn opened() -> (&'static str, Value) {
    ("account_opened", json!({ "owner": "Ada" }))
}

fn amount(cents: i64) -> Value {
    json!({ "amount": cents })
}

#[test]
fn an_account_is_opened_with_nothing_in_it() {
    let domain = bank();
    let nothing = given(&domain, "bank_account", &[]);
    let owner = json!({ "owner": "Ada" });
    assert_eq!(
        nothing.when("open_account", owner.clone()),
        event("account_opened", owner)
    );
    let account = given(&domain, "bank_account", &[opened()]);
    assert_eq!(account.state, Ok(json!({ "owner": "Ada", "balance": 0 })));
    assert_eq!(
        account.when("open_account", json!({ "owner": "Bob" })),
        rejected("the account is open already")
    );
}

#[test]
fn no_more_is_withdrawn_than_there_is() {
    let domain = bank();
    let account = given(
        &domain,
        "bank_account",
        &[opened(), ("money_deposited", amount(50))],
    );
    assert_eq!(
        account.when("withdraw", amount(50)),
        event("money_withdrawn", amount(50))
    );
    assert_eq!(
        account.when("withdraw", json!({ "amount": 50.0 })),
        event("money_withdrawn", json!({ "amount": 50.0 }))
    );
    assert_eq!(
        account.when("withdraw", amount(51)),
        rejected("the balance is 50 cents")
    );
}

#[test]
fn only_an_empty_account_is_closed_and_only_an_open_one_is_used() {
    let domain = bank();
    let account = given(
        &domain,
        "bank_account",
        &[opened(), ("money_deposited", amount(50))],
    );
    assert_eq!(
        account.when("close_account", json!({})),
        rejected("the balance is 50 cents")
    );
    let empty = account.happens("money_withdrawn", amount(50));
    assert_eq!(
        empty.when("close_account", json!({})),
        event("account_closed", json!({}))
    );
    let closed = empty.happens("account_closed", json!({}));
    assert_eq!(closed.state, Ok(Value::Null));
    let rejection = rejected("there is no open account of this id");
    assert_eq!(closed.when("deposit", amount(1)), rejection);
    assert_eq!(closed.when("withdraw", amount(1)), rejection);
}

#[test]
fn amounts_are_checked_before_anything_is_decided() {
    let domain = bank();
    let account = given(&domain, "bank_account", &[opened()]);
    for (data, text) in [
        (json!({}), "amount must be given"),
        (amount(0), "amount must be at least 1"),
        (json!({ "amount": 1.5 }), "amount must be a whole number"),
        (
            json!({ "amount": 1e300 }),
            "amount must be at most 1000000000.0",
        ),
    ] {
        assert_eq!(
            account.when("deposit", data),
            Then::Wrong(vec![text.to_owned()])
        );
    }
}

#[test]
fn an_event_that_cannot_be_folded_is_a_fault_with_its_reason() {
    let domain = bank();
    let account = given(
        &domain,
        "bank_account",
        &[opened(), ("money_deposited", json!({}))],
    );
    assert_eq!(
        account.state,
        Err(FoldFault::new("there is no open account, or no amount"))
    );
}

/// A command, as the model knows it.
#[derive(Clone, Debug)]
enum Command {
    Open,
    Deposit(i64),
    Withdraw(i64),
    Close,
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let command = prop_oneof![
        1 => Just(Command::Open),
        4 => (1_i64..100).prop_map(Command::Deposit),
        4 => (1_i64..100).prop_map(Command::Withdraw),
        1 => Just(Command::Close),
    ];
    proptest::collection::vec(command, 0..60)
}

proptest! {
    #[test]
    fn any_sequence_of_commands_does_what_the_model_does(commands in commands()) {
        let domain = bank();
        let mut account = given(&domain, "bank_account", &[]);
        let mut model: Option<i64> = None;
        for command in commands {
            let (name, data) = match command {
                Command::Open => ("open_account", json!({ "owner": "Ada" })),
                Command::Deposit(cents) => ("deposit", amount(cents)),
                Command::Withdraw(cents) => ("withdraw", amount(cents)),
                Command::Close => ("close_account", json!({})),
            };
            let allowed = match (&command, model) {
                (Command::Open, None) => { model = Some(0); true }
                (Command::Deposit(cents), Some(balance)) => { model = Some(balance + cents); true }
                (Command::Withdraw(cents), Some(balance)) if *cents <= balance => { model = Some(balance - cents); true }
                (Command::Close, Some(0)) => { model = None; true }
                _ => false,
            };
            match account.when(name, data) {
                Then::Events(events) => {
                    prop_assert!(allowed, "{command:?}");
                    for (event_type, data) in events {
                        account = account.happens(&event_type, data);
                    }
                }
                Then::Rejected(_) => prop_assert!(!allowed, "{command:?}"),
                other => prop_assert!(false, "{command:?}: {other:?}"),
            }
            let balance = account.state.as_ref().unwrap()["balance"].as_i64();
            prop_assert_eq!(balance, model);
            prop_assert!(balance.is_none_or(|balance| balance >= 0));
        }
    }
}

/// A decider that does whatever its commands say.
struct Wild;

impl Decider for Wild {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("wild").unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        vec![CommandDescription::new("act", &["acted"])]
    }

    fn decide(&self, _: &State, command: &CommandInHand<'_>) -> Decision {
        match command.data.as_str() {
            Some("panic") => panic!("out of {}", "luck"),
            Some(name) => Ok(vec![DecidedEvent::new(name, json!({}))]),
            None => Ok(Vec::new()),
        }
    }

    fn evolve(&self, _: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        match event.data.as_str() {
            Some("panic") => panic!("no way"),
            _ => Ok(event.data),
        }
    }
}

#[test]
fn a_decider_that_panics_is_a_fault_and_not_the_end() {
    let domain = Domain::new(vec![Arc::new(Wild)]).unwrap();
    let wild = given(&domain, "wild", &[]);
    assert_eq!(
        wild.when("act", json!("panic")),
        Then::Faulted("the decider panicked: out of luck".to_owned())
    );
    assert_eq!(wild.when("act", json!(1)), Then::Events(Vec::new()));
    let fault = wild.happens("acted", json!("panic")).state.unwrap_err();
    assert_eq!(fault.to_string(), "the decider panicked at acted: no way");
}

#[test]
fn a_decider_keeps_to_what_it_says() {
    let domain = Domain::new(vec![Arc::new(Wild)]).unwrap();
    let wild = given(&domain, "wild", &[]);
    assert_eq!(wild.when("act", json!("acted")), event("acted", json!({})));
    let Then::Faulted(text) = wild.when("act", json!("slept")) else {
        panic!("it was to be a fault");
    };
    assert!(text.contains("slept"), "{text}");
    let fault = wild.happens("acted", json!([1])).state.unwrap_err();
    assert!(
        fault.to_string().contains("only an object or null"),
        "{fault}"
    );
}

#[test]
fn deciders_of_both_forms_make_one_domain_and_names_are_unique_in_it() {
    let user = || {
        Arc::new(
            tidings::domain::declared::parse(tidings::domain::declared::GUIDE)
                .unwrap()
                .remove(0),
        )
    };
    let both = Domain::new(vec![user(), Arc::new(BankAccount)]).unwrap();
    let names: Vec<&str> = both
        .command_types()
        .map(|kind| kind.description.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "close_account",
            "create_user",
            "delete_user",
            "deposit",
            "open_account",
            "update_user",
            "withdraw"
        ]
    );
    let content = both.content().to_value().unwrap();
    assert_eq!(content["aggregates"]["bank_account"]["written"], true);
    assert_eq!(
        content["aggregates"]["bank_account"]["commands"]["deposit"],
        json!({ "events": ["money_deposited"] })
    );
    assert_eq!(content["aggregates"]["user"]["publish_to"], "user_events");

    let twice = Domain::new(vec![user(), user()]).unwrap_err();
    assert!(
        matches!(twice, DomainError::DuplicateCommand { .. }),
        "{twice}"
    );
    let twice = Domain::new(vec![Arc::new(Wild), Arc::new(OtherWild)]).unwrap_err();
    assert!(
        matches!(twice, DomainError::DuplicateType { .. }),
        "{twice}"
    );
    let wrong = Domain::new(vec![Arc::new(WrongSchema)]).unwrap_err();
    assert!(matches!(wrong, DomainError::WrongSchema { .. }), "{wrong}");
}

/// Without commands, for the type of another one.
struct OtherWild;

impl Decider for OtherWild {
    fn aggregate_type(&self) -> AggregateType {
        Wild.aggregate_type()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        Vec::new()
    }

    fn decide(&self, _: &State, _: &CommandInHand<'_>) -> Decision {
        Ok(Vec::new())
    }

    fn evolve(&self, state: State, _: PastEvent<'_>) -> Result<State, FoldFault> {
        Ok(state)
    }
}

struct WrongSchema;

impl Decider for WrongSchema {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("wrong").unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        vec![CommandDescription::new("go", &[]).with_schema(json!({ "type": "text" }))]
    }

    fn decide(&self, _: &State, _: &CommandInHand<'_>) -> Decision {
        Ok(Vec::new())
    }

    fn evolve(&self, state: State, _: PastEvent<'_>) -> Result<State, FoldFault> {
        Ok(state)
    }
}
