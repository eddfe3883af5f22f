//! Commands: decided on by the domain, and stored with the events that they cause. Floor 4.
//!
//! The executor decides and appends; the worker gives it the pending ones of a partition when they are due; the watch tells
//! who waits for one that it is settled.

mod decision;
mod error;
mod executor;
mod loads;
mod states;
mod turns;
mod watch;
mod worker;

pub use error::CommandError;
pub use executor::{Executed, Executor, Processed};
pub use watch::{CommandFollower, Watch};
pub use worker::{Worker, run_worker};
