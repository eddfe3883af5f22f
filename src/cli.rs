//! The command line: what can be called, and what each call does. Floor 8.

mod progress;
mod rebuild;
mod transfer;

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tidings::{
    app::App,
    config::{Config, Database, Log, LogFormat, domain_file, unknown_variables},
    domain::{EventType, declared::DeclaredAggregate},
    graphql::{self, Graphql},
    http::{self, Server},
};
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

/// Whatever clients do, the server is gone after this time.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

/// A GraphQL event store: append events, query aggregates and streams, and subscribe to what happens.
#[derive(Parser)]
#[command(name = "tidings", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  tidings serve
      Serve the SQLite file tidings.db on http://127.0.0.1:8080, with a playground to try it out
  tidings serve --database-url postgres://me:secret@localhost/tidings --listen 127.0.0.1:9000
      Serve a PostgreSQL database on another port
  TIDINGS_TOKEN=read=SECRET1,admin=SECRET2 tidings serve --listen 0.0.0.0:8080 --allow-host events.example.com
      Serve other machines, which need a token
  tidings serve --help
      Every option; each is an environment variable as well";

#[derive(Subcommand)]
enum Command {
    /// Serve the API over HTTP and websockets, and a playground at /
    #[command(after_help = EXAMPLES)]
    Serve(Box<Config>),
    /// Make the tables of a database, or bring them up to date, and end
    Migrate(Migrate),
    /// Fold read models again from the first event, while servers run on the database or without any. On SQLite the server
    /// has to be stopped first; without that, the mutation rebuildReadModels does it
    Rebuild(Box<rebuild::Rebuild>),
    /// Write all that a database has, line by line, to standard output or a file. On PostgreSQL servers may run meanwhile; on
    /// SQLite the server has to be stopped first
    #[command(after_help = transfer::EXAMPLES)]
    Export(Box<transfer::Export>),
    /// Take over an export into an empty database, of whichever kind and number of partitions, and check that nothing is
    /// missing. What was cut off goes on where it stopped. No server may run on the database meanwhile
    #[command(after_help = transfer::EXAMPLES)]
    Import(Box<transfer::Import>),
    /// Look after the domain: the aggregates with their commands and events
    #[command(subcommand)]
    Domain(DomainCommand),
    /// Print the schema of the GraphQL API
    Schema,
}

#[derive(Subcommand)]
enum DomainCommand {
    /// Check a domain file without starting a server: say what it declares, or what is wrong with it and in which line
    Check {
        /// The file, in TOML
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Args)]
struct Migrate {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    log: Log,
}

/// Prints a line for people. Nothing depends on it: standard output may be closed, as behind `head`.
macro_rules! say {
    ($($text:tt)*) => {
        writeln!(io::stdout(), $($text)*).ok();
    };
}

/// Reads the command line and does what it says.
///
/// # Errors
/// What stops the start, with what would be right.
pub fn run() -> anyhow::Result<()> {
    let unknown = unknown_variables(
        &Cli::command(),
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()),
    );
    let matches = without_empty_variables(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if !unknown.is_empty() {
        bail!(
            "unknown environment variables: {} (`tidings serve --help` lists those that there are)",
            unknown.join(", ")
        );
    }
    match cli.command {
        Command::Serve(config) => {
            config.check()?;
            start_log(&config.log);
            block_on(serve(*config))
        }
        Command::Migrate(Migrate { database, log }) => {
            let config = Config {
                database,
                log,
                ..Config::default()
            };
            config.check()?;
            start_log(&config.log);
            block_on(migrate(config))
        }
        Command::Rebuild(rebuild) => {
            let (config, scope) = rebuild.read();
            config.check()?;
            start_log(&config.log);
            block_on(rebuild::run(config, scope))
        }
        Command::Export(export) => {
            let (config, output) = export.read();
            config.check()?;
            start_log(&config.log);
            block_on(transfer::export(config, output))
        }
        Command::Import(import) => {
            let (config, input) = import.read();
            config.check()?;
            start_log(&config.log);
            block_on(transfer::import(config, input))
        }
        Command::Domain(DomainCommand::Check { file }) => check_domain(&file),
        Command::Schema => match io::stdout().write_all(graphql::sdl().as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("cannot print the schema")
            }
            _ => Ok(()),
        },
    }
}

/// A variable that is set to nothing, as deployment files do, is one that is not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.is_empty())
    };
    let names: Vec<String> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |command| {
            command.mut_args(|arg| {
                if is_empty(&arg) {
                    arg.env(clap::builder::Resettable::Reset)
                } else {
                    arg
                }
            })
        })
    })
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(work);
    // What hangs in a blocking call does not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

