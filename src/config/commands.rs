//! How commands are processed. Floor 1.

use std::time::Duration;

use clap::Args;

use super::{
    documented_defaults,
    values::{parse_bytes, parse_duration},
};

/// How commands are processed.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Commands")]
pub struct Commands {
    /// How much memory the states of aggregates take that are kept for the next command on them
    #[arg(long, env = "TIDINGS_STATE_CACHE_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub state_cache_bytes: usize,

    /// How often a pending command is tried that fails for a fault (not for a rule of the domain), before it is FAILED
    #[arg(
        id = "command-attempts",
        long = "command-attempts",
        env = "TIDINGS_COMMAND_ATTEMPTS",
        value_name = "N",
        default_value = "8"
    )]
    pub attempts: u32,

    /// The pause after the first try that fails; each further one is four times as long, up to an hour
    #[arg(id = "command-retry-delay", long, env = "TIDINGS_COMMAND_RETRY_DELAY", value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub retry_delay: Duration,
}

impl Default for Commands {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Commands {
    /// What is wrong with them.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.attempts == 0 {
            problems.push("--command-attempts: must be at least 1".to_owned());
        }
        if self.retry_delay.is_zero() {
            problems.push("--command-retry-delay: must be at least 1ms".to_owned());
        }
        problems
    }
}
