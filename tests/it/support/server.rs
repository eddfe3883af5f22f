//! The real `tidings` binary as a process of its own, on a database of the caller's choice.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the server with the counting domain finds its arguments, each in a line.
pub const COUNTING_ARGUMENTS: &str = "COUNTING_SERVER_ARGUMENTS";

const START_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);

/// A running server. Dropping it kills it; after a failed test its output is printed.
pub struct TestServer {
    options: Options,
    child: Child,
    address: SocketAddr,
    output: Output,
    start_time: Duration,
}

/// What a server is started with.
#[derive(Clone)]
struct Options {
    database_url: String,
    arguments: Vec<String>,
    ignores_file_limit: bool,
    /// Whether it is this test binary with the counting domain.
    is_counting: bool,
    environment: Vec<(String, String)>,
}

/// Everything that the server has printed, its two outputs interleaved.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<String>>);

/// A server that is not started yet.
pub struct TestServerBuilder(Options);

impl TestServerBuilder {
    /// Adds arguments of `tidings serve`.
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.0
            .arguments
            .extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Lets writes past the limit of a file's size (RLIMIT_FSIZE) fail, where the signal would end the process otherwise.
    pub fn ignore_file_limit(mut self) -> Self {
        self.0.ignores_file_limit = true;
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.0.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server and returns once it is ready.
    pub fn start(self) -> TestServer {
        TestServer::spawn(self.0, 0)
            .unwrap_or_else(|output| panic!("the server does not start:\n{output}"))
    }

    /// Starts a server that is to refuse to: its exit status and its output.
    pub fn start_and_fail(self) -> (ExitStatus, String) {
        let output = self
            .0
            .command(0)
            .output()
            .expect("the tidings binary starts");
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        assert!(
            !output.status.success(),
            "the server was to refuse to start, but it ran and ended:\n{text}"
        );
        (output.status, text)
    }
}

impl TestServer {
    /// A server on this database, still to be given options: `TestServer::on(&url).arguments(["--partitions", "4"]).start()`.
    pub fn on(database_url: &str) -> TestServerBuilder {
        TestServerBuilder(Options {
            database_url: database_url.to_owned(),
            arguments: Vec::new(),
            ignores_file_limit: false,
            is_counting: false,
            environment: Vec::new(),
        })
    }

    /// A server with the counting domain instead of the built-in one: see `support::counting`.
    pub fn counting(database_url: &str) -> TestServerBuilder {
        let mut builder = TestServer::on(database_url);
        builder.0.is_counting = true;
        builder
    }

