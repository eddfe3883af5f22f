//! The domain: declared and written deciders, and what folding promises.

mod bank;
mod command_line;
mod declared;
mod folding;
mod given;
mod merge;
mod wrong_files;

/// The example's decider, so that it is tested as it is shown.
#[path = "../../../examples/bank_account.rs"]
#[expect(dead_code, reason = "only its decider is used here, not its main")]
pub mod bank_account;
