//! PostgreSQL for tests and benchmarks: a private, throw-away cluster made from the machine's own server programs.
//!
//! One cluster serves a whole run, whoever runs it: under nextest (a process for each test) the run is the nextest
//! process, under `cargo test` it is the test binary. The first one who asks makes the cluster under a file lock, the
//! others find it. A keeper (a few lines of shell, in a process group of its own) waits until the run is over, however
//! it ended, then stops the server and removes its folder. A cluster whose keeper was killed as well is swept up by the
//! next run: a keeper holds a file lock as long as it lives, so nobody's living cluster is ever touched.
//!
//! With `TEST_DATABASE_URL` no shared cluster is made: databases are created on that server and dropped afterwards.

// Benchmarks take this file from elsewhere, so its part is named by its path.
#[path = "postgres_machine.rs"]
mod machine;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sea_orm::sqlx::{self, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

use self::machine::{User, free_port, id_of, server_programs, step_down};

const FOLDER_PREFIX: &str = "tidings-postgres-";
const DATABASE_PREFIX: &str = "tidings_test_";
const SUPERUSER: &str = "postgres";
const START_TRIES: usize = 5;
/// A database of a killed run on somebody's server (`TEST_DATABASE_URL`) is dropped once it is this old.
const LEFTOVER_AGE: Duration = Duration::from_secs(6 * 3600);

/// Waits for the end of a run, then stops its server and removes its folder. Its standard input is the lock file of
/// the folder, so the lock lives exactly as long as it does. A server is stopped only where it stands in this folder.
/// Arguments: the process that the run is, and the folder.
const KEEPER: &str = r#"
trap '' HUP INT TERM
is_running() { if [ -d /proc/self ]; then [ -d "/proc/$1" ]; else kill -0 "$1" 2>/dev/null; fi; }
while is_running "$1" && [ -d "$2/data" ]; do sleep 0.2; done
server=$(head -n 1 "$2/data/postmaster.pid" 2>/dev/null)
if [ -n "$server" ] && [ -d /proc/self ] && [ "$(readlink "/proc/$server/cwd")" != "$2/data" ]; then server=; fi
if [ -n "$server" ] && kill -QUIT "$server" 2>/dev/null; then
    tries=0
    while is_running "$server" && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
fi
cd / && rm -rf "$2"
"#;

/// A PostgreSQL server that tests make databases on.
pub struct Cluster {
    /// Where an administrator connects: `postgres://postgres@127.0.0.1:PORT`, or what `TEST_DATABASE_URL` says.
    admin: PgConnectOptions,
    admin_url: url::Url,
    /// Of a cluster that this run made; `None` for the one of `TEST_DATABASE_URL`.
    home: Option<Home>,
    is_private: bool,
}

struct Home {
    folder: PathBuf,
    bin: PathBuf,
    user: Option<User>,
}

/// A database of its own for one test.
pub struct Database {
    /// `postgres://…/NAME`, as the server's `--database-url` takes it.
    pub url: String,
    pub name: String,
    /// The server that it has to be dropped from. A cluster of our own goes as a whole at the end of the run:
    /// DROP DATABASE forces a checkpoint, which took a second of every test.
    drop_from: Option<PgConnectOptions>,
}

impl Cluster {
    /// The cluster that all tests of this run share. Nobody stops it; who wants to takes [`Cluster::private`].
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var("TEST_DATABASE_URL") {
            Ok(url) if !url.is_empty() => Cluster::external(&url),
            _ => Cluster::find_or_make(),
        })
    }

    /// A cluster for one test alone, which may stop and start it. It goes when the value is dropped.
    pub fn private() -> Cluster {
        let mut cluster = Cluster::make(&private_key(), std::process::id());
        cluster.is_private = true;
        cluster
    }

    /// A standby of this cluster, which must be a private one; commits wait for it from now on, where it is synchronous.
    pub fn standby(&self, is_synchronous: bool) -> Cluster {
        assert!(self.is_private, "standbys are for Cluster::private()");
        let home = Home::make(&private_key(), std::process::id());
        let port = self.port().to_string();
        let arguments = ["--host=127.0.0.1", "--username=postgres", "--port", &port];
        let copy = [
            "--pgdata=data",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        ];
        home.run("pg_basebackup", &[&arguments[..], &copy[..]].concat())
            .expect("the cluster can be copied");
        let auto_conf = home.folder.join("data/postgresql.auto.conf");
        let settings = fs::read_to_string(&auto_conf).expect("its settings can be read");
        // What comes last counts.
        fs::write(&auto_conf, settings + &home.settings()).expect("its settings can be written");
        let mut standby = Cluster::start_at_free_port(home);
        standby.is_private = true;
        if is_synchronous {
            execute(
                &self.admin,
                "ALTER SYSTEM SET synchronous_standby_names = '*'",
            );
            execute(&self.admin, "SELECT pg_reload_conf()");
            let is_sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
            let began = std::time::Instant::now();
            while count(&self.admin, is_sync) == 0 {
                assert!(began.elapsed() < Duration::from_secs(30), "it follows");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        standby
    }

    /// Makes a standby the primary, and returns once it is.
    pub fn promote(&self) {
        self.home()
            .pg_ctl(&["promote", "--wait"])
            .expect("the standby can be promoted");
    }

    /// Runs a statement as the administrator.
    pub fn execute(&self, statement: &str) {
        execute(&self.admin, statement);
    }

    /// The URL of a database with this name on this cluster.
    pub fn url_of(&self, name: &str) -> String {
        let mut url = self.admin_url.clone();
        url.set_path(name);
        url.into()
    }

    /// A database that is on this cluster by other ways than [`Cluster::create_database`].
    pub fn database(&self, name: &str) -> Database {
        Database {
            url: self.url_of(name),
            name: name.to_owned(),
            drop_from: None,
        }
    }

    /// Makes an empty database.
    pub fn create_database(&self) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{DATABASE_PREFIX}{}_{}_{}",
            seconds_since_epoch(),
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        // template0 lets no one connect, so copying it never waits. Copying by way of the log (the default) is ten
        // times faster than STRATEGY file_copy, which forces two checkpoints.
        execute(
            &self.admin,
            &format!("CREATE DATABASE {name} TEMPLATE template0"),
        );
        Database {
            url: self.url_of(&name),
            name,
            drop_from: self.home.is_none().then(|| self.admin.clone()),
        }
    }

    /// The path of one of PostgreSQL's programs: `cluster.bin("pgbench")`.
    pub fn bin(&self, program: &str) -> PathBuf {
        let folder = match &self.home {
            Some(home) => home.bin.clone(),
            None => server_programs(),
        };
        let path = folder.join(program);
        assert!(
            path.is_file(),
            "{} is missing; Debian's package postgresql-contrib has it",
            path.display()
        );
        path
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.admin.get_port()
    }

    /// The process id of the postmaster; its children are the server's other processes.
    pub fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.home().folder.join("data/postmaster.pid"))
            .expect("the server runs");
        text.lines()
            .next()
            .and_then(|line| line.trim().parse().ok())
            .expect("postmaster.pid begins with a process id")
    }

    /// Stops the server as a power cut would: no checkpoint, connections cut. Data that was committed stays.
    pub fn stop_immediate(&self) {
        assert!(
            self.is_private,
            "the shared cluster is not to be stopped: take Cluster::private()"
        );
        self.home()
            .pg_ctl(&["stop", "--wait", "--mode=immediate"])
            .expect("the server stops");
    }

    /// Starts the server again on the same port, and returns once it accepts connections.
    pub fn start(&self) {
        assert!(self.is_private, "the shared cluster always runs");
        self.home()
            .start(self.port())
            .expect("the server starts again");
    }

    fn home(&self) -> &Home {
        self.home
            .as_ref()
            .expect("only a cluster that the tests made can be stopped and started")
    }

    fn external(url: &str) -> Cluster {
        let admin: PgConnectOptions = url.parse().expect("TEST_DATABASE_URL is a postgres:// URL");
        drop_leftovers(&admin);
        let admin_url = url.parse().expect("TEST_DATABASE_URL is a URL");
        Cluster {
            admin,
            admin_url,
            home: None,
            is_private: false,
        }
    }

    fn at(port: u16, home: Home) -> Cluster {
        let admin_url = format!("postgres://{SUPERUSER}@127.0.0.1:{port}/postgres");
        let admin = admin_url.parse().expect("this is a postgres:// URL");
        let admin_url = admin_url.parse().expect("this is a URL");
        Cluster {
            admin,
            admin_url,
            home: Some(home),
            is_private: false,
        }
    }

    /// The cluster of this run, made by whoever comes first.
    fn find_or_make() -> Cluster {
        let (key, run) = match std::env::var("NEXTEST_RUN_ID") {
            Ok(run_id) => (run_id, std::os::unix::process::parent_id()),
            Err(_) => (format!("run-{}", std::process::id()), std::process::id()),
        };
        let folder = folder_of(&key);
        fs::create_dir_all(&folder).expect("a folder can be made in the temp folder");
        let lock = File::create(folder.join("make.lock")).expect("a file can be made in it");
        lock.lock().expect("the file can be locked");
        if let Ok(port) = fs::read_to_string(folder.join("port")) {
            let port = port.parse().expect("the file holds a port");
            return Cluster::at(
                port,
                Home {
                    folder,
                    bin: server_programs(),
                    user: step_down(),
                },
            );
        }
        assert!(
            !folder.join("data").exists(),
            "an earlier test of this run could not start PostgreSQL: see its failure"
        );
        Cluster::make(&key, run)
    }

    /// Makes a cluster that lives until the process `run` is gone.
    fn make(key: &str, run: u32) -> Cluster {
        let home = Home::make(key, run);
        home.run(
            "initdb",
            &[
                "--pgdata=data",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
            ],
        )
        .unwrap_or_else(|error| {
            panic!("{error}\nThe temp folder must be open to the user that PostgreSQL runs as.")
        });
        let auto_conf = home.folder.join("data/postgresql.auto.conf");
        fs::write(auto_conf, home.settings()).expect("its settings can be written");
        Cluster::start_at_free_port(home)
    }

    fn start_at_free_port(home: Home) -> Cluster {
        let mut failure = String::new();
        for _ in 0..START_TRIES {
            let port = free_port();
            match home.start(port) {
                Ok(()) => {
                    fs::write(home.folder.join("port"), port.to_string())
                        .expect("the port can be written");
                    return Cluster::at(port, home);
                }
                Err(error) => failure = error,
            }
        }
        panic!("PostgreSQL does not start:\n{failure}");
    }
}