    /// Starts a server without further options.
    pub fn start(database_url: &str) -> TestServer {
        TestServer::on(database_url).start()
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `http://127.0.0.1:PORT/graphql`
    pub fn graphql_url(&self) -> String {
        format!("http://{}/graphql", self.address)
    }

    /// `ws://127.0.0.1:PORT/graphql`
    pub fn ws_url(&self) -> String {
        format!("ws://{}/graphql", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From the start of the process to the first answer that it is ready.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// All that it has printed until now.
    pub fn output(&self) -> String {
        self.output.text()
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the server runs, on Linux");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a process has VmRSS");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .expect("VmRSS is a number");
        kib * 1024
    }

    /// Ends it at once, as a crash would, and returns when it is gone.
    pub fn kill9(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Asks it to stop, without waiting.
    pub fn sigterm(&self) {
        self.signal("TERM");
    }

    /// Sends it a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        // A builtin of the shell: the standard library sends no signal but SIGKILL, and /bin/kill need not be there.
        let status = Command::new("/bin/sh")
            .args(["-c", &format!("kill -{name} {}", self.pid())])
            .status();
        assert!(
            status.expect("/bin/sh starts").success(),
            "the server runs no more:\n{}",
            self.output()
        );
    }

    /// Asks it to stop and waits for its end.
    ///
    /// # Panics
    ///
    /// Where it has not ended within `limit`.
    pub fn sigterm_and_wait(&mut self, limit: Duration) -> ExitStatus {
        self.sigterm();
        self.wait(limit)
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// Where it has not ended within `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(
                asked.elapsed() < limit,
                "the server still runs {limit:?} after it was asked to stop:\n{}",
                self.output()
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Starts it again on the same port and database, after its end (or ends it first, as a crash would).
    pub fn restart(&mut self) {
        if self
            .child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
        {
            self.kill9();
        }
        let before = self.output();
        let new = TestServer::spawn(self.options.clone(), self.address.port());
        *self = new.unwrap_or_else(|output| panic!("the server does not start again:\n{output}"));
        self.output.prepend(&before);
    }

    /// Starts the process and waits until it is ready; its output where that fails.
    fn spawn(options: Options, port: u16) -> Result<TestServer, String> {
        // The HTTP clients of tests need it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let started = Instant::now();
        let mut command = options.command(port);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the tidings binary starts");
        let output = Output::default();
        output.follow(child.stdout.take().expect("stdout is a pipe"));
        output.follow(child.stderr.take().expect("stderr is a pipe"));

        let mut address = None;
        let failure = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break format!("it ended with {status}");
            }
            address = address.or_else(|| printed_address(&output.text()));
            if let Some(address) = address.filter(|address| is_ready(*address)) {
                return Ok(TestServer {
                    options,
                    child,
                    address,
                    output,
                    start_time: started.elapsed(),
                });
            }
            if started.elapsed() > START_LIMIT {
                break format!("it is not ready after {START_LIMIT:?}");
            }
            std::thread::sleep(PAUSE);
        };
        let _ = child.kill();
        let _ = child.wait();
        Err(format!("{failure}\n{}", output.text()))
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let end = ended.map_or("running".to_owned(), |status| match status.signal() {
                Some(signal) => format!("ended by signal {signal}"),
                None => format!("ended, {status}"),
            });
            eprintln!(
                "--- output of the server on {} ({end})\n{}---",
                self.address,
                self.output()
            );
        }
    }
}

impl Options {
    fn command(&self, port: u16) -> Command {
        if self.is_counting {
            return self.counting_command(port);
        }
        let binary = env!("CARGO_BIN_EXE_tidings");
        let mut command = if self.ignores_file_limit {
            // The standard library cannot set how a signal is taken, the shell can.
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", binary]);
            shell
        } else {
            Command::new(binary)
        };
        remove_variables(&mut command);
        command
            .args([
                "serve",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--database-url",
                &self.database_url,
            ])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    fn counting_command(&self, port: u16) -> Command {
        let binary = std::env::current_exe().expect("this program has a path");
        let listen = format!("127.0.0.1:{port}");
        let own = ["--listen", &listen, "--database-url", &self.database_url].map(str::to_owned);
        let arguments: Vec<String> = own.into_iter().chain(self.arguments.clone()).collect();
        let mut command = Command::new(binary);
        remove_variables(&mut command);
        command
            .args([
                "--exact",
                "support::counting::serve",
                "--ignored",
                "--nocapture",
            ])
            .env(COUNTING_ARGUMENTS, arguments.join("\n"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }
}

/// Nothing that the tests run with is meant for the server.
fn remove_variables(command: &mut Command) {
    let is_ours =
        |name: &str| name.starts_with("TIDINGS_") || name == "DATABASE_URL" || name == "RUST_LOG";
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_ours) {
            command.env_remove(name);
        }
    }
}

impl Output {
    /// Collects what comes out of a pipe until it closes.
    fn follow(&self, pipe: impl Read + Send + 'static) {
        let output = self.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                output.lock().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
    }

    fn text(&self) -> String {
        self.lock().clone()
    }

    fn prepend(&self, text: &str) {
        self.lock().insert_str(0, text);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address in a line with `http://127.0.0.1:PORT`.
fn printed_address(output: &str) -> Option<SocketAddr> {
    let (_, rest) = output.split_once("http://127.0.0.1:")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // Only a whole line: the port of half a line would be another one.
    let port = rest.contains('\n').then(|| digits.parse().ok())??;
    Some(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Whether `GET /readyz` answers 200.
fn is_ready(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut status_line = String::new();
        BufReader::new(stream).read_line(&mut status_line)?;
        std::io::Result::Ok(status_line)
    };
    ask().is_ok_and(|line| line.starts_with("HTTP/1.1 200"))
}

/// A port on 127.0.0.1 that nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("127.0.0.1 has a free port");
    listener
        .local_addr()
        .expect("a listener has an address")
        .port()
}