/// An error with its causes, each of which is said once: drivers repeat theirs.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// What the drivers tell is of use to those who ask for it.
const DRIVERS: &str = "sqlx=error,sea_orm=warn,sea_orm_migration=warn";

fn start_log(log: &Log) {
    let filter = EnvFilter::try_new(format!("{DRIVERS},{}", log.filter))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .init(),
    }
}

fn check_domain(file: &Path) -> anyhow::Result<()> {
    let (aggregates, domain) = domain_file::read(file)?;
    for aggregate in &aggregates {
        describe_aggregate(aggregate);
    }
    let fingerprint = &domain.fingerprint()[..12];
    say!("{} is right (fingerprint {fingerprint}…).", file.display());
    Ok(())
}

fn describe_aggregate(aggregate: &DeclaredAggregate) {
    let published = aggregate
        .publish_to
        .as_ref()
        .map(|stream| format!(", its events are published to the stream {stream}"))
        .unwrap_or_default();
    say!("{}{published}", aggregate.aggregate_type);
    for command in aggregate.commands.values() {
        say!(
            "  command {} (requires {}) → {}",
            command.name,
            command.requires.as_str(),
            command.event
        );
    }
    for (event, change) in &aggregate.events {
        say!("  event {event} (state {})", change.as_str());
    }
    let merged: BTreeSet<&EventType> = aggregate
        .commands
        .values()
        .map(|command| &command.event)
        .filter(|event| !aggregate.events.contains_key(*event))
        .collect();
    for event in merged {
        say!("  event {event} (state merge, as of all events that are not declared)");
    }
}

async fn migrate(config: Config) -> anyhow::Result<()> {
    App::migrate(&config).await?;
    say!("The tables of {} are up to date.", config.database.url);
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let stop_signal = StopSignal::listen().context("cannot listen for signals")?;
    allow_many_open_files();
    // First the address: a second server on it shall not touch the database.
    let listener = http::bind(&config).await?;
    let app = App::start(&config).await?;
    let graphql = Graphql::new(Arc::clone(&app), &config.limits);
    let server = http::serve(listener, graphql, Arc::clone(&app), &config)?;
    greet(&server, &app, &config);
    tracing::info!(
        address = %server.local_addr(),
        database = app.describe_database(),
        "ready"
    );

    let (stopping, lost) = (server.stopping(), app.lost());
    let signal = tokio::select! {
        name = stop_signal.received() => name,
        () = stopping.cancelled() => "a fault",
        () = lost.cancelled() => "a database that has lost events",
    };
    say!("Stopping ({signal}) …");
    let stop = async {
        server.stop().await;
        // Nothing that is left could be written.
        if !lost.is_cancelled() {
            app.stop().await;
        }
    };
    if timeout(STOP_TIMEOUT, stop).await.is_err() {
        tracing::warn!(
            "the stop took longer than {} s and was cut short",
            STOP_TIMEOUT.as_secs()
        );
    }
    if lost.is_cancelled() {
        bail!(
            "the database has gone back behind what this server had read from it: see the log; started again, the server serves \
             what is there now"
        );
    }
    Ok(())
}

fn greet(server: &Server, app: &App, config: &Config) {
    let mut address = server.local_addr();
    say!("Tidings {} listens on {address}", env!("CARGO_PKG_VERSION"));
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    say!("  database    {}", app.describe_database());
    say!("  GraphQL     http://{address}/graphql (websockets too; schema at /schema.graphql)");
    say!("  playground  http://{address}/");
    if config.access.tokens.is_empty() {
        say!(
            "  access      everybody on this machine may do everything; --token admin=SECRET asks for a token"
        );
    } else {
        say!(
            "  access      with a token: `Authorization: Bearer SECRET`, or in the payload of connection_init"
        );
    }
}

/// Each connection is an open file, and many systems allow a process 1,024 of them unless it asks for more.
fn allow_many_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            limit.current = limit.maximum;
            if let Err(error) = setrlimit(Resource::Nofile, limit) {
                tracing::warn!(%error, "cannot raise the limit of open files");
            }
        }
    }
}

/// Ctrl-C, or a supervisor's request to stop.
struct StopSignal {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl StopSignal {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn received(mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(not(unix))]
impl StopSignal {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    async fn received(self) -> &'static str {
        // Without a signal to wait for, only a fault stops the server.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_of_serve_is_an_environment_variable_too() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        let without: Vec<&str> = serve
            .get_arguments()
            .filter(|arg| arg.get_env().is_none())
            .map(|arg| arg.get_id().as_str())
            .collect();
        assert_eq!(without, ["help"; 0]);
    }
}
