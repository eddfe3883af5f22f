//! `tidings export` and `tidings import`: carries a whole database elsewhere, and says how far it is. Floor 8.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use clap::Args;
use tidings::{
    config::{Config, Database, Log},
    domain::SystemClock,
    store::Store,
    transfer::{self, Step, Tell, Unfinished},
};

use super::progress::Progress;

pub(super) const EXAMPLES: &str = "\
Examples:
  tidings export --database-url sqlite://tidings.db |
    tidings import --database-url postgres://me:secret@localhost/tidings --partitions 16
      Move from SQLite to PostgreSQL with 16 partitions. After an interruption, the same once more goes on
  tidings export --database-url postgres://me:secret@localhost/tidings --output tidings.jsonl
      Write a file. After an interruption, the same once more goes on with it
  tidings import --database-url sqlite://copy.db --input tidings.jsonl
      Read it into a new SQLite file";

const READ_BYTES: usize = 256 << 10;

/// What is exported, and where to.
#[derive(Args)]
pub(super) struct Export {
    /// The file to write, or to go on with where it was cut off [without it: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    log: Log,
}

/// What is imported, and where to.
#[derive(Args)]
pub(super) struct Import {
    /// The file to read [without it: standard input]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    log: Log,
}

fn config(database: Database, log: Log) -> Config {
    Config {
        database,
        log,
        ..Config::default()
    }
}

impl Export {
    /// The configuration, and the file.
    pub(super) fn read(self) -> (Config, Option<PathBuf>) {
        (config(self.database, self.log), self.output)
    }
}

impl Import {
    /// The configuration, and the file.
    pub(super) fn read(self) -> (Config, Option<PathBuf>) {
        (config(self.database, self.log), self.input)
    }
}

async fn open(config: &Config) -> anyhow::Result<Store> {
    let lease = config.background.lease;
    Ok(Store::open(&config.database, lease, Arc::new(SystemClock)).await?)
}

/// Writes a database.
pub(super) async fn export(config: Config, output: Option<PathBuf>) -> anyhow::Result<()> {
    let store = open(&config).await?;
    let (unfinished, target): (_, Box<dyn Write + Send>) = match &output {
        None => (None, Box::new(io::stdout())),
        Some(path) => {
            let unfinished = Unfinished::read(path, store.database_id())?;
            let kept = unfinished.as_ref().map_or(0, |unfinished| unfinished.bytes);
            let file = open_behind(path, kept)
                .with_context(|| format!("cannot write {}", path.display()))?;
            (unfinished, Box::new(Durable(file)))
        }
    };
    let is_piped = output.is_none() && is_pipe();
    let progress = Arc::new(Progress::new("events and entries"));
    let tell: Tell = {
        let progress = progress.clone();
        Arc::new(move |step| match step {
            // Behind the pipe somebody else draws.
            _ if is_piped => {}
            Step::Begun { rows } | Step::Checking { rows } => {
                progress.begin(rows, &format!("Exporting {rows} events and entries …"));
            }
            Step::Done { rows } | Step::Skipped { rows } => progress.advance(rows),
        })
    };
    let exported = transfer::export(&store, &SystemClock, unfinished, target, tell).await;
    progress.end();
    let exported = exported?;
    store.close().await;
    writeln!(
        io::stderr(),
        "Exported: {} events, {} entries (in {:.1} s)",
        exported.events,
        exported.entries,
        progress.seconds()
    )
    .ok();
    Ok(())
}

/// Takes an export over.
pub(super) async fn import(config: Config, input: Option<PathBuf>) -> anyhow::Result<()> {
    let source: Box<dyn Read + Send> = match &input {
        None => Box::new(io::stdin()),
        Some(path) => {
            let file = File::open(path);
            Box::new(file.with_context(|| format!("cannot read {}", path.display()))?)
        }
    };
    let store = open(&config).await?;
    let progress = Arc::new(Progress::new("events and entries"));
    let skipped = Arc::new(AtomicU64::new(0));
    let tell: Tell = {
        let (progress, skipped) = (progress.clone(), skipped.clone());
        Arc::new(move |step| match step {
            Step::Begun { rows } => {
                progress.begin(rows, &format!("Importing {rows} events and entries …"));
            }
            Step::Done { rows } => progress.advance(rows),
            Step::Skipped { rows } => {
                skipped.fetch_add(rows, Ordering::Relaxed);
                progress.advance(rows);
            }
            Step::Checking { rows } => {
                progress.begin(rows, &format!("Checking {rows} events and entries …"));
            }
        })
    };
    let source = Box::new(BufReader::with_capacity(READ_BYTES, source));
    let imported = transfer::import(&store, source, tell).await;
    progress.end();
    let imported = imported?;
    store.close().await;
    let seconds = progress.seconds();
    let skipped = skipped.load(Ordering::Relaxed);
    let rows = imported.events + imported.entries;
    writeln!(
        io::stdout(),
        "Imported: {} events, {} entries (in {seconds:.1} s, {:.0} a second with the check; {skipped} were there before)\n\
         Checked: what is stored is what was exported; the checksum of the events is {}",
        imported.events,
        imported.entries,
        (rows - skipped.min(rows)) as f64 / seconds,
        imported.events_checksum,
    )
    .ok();
    if imported.inactive_handlers > 0 {
        tracing::warn!(
            count = imported.inactive_handlers,
            "event handlers are not active, for SQLite cannot run functions in SQL"
        );
    }
    Ok(())
}

/// Opens a file to write behind its first bytes; what is behind them is cut off.
fn open_behind(path: &Path, kept: u64) -> io::Result<File> {
    use std::io::Seek;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    if file.metadata()?.is_file() {
        file.set_len(kept)?;
        file.seek(io::SeekFrom::Start(kept))?;
    }
    Ok(file)
}

/// A file that is on the disk once it is flushed.
struct Durable(File);

impl Write for Durable {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Pipes and devices have no disk.
        match self.0.metadata()?.is_file() {
            true => self.0.sync_all(),
            false => Ok(()),
        }
    }
}

/// Whether standard output goes to another program.
fn is_pipe() -> bool {
    #[cfg(unix)]
    {
        use std::os::{fd::AsFd, unix::fs::FileTypeExt};
        let output = io::stdout().as_fd().try_clone_to_owned();
        let kind = output.and_then(|output| File::from(output).metadata());
        kind.is_ok_and(|kind| kind.file_type().is_fifo())
    }
    #[cfg(not(unix))]
    {
        false
    }
}
