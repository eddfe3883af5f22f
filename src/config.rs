//! Configuration: flags and environment, read once, checked as a whole, handed on by section. Floor 1.
//!
//! Every section has a `Default` with the documented values, so that a program or a test can build a [`Config`] by hand.

mod background;
mod commands;
mod database_urls;
pub mod domain_file;
mod handlers;
mod limits;
mod observability;
mod values;

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Command, FromArgMatches, ValueEnum};
use thiserror::Error;

pub use background::Background;
pub use commands::Commands;
pub use database_urls::DatabaseUrls;
pub use domain_file::{DomainFile, DomainFileError};
pub use handlers::{Handlers, WebhookSecret};
pub use limits::Limits;
pub use observability::Observability;
pub use values::{DatabaseKind, DatabaseUrl, Token};
use values::{
    SecretParser, boolean, parse_address, parse_duration, parse_filter, parse_host, parse_origin,
};

/// Everything that can be set.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct Config {
    /// Where events are kept.
    #[command(flatten)]
    pub database: Database,
    /// What aggregates, commands and events there are.
    #[command(flatten)]
    pub domain: DomainFile,
    /// Where the server listens.
    #[command(flatten)]
    pub listen: Listen,
    /// Who may do what.
    #[command(flatten)]
    pub access: Access,
    /// What the server takes at most.
    #[command(flatten)]
    pub limits: Limits,
    /// How commands are processed.
    #[command(flatten)]
    pub commands: Commands,
    /// How event handlers are run.
    #[command(flatten)]
    pub handlers: Handlers,
    /// What the server does besides answering.
    #[command(flatten)]
    pub background: Background,
    /// What it lets see of its work, beside the log.
    #[command(flatten)]
    pub observability: Observability,
    /// What it tells about its work.
    #[command(flatten)]
    pub log: Log,
}

/// Where events are kept.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Database", mut_arg("migrate", boolean))]
pub struct Database {
    /// The database, or the servers of one PostgreSQL of which one is the primary.
    #[command(flatten)]
    pub url: DatabaseUrls,

    /// Bring the database's tables up to date at start; with false, a database that is not current stops the start
    #[arg(long, env = "TIDINGS_MIGRATE", default_value = "true")]
    pub migrate: bool,

    /// Into how many parts a new database is divided: 1, 2, 4, 8 or 16. More of them append in parallel, but order is
    /// promised only within each. An existing database keeps its own, and another number is refused [new databases: 1]
    #[arg(long, env = "TIDINGS_PARTITIONS", value_name = "N")]
    pub partitions: Option<u8>,

    /// Connections to the database for reading, at most. On PostgreSQL up to 40 more write, as many as are needed at a time,
    /// the leases take two, and the doorbell between servers one
    #[arg(
        id = "database-connections",
        long = "database-connections",
        env = "TIDINGS_DATABASE_CONNECTIONS",
        value_name = "N",
        default_value = "10"
    )]
    pub max_connections: u32,

    /// How long to wait for a free connection to the database
    #[arg(
        id = "database-acquire-timeout",
        long = "database-acquire-timeout",
        env = "TIDINGS_DATABASE_ACQUIRE_TIMEOUT",
        value_name = "TIME",
        default_value = "5s",
        value_parser = parse_duration
    )]
    pub acquire_timeout: Duration,

    /// How long a write waits for a lock in the database that somebody else holds
    #[arg(long, env = "TIDINGS_LOCK_TIMEOUT", value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub lock_timeout: Duration,
}

/// Where the server listens.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Network and access")]
pub struct Listen {
    /// The address to listen on: an IP address (or localhost) and a port; port 0 takes a free one and prints it
    #[arg(
        id = "listen",
        long = "listen",
        env = "TIDINGS_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        value_parser = parse_address
    )]
    pub address: SocketAddr,
}

