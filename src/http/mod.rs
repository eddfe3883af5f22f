//! HTTP and websockets: listens, lets in, answers, and stops in order. Floor 7.

mod access;
mod answer;
mod body;
mod connection;
pub mod console;
mod graphql;
mod health;
mod metrics;
mod parameters;
mod router;
mod websocket;

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    access::Gate,
    answer::UNAVAILABLE,
    connection::{Connection, Socket},
    router::Shared,
};
use crate::{app::App, config::Config, graphql::Graphql};

/// How long connections may take to finish what they do once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that was never used is left open then.
const UNUSED_DRAIN_TIMEOUT: Duration = Duration::from_millis(250);
/// The head of a request has to fit in, and a body is read in pieces of at most this size.
const MAX_READ_BUFFER_BYTES: usize = 64 * 1024;
/// How long to wait where the system has no room for another connection.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Why the server does not listen.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is taken, or not one of this machine's.
    #[error(
        "cannot listen on {address}: choose another address with --listen (port 0 takes a free one)"
    )]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The listener has no address.
    #[error("the listener has no address")]
    NoAddress(#[source] io::Error),
    /// Everybody on the network could write.
    #[error(
        "other machines could write to a server on {0} without a token: add --token admin=SECRET (or TIDINGS_TOKEN), or listen on 127.0.0.1"
    )]
    OpenToAll(SocketAddr),
}

/// A server that runs until it is stopped or dropped.
pub struct Server {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
}

/// Listens on the address of the configuration.
///
/// # Errors
/// The address cannot be listened on.
pub async fn bind(config: &Config) -> Result<TcpListener, ServeError> {
    let address = config.listen.address;
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

/// Serves on a listener until the handle is stopped or dropped, or the app stops.
///
/// # Errors
/// The listener is open to other machines, and there is no token.
pub fn serve(
    listener: TcpListener,
    graphql: Graphql,
    app: Arc<App>,
    config: &Config,
) -> Result<Server, ServeError> {
    let local_addr = listener.local_addr().map_err(ServeError::NoAddress)?;
    if config.access.tokens.is_empty() && !local_addr.ip().is_loopback() {
        return Err(ServeError::OpenToAll(local_addr));
    }
    let stopping = app.stopping().child_token();
    let shared = Arc::new(Shared::new(
        graphql,
        app,
        Gate::new(&config.access),
        config.limits.clone(),
        stopping,
    ));
    shared
        .tasks
        .spawn(accept_connections(listener, Arc::clone(&shared)));
    Ok(Server { local_addr, shared })
}

impl Server {
    /// The address that it listens on, with the real port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Cancelled once the server begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.shared.stopping.clone()
    }

    /// Accepts nothing more, finishes the requests that run, and closes websockets; returns within some seconds whatever clients do.
    pub async fn stop(self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        if timeout(
            DRAIN_TIMEOUT + Duration::from_secs(1),
            self.shared.tasks.wait(),
        )
        .await
        .is_err()
        {
            tracing::warn!(
                connections = self.shared.tasks.len(),
                "connections were cut off"
            );
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
    }
}

async fn accept_connections(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
            refuse_connection(&stream);
            shared.count_refusal(UNAVAILABLE);
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot send without delay");
        }
        let connection = Arc::new(Connection::new(place));
        shared
            .tasks
            .spawn(serve_connection(stream, connection, Arc::clone(&shared)));
    }
}

/// Whether an error of `accept` is about the connection that was to be accepted, and not about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// Says that there are too many connections. A client that does not take these few bytes at once gets nothing.
fn refuse_connection(stream: &TcpStream) {
    const BODY: &str = r#"{"errors":[{"message":"too many connections","extensions":{"code":"UNAVAILABLE","outcome":"NOT_DONE","retryAfterMs":1000}}]}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
         content-type: application/json; charset=utf-8\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len(),
    );
    if let Err(error) = stream.try_write(answer.as_bytes()) {
        tracing::debug!(%error, "a connection too many was dropped without a word");
    }
    tracing::warn!("too many connections; --max-connections allows no more");
}

async fn serve_connection(stream: TcpStream, connection: Arc<Connection>, shared: Arc<Shared>) {
    let socket = Socket::new(stream, shared.limits.send_timeout);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.header_timeout)
        .max_buf_size(MAX_READ_BUFFER_BYTES);
    let service = {
        let (shared, connection) = (Arc::clone(&shared), Arc::clone(&connection));
        service_fn(move |request| {
            let (shared, connection) = (Arc::clone(&shared), Arc::clone(&connection));
            async move { Ok::<_, Infallible>(router::handle(&shared, &connection, request).await) }
        })
    };
    let mut exchange = pin!(
        builder
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades()
    );
    let outcome = tokio::select! {
        outcome = exchange.as_mut() => outcome,
        () = shared.stopping.cancelled() => {
            exchange.as_mut().graceful_shutdown();
            let deadline = Instant::now() + DRAIN_TIMEOUT;
            loop {
                match timeout(UNUSED_DRAIN_TIMEOUT, exchange.as_mut()).await {
                    Ok(outcome) => break outcome,
                    Err(_) if !connection.is_used() || Instant::now() > deadline => return,
                    Err(_) => {}
                }
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection broke off");
    }
}
