//! What the server does besides answering. Floor 1.

use std::time::Duration;

use clap::Args;

use super::{
    documented_defaults,
    values::{boolean, parse_duration},
};

/// The shortest lease: renewing it takes a statement each third of it.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// What the server does besides answering.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(
    next_help_heading = "Work in the background",
    mut_arg("background", boolean)
)]
pub struct Background {
    /// Whether this server folds events into read models and does what else runs in the background. With false it leaves
    /// that to the other servers on its database
    #[arg(
        id = "background",
        long = "background",
        env = "TIDINGS_BACKGROUND",
        default_value = "true"
    )]
    pub enabled: bool,

    /// How long it takes at most until another server takes over what one did that has died. Each partition is worked on by
    /// one server at a time
    #[arg(long, env = "TIDINGS_LEASE", value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub lease: Duration,
}

impl Default for Background {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Background {
    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.lease < SHORTEST_LEASE {
            let shortest_ms = SHORTEST_LEASE.as_millis();
            problems.push(format!("--lease: must be at least {shortest_ms}ms"));
        }
        problems
    }
}
