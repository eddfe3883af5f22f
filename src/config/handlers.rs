//! How event handlers are run. Floor 1.

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;

use super::{
    documented_defaults,
    values::{SecretParser, boolean, parse_duration},
};

/// How event handlers are run.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(
    next_help_heading = "Event handlers",
    mut_arg("webhook-allow-private", boolean)
)]
pub struct Handlers {
    /// A secret that webhooks are signed with, as the Standard Webhooks specification says: whsec_ and 24 to 64 bytes in base64
    /// (repeatable: while receivers change over to a new one, each delivery has a signature by each). Without one no webhook
    /// can be registered
    #[arg(
        id = "webhook-secret",
        long = "webhook-secret",
        env = "TIDINGS_WEBHOOK_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        value_delimiter = ',',
        value_parser = SecretParser::<WebhookSecret>::new()
    )]
    pub webhook_secrets: Vec<WebhookSecret>,

    /// Whether webhooks may go to private, loopback and link-local addresses, which this server may reach and the rest of the
    /// world does not
    #[arg(
        id = "webhook-allow-private",
        long = "webhook-allow-private",
        env = "TIDINGS_WEBHOOK_ALLOW_PRIVATE",
        default_value = "false"
    )]
    pub allow_private: bool,

    /// How long a handler may take for one event, an answer to a webhook included
    #[arg(id = "handler-timeout", long, env = "TIDINGS_HANDLER_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub time_out: Duration,

    /// How many events each handler is given at a time, at most: of different aggregates
    #[arg(
        id = "handler-concurrency",
        long = "handler-concurrency",
        env = "TIDINGS_HANDLER_CONCURRENCY",
        value_name = "N",
        default_value = "8"
    )]
    pub concurrency: u32,

    /// How often a delivery is tried before it is DEAD
    #[arg(
        id = "handler-attempts",
        long = "handler-attempts",
        env = "TIDINGS_HANDLER_ATTEMPTS",
        value_name = "N",
        default_value = "8"
    )]
    pub attempts: u32,

    /// The pause after the first attempt of a delivery that fails; each further one is five times as long, and all are shifted
    /// a little by chance
    #[arg(id = "handler-retry-delay", long, env = "TIDINGS_HANDLER_RETRY_DELAY", value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub retry_delay: Duration,

    /// The longest pause between two attempts
    #[arg(id = "handler-longest-delay", long, env = "TIDINGS_HANDLER_LONGEST_DELAY", value_name = "TIME", default_value = "6h", value_parser = parse_duration)]
    pub longest_delay: Duration,
}

impl Default for Handlers {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Handlers {
    /// What is wrong with them.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        require(
            !self.time_out.is_zero(),
            "--handler-timeout: must be at least 1ms",
        );
        require(
            (1..=1000).contains(&self.concurrency),
            "--handler-concurrency: must be 1 to 1000",
        );
        require(
            (1..=1000).contains(&self.attempts),
            "--handler-attempts: must be 1 to 1000",
        );
        require(
            !self.retry_delay.is_zero(),
            "--handler-retry-delay: must be at least 1ms",
        );
        require(
            self.longest_delay >= self.retry_delay,
            "--handler-longest-delay: must be at least --handler-retry-delay",
        );
        problems
    }
}

/// A secret that webhooks are signed with. It is never printed.
///
/// Source: Standard Webhooks, "Signature scheme".
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Vec<u8>);

impl WebhookSecret {
    /// The key itself.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for WebhookSecret {
    type Err = String;

    /// # Errors
    /// Text that is no secret: says what would be right, and never repeats the text.
    fn from_str(text: &str) -> Result<Self, String> {
        const RIGHT: &str = "use whsec_ and 24 to 64 random bytes in base64, such as the output of `echo whsec_$(openssl rand \
                             -base64 32)`";
        let key = text
            .strip_prefix("whsec_")
            .ok_or_else(|| format!("it does not begin with whsec_; {RIGHT}"))?;
        let key = STANDARD
            .decode(key)
            .map_err(|_| format!("it is not base64 behind whsec_; {RIGHT}"))?;
        if !(24..=64).contains(&key.len()) {
            return Err(format!("it has {} bytes; {RIGHT}", key.len()));
        }
        Ok(Self(key))
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_and_never_printed() {
        let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
            .parse()
            .expect("right");
        assert_eq!(secret.key().len(), 24);
        assert_eq!(format!("{secret:?}"), "WebhookSecret(…)");
        for wrong in ["hunter2", "whsec_?", "whsec_c2hvcnQ=", "whsec_"] {
            let error = wrong.parse::<WebhookSecret>().expect_err(wrong);
            assert!(
                error.contains("openssl") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