/// Who may do what.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Network and access")]
pub struct Access {
    /// A web page's origin that may use the API besides the server's own, such as `https://app.example.com` (repeatable)
    #[arg(
        id = "allow-origin",
        long = "allow-origin",
        env = "TIDINGS_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ',',
        value_parser = parse_origin
    )]
    pub allow_origins: Vec<String>,

    /// A name under which clients may reach this server, besides localhost and IP addresses (repeatable)
    #[arg(
        id = "allow-host",
        long = "allow-host",
        env = "TIDINGS_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = parse_host
    )]
    pub allow_hosts: Vec<String>,

    /// A token and its role: read=SECRET, write=SECRET or admin=SECRET (repeatable). Better given by the environment,
    /// where other users of the machine cannot see it. Without any, everybody may do everything, on this machine only
    #[arg(
        id = "token",
        long = "token",
        env = "TIDINGS_TOKEN",
        hide_env_values = true,
        value_name = "ROLE=SECRET",
        value_delimiter = ',',
        value_parser = SecretParser::<Token>::new()
    )]
    pub tokens: Vec<Token>,
}

/// What the server tells about its work, on standard error.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Log")]
pub struct Log {
    /// How the log is written
    #[arg(
        id = "log-format",
        long = "log-format",
        env = "TIDINGS_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, also for each module (info,tidings::http=debug)
    #[arg(id = "log", long = "log", env = "TIDINGS_LOG", value_name = "FILTER", default_value = "info", value_parser = parse_filter)]
    pub filter: String,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Options that are wrong, each with its name and what would be right.
#[derive(Debug, Error, PartialEq)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    /// One text for each option that is wrong.
    pub problems: Vec<String>,
}