impl Database {
    /// Runs a statement beside the server.
    pub fn execute(&self, statement: &str) {
        let options: PgConnectOptions = self.url.parse().expect("its URL is one of PostgreSQL");
        execute(&options, statement);
    }

    /// The one text that a query finds.
    pub async fn text(&self, query: &str) -> String {
        let options: PgConnectOptions = self.url.parse().expect("its URL is one of PostgreSQL");
        let mut connection = PgConnection::connect_with(&options)
            .await
            .expect("it is there");
        let query = sqlx::AssertSqlSafe(query);
        let text = sqlx::query_scalar(query).fetch_one(&mut connection).await;
        text.expect("it is a query")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(home) = self.home.as_ref().filter(|_| self.is_private) else {
            return;
        };
        let _ = home.pg_ctl(&["stop", "--wait", "--mode=immediate"]);
        let _ = fs::remove_dir_all(&home.folder);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(admin) = &self.drop_from {
            execute(
                admin,
                &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
            );
        }
    }
}

impl Home {
    /// A folder that lives until the process `run` is gone, with an empty one for the data.
    fn make(key: &str, run: u32) -> Home {
        sweep_leftovers();
        let home = Home {
            folder: folder_of(key),
            bin: server_programs(),
            user: step_down(),
        };
        let data = home.folder.join("data");
        fs::create_dir_all(&data).expect("a folder can be made in the temp folder");
        for folder in [&home.folder, &data] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                .expect("its mode can be set");
            if let Some(user) = &home.user {
                std::os::unix::fs::chown(folder, Some(user.uid), Some(user.gid))
                    .expect("root can give it away");
            }
        }
        home.start_keeper(run);
        home
    }

    /// What differs from PostgreSQL's defaults; durability does not.
    fn settings(&self) -> String {
        format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nmax_connections = 200\n",
            self.folder.display()
        )
    }

    fn start(&self, port: u16) -> Result<(), String> {
        let options = format!("--options=-p {port}");
        self.pg_ctl(&["start", "--wait", "--silent", "--log=log", &options])
            .map_err(|error| {
                format!(
                    "{error}\n{}",
                    fs::read_to_string(self.folder.join("log")).unwrap_or_default()
                )
            })
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Result<(), String> {
        let mut all = arguments.to_vec();
        all.push("--pgdata=data");
        self.run("pg_ctl", &all)
    }

    /// Runs one of the server's programs as the user that owns the data.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        // Output goes to a file: a server that inherits a pipe would hold it open for ever.
        let log_path = self.folder.join(format!("{program}.log"));
        let log = File::create(&log_path).map_err(|error| error.to_string())?;
        let status = self
            .command(self.bin.join(program))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .status()
            .map_err(|error| format!("{program}: {error}"))?;
        if status.success() {
            return Ok(());
        }
        Err(format!(
            "{program} {status}:\n{}",
            fs::read_to_string(&log_path).unwrap_or_default()
        ))
    }

    #[expect(
        clippy::zombie_processes,
        reason = "the keeper outlives this process, whose last act it waits for"
    )]
    fn start_keeper(&self, run: u32) {
        // Renamed once it is locked: a sweep of another run finds it locked or not at all.
        let lock = File::create(self.folder.join("keeper.new"))
            .expect("a file can be made in a new folder");
        lock.lock().expect("nobody else has locked it");
        fs::rename(
            self.folder.join("keeper.new"),
            self.folder.join("keeper.lock"),
        )
        .expect("it can be renamed");
        self.command("/bin/sh")
            .args(["-c", KEEPER, "tidings-postgres-keeper", &run.to_string()])
            .arg(&self.folder)
            .stdin(lock)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("/bin/sh starts");
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.folder).env("LC_ALL", "C");
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

/// For a cluster of one test's own.
fn private_key() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("private-{}-{count}", std::process::id())
}

fn folder_of(key: &str) -> PathBuf {
    let temp = std::env::temp_dir();
    // Where the temp folder is a link, the server's own name of its folder would be another.
    fs::canonicalize(&temp)
        .unwrap_or(temp)
        .join(format!("{FOLDER_PREFIX}{key}"))
}

/// Removes what is left of clusters whose run and keeper were both killed.
fn sweep_leftovers() {
    let own_uid = step_down().map(|user| user.uid).or_else(|| id_of(&["-u"]));
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry
            .metadata()
            .is_ok_and(|metadata| metadata.is_dir() && Some(metadata.uid()) == own_uid);
        if !is_ours
            || !entry
                .file_name()
                .to_string_lossy()
                .starts_with(FOLDER_PREFIX)
        {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join("keeper.lock")) else {
            continue;
        };
        if lock.try_lock().is_err() {
            continue;
        }
        let home = Home {
            folder: entry.path(),
            bin: server_programs(),
            user: step_down(),
        };
        let _ = home.pg_ctl(&["stop", "--wait", "--mode=immediate"]);
        let _ = fs::remove_dir_all(entry.path());
    }
}

fn drop_leftovers(admin: &PgConnectOptions) {
    let like = format!("{}%", DATABASE_PREFIX.replace('_', "\\_"));
    let names: Vec<String> = block_on(async {
        let mut connection = connect(admin).await;
        let names =
            sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE datname LIKE $1")
                .bind(like);
        names
            .fetch_all(&mut connection)
            .await
            .expect("the server lists its databases")
    });
    for name in names {
        let made_at = name
            .strip_prefix(DATABASE_PREFIX)
            .and_then(|rest| rest.split('_').next()?.parse::<u64>().ok());
        if made_at.is_some_and(|made_at| made_at + LEFTOVER_AGE.as_secs() < seconds_since_epoch()) {
            execute(admin, &format!("DROP DATABASE IF EXISTS {name}"));
        }
    }
}

/// By the wall clock: the age of what other runs have left behind is meant.
fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970")
        .as_secs()
}

async fn connect(options: &PgConnectOptions) -> PgConnection {
    options
        .clone()
        .connect()
        .await
        .unwrap_or_else(|error| panic!("cannot connect to PostgreSQL: {error}"))
}

fn execute(options: &PgConnectOptions, statement: &str) {
    block_on(async {
        let mut connection = connect(options).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
        let _ = connection.close().await;
    });
}

fn count(options: &PgConnectOptions, query: &str) -> i64 {
    block_on(async {
        let mut connection = connect(options).await;
        let count = sqlx::query_scalar(sqlx::AssertSqlSafe(query));
        let count = count.fetch_one(&mut connection).await;
        count.unwrap_or_else(|error| panic!("{query}: {error}"))
    })
}

/// Runs a future to its end on a thread of its own, so that tests with and without a runtime can call this.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let run = || {
            let runtime: io::Result<_> = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime starts").block_on(future)
        };
        scope
            .spawn(run)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