impl Config {
    /// Checks what one option alone cannot show.
    ///
    /// # Errors
    /// Every option that is wrong, at once.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let partitions = self.database.partitions.unwrap_or(1);
        require(
            partitions.is_power_of_two() && partitions <= 16,
            "--partitions: must be 1, 2, 4, 8 or 16",
        );
        require(
            self.database.max_connections > 0,
            "--database-connections: must be at least 1",
        );
        require(
            !self.access.tokens.is_empty() || self.listen.address.ip().is_loopback(),
            "--listen: other machines could write to this server without a token; add --token admin=SECRET (or \
             TIDINGS_TOKEN), or listen on 127.0.0.1",
        );
        for (name, value) in [
            ("database-acquire-timeout", self.database.acquire_timeout),
            ("lock-timeout", self.database.lock_timeout),
        ] {
            require(!value.is_zero(), &format!("--{name}: must be at least 1ms"));
        }
        problems.extend(self.database.url.problem().map(str::to_owned));
        problems.extend(self.limits.problems());
        problems.extend(self.commands.problems());
        problems.extend(self.handlers.problems());
        problems.extend(self.background.problems());
        problems.extend(self.observability.problems());
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { problems })
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Default for Database {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Default for Listen {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Default for Access {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Default for Log {
    fn default() -> Self {
        documented_defaults()
    }
}

/// A section as its help text says, whatever the environment holds: each default is written once.
fn documented_defaults<T: Args + FromArgMatches>() -> T {
    let command = T::augment_args(Command::new("tidings").no_binary_name(true))
        .mut_args(|arg| arg.env(clap::builder::Resettable::Reset));
    let matches = command
        .try_get_matches_from([""; 0])
        .expect("every option has a default that can be read, or is optional");
    T::from_arg_matches(&matches).expect("the matches come from the section's own options")
}

/// Names of `TIDINGS_` variables in `variables` that no option of `command` knows, with the one that may be meant.
///
/// Kubernetes sets `TIDINGS_SERVICE_…` and `TIDINGS_PORT…` beside a service of that name; those are let pass.
#[must_use]
pub fn unknown_variables(
    command: &Command,
    variables: impl Iterator<Item = String>,
) -> Vec<String> {
    let known: Vec<String> = command
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()))
        .collect();
    variables
        .filter(|name| name.starts_with("TIDINGS_"))
        .filter(|name| {
            !name.starts_with("TIDINGS_SERVICE_")
                && name != "TIDINGS_PORT"
                && !name.starts_with("TIDINGS_PORT_")
        })
        .filter(|name| !known.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, clap::Error> {
        let command = Config::augment_args(Command::new("tidings").no_binary_name(true))
            .mut_args(|arg| arg.env(clap::builder::Resettable::Reset));
        Config::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn the_defaults_are_the_documented_ones_and_pass_the_check() {
        let config = Config::default();
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config, parse(&[]).unwrap());
        assert_eq!(config.database.url.to_string(), "sqlite://tidings.db");
        assert!(config.database.migrate);
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:8080");
        assert_eq!(config.limits.max_request_bytes, 16 << 20);
        assert_eq!(config.limits.send_timeout, Duration::from_secs(60));
        assert_eq!(config.commands.state_cache_bytes, 64 << 20);
        assert_eq!(config.commands.attempts, 8);
        assert_eq!(config.commands.retry_delay, Duration::from_secs(1));
        assert!(config.observability.event_metrics);
        let retention = config.observability.event_metrics_retention;
        assert_eq!(retention, Duration::from_secs(30 * 24 * 3600));
        assert_eq!(config.observability.otlp_endpoint, None);
        assert_eq!(config.handlers.retry_delay, Duration::from_secs(5));
        assert_eq!(config.handlers.attempts, 8);
        assert!(!config.handlers.allow_private && config.handlers.webhook_secrets.is_empty());
    }

    #[test]
    fn options_that_repeat_are_collected() {
        let config = parse(&[
            "--allow-origin",
            "https://A.example:443",
            "--allow-origin=http://localhost:3000,http://b.example/",
        ])
        .unwrap();
        assert_eq!(
            config.access.allow_origins,
            [
                "https://a.example",
                "http://localhost:3000",
                "http://b.example"
            ]
        );
        let config = parse(&[
            "--database-url=postgres://a/d,postgres://b/d",
            "--database-url",
            "postgres://c/d",
        ])
        .unwrap();
        let urls = "postgres://a/d, postgres://b/d, postgres://c/d";
        assert_eq!(config.database.url.to_string(), urls);
        let config = parse(&["--token", "read=one,write=two", "--migrate=false"]).unwrap();
        assert_eq!(config.access.tokens.len(), 2);
        assert!(!config.database.migrate);
    }

    #[test]
    fn wrong_values_are_refused_with_the_name_of_the_option() {
        for (args, name) in [
            (["--partitions", "many"], "--partitions"),
            (["--listen", "example.com:80"], "--listen"),
            (["--allow-origin", "*"], "--allow-origin"),
            (["--allow-origin", "null"], "--allow-origin"),
            (["--allow-host", "http://a"], "--allow-host"),
            (["--token", "hunter2"], "--token"),
            (
                ["--database-url", "mysql://u:hunter2@h/d"],
                "--database-url",
            ),
            (
                ["--database-url", "postgres://u:hunter2@h,i/d"],
                "--database-url",
            ),
            (["--request-timeout", "30"], "--request-timeout"),
            (["--otlp-endpoint", "localhost:4317"], "--otlp-endpoint"),
            (["--log", "a=b=c"], "--log"),
        ] {
            let error = parse(&args).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let mut config = Config::default();
        config.database.partitions = Some(3);
        config.limits.max_depth = 0;
        config.limits.keep_alive = Duration::ZERO;
        config.commands.attempts = 0;
        config.commands.retry_delay = Duration::ZERO;
        config.observability.event_metrics_retention = Duration::from_secs(59);
        let problems = config.check().unwrap_err().problems;
        assert_eq!(problems.len(), 6, "{problems:?}");
        assert!(problems[0].starts_with("--partitions"));
    }

    #[test]
    fn without_a_token_only_loopback_addresses_are_allowed() {
        let mut config = Config::default();
        config.listen.address = "0.0.0.0:8080".parse().unwrap();
        assert!(
            config
                .check()
                .unwrap_err()
                .to_string()
                .contains("--token admin=")
        );
        config.access.tokens = vec!["read=hunter2".parse().unwrap()];
        assert_eq!(config.check(), Ok(()));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn unknown_variables_are_found() {
        let command =
            Command::new("tidings").subcommand(Config::augment_args(Command::new("serve")));
        let names = [
            "TIDINGS_LISTEN",
            "TIDINGS_LISTNE",
            "TIDINGS_PORT_8080_TCP",
            "TIDINGS_SERVICE_HOST",
            "PATH",
        ];
        assert_eq!(
            unknown_variables(&command, names.iter().map(ToString::to_string)),
            ["TIDINGS_LISTNE"]
        );
    }
}
