//! One websocket: a single task that reads, runs the operations and writes. Floor 7.
//!
//! While something is written, no operation is polled: a slow client slows its own subscriptions, and nothing queues up for it.

use std::{borrow::Cow, pin::pin, sync::Arc, time::Duration};

use async_graphql::Request;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    MAX_BYTES_BEFORE_ACK, WRITE_BUFFER_BYTES,
    operations::{Operations, Outcome},
    protocol::{ClientMessage, Protocol},
};
use crate::{
    domain::access::{Caller, RequestId, Role},
    http::{
        DRAIN_TIMEOUT,
        answer::{BAD_USER_INPUT, error_response},
        connection::{Socket, TooMuchRead},
        graphql::code_of,
        router::{Shared, log_span_of_operation},
    },
};

/// How long a client may take to take the close frame, and then to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// A close frame's reason may have 123 bytes.
const MAX_REASON_BYTES: usize = 123;

/// Why a session ends.
enum End {
    /// The client has gone, or has said that it goes.
    Gone,
    /// The server closes it, with a code and a reason.
    Close(u16, Cow<'static, str>),
}

impl End {
    fn invalid(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Close(4400, reason.into())
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(error) => Self::Close(1009, error.to_string().into()),
            Error::Utf8(_) => Self::Close(1007, "a text message has to be UTF-8".into()),
            Error::Protocol(error) => Self::Close(1002, error.to_string().into()),
            Error::Io(error)
                if error
                    .get_ref()
                    .is_some_and(|error| error.is::<TooMuchRead>()) =>
            {
                Self::Close(1009, error.to_string().into())
            }
            _ => Self::Gone,
        }
    }
}

/// One websocket.
pub(super) struct Session {
    websocket: WebSocketStream<Socket>,
    shared: Arc<Shared>,
    protocol: Protocol,
    operations: Operations,
    /// The role that the handshake gave, until `connection_init` may give another.
    role: Option<Role>,
    /// The id of the handshake, in the log of all that happens here.
    connection_id: RequestId,
    is_acknowledged: bool,
    /// Bytes handed to the websocket since the last flush.
    unflushed_bytes: usize,
}

impl Session {
    pub(super) fn new(
        websocket: WebSocketStream<Socket>,
        shared: Arc<Shared>,
        protocol: Protocol,
        role: Option<Role>,
        connection_id: RequestId,
    ) -> Self {
        let (operations, is_acknowledged, unflushed_bytes) = (Operations::default(), false, 0);
        Self {
            websocket,
            shared,
            protocol,
            operations,
            role,
            connection_id,
            is_acknowledged,
            unflushed_bytes,
        }
    }

    /// Serves the websocket until one side ends it.
    pub(super) async fn run(mut self) {
        tracing::debug!(protocol = self.protocol.name(), "websocket opened");
        let end = match self.converse().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        // Operations end before the close: a client that does not take it may not keep them.
        self.operations = Operations::default();
        match end {
            End::Gone => tracing::debug!("websocket closed by the client"),
            End::Close(code, reason) => {
                tracing::debug!(code, %reason, "websocket closed by the server");
                if let Some(code) = code_of_close(code) {
                    self.shared.count_refusal(code);
                }
                self.close(code, &reason).await;
            }
        }
    }

    async fn converse(&mut self) -> Result<std::convert::Infallible, End> {
        let shared = Arc::clone(&self.shared);
        let mut stopped = pin!(shared.stopping.cancelled());
        let mut init_overdue = pin!(sleep_until(
            Instant::now() + shared.limits.connection_init_timeout
        ));
        let period = shared.limits.keep_alive;
        let mut keep_alive = interval_at(Instant::now() + period, period);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => return Err(self.finish().await),
                message = self.websocket.next() => {
                    last_heard = Instant::now();
                    self.hear(message.ok_or(End::Gone)??, last_heard).await?;
                }
                outcome = self.operations.next() => self.tell(outcome).await?,
                _ = keep_alive.tick() => {
                    // One that reads slowly comes to our pings late, with everything before them to read first.
                    let last_sign = self.websocket.get_ref().taken_at().max(Some(last_heard));
                    if last_sign.is_some_and(|sign| sign.elapsed() > period * 3) {
                        return Err(End::Gone);
                    }
                    self.send(Message::Ping(Default::default())).await?;
                    if let Some(message) = self.protocol.keep_alive().filter(|_| self.is_acknowledged) {
                        self.send_text(message).await?;
                    }
                }
                () = &mut init_overdue, if !self.is_acknowledged => {
                    return Err(self.refuse_connection(4408, "BAD_USER_INPUT", "connection_init did not come in time").await);
                }
            }
            self.tell_what_is_ready().await?;
            let flushed = self.websocket.flush();
            tokio::select! {
                biased;
                () = &mut stopped => return Err(self.finish().await),
                flushed = flushed => flushed?,
            }
            self.unflushed_bytes = 0;
        }
    }

    /// The server stops: what still comes is not begun, subscriptions end, and queries and mutations that run are answered.
    async fn finish(&mut self) -> End {
        self.operations.stop_subscriptions();
        let answers = async {
            while self.operations.len() > 0 {
                let outcome = self.operations.next().await;
                self.tell(outcome).await?;
            }
            Ok::<_, End>(())
        };
        // The close, which also flushes the answers, needs its time as well.
        match timeout(DRAIN_TIMEOUT.saturating_sub(CLOSE_TIMEOUT), answers).await {
            Ok(Err(end)) => end,
            Ok(Ok(())) | Err(_) => End::Close(1001, "the server is stopping".into()),
        }
    }

    /// Takes up what the client says.
    async fn hear(&mut self, message: Message, taken_at: Instant) -> Result<(), End> {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => return Err(End::invalid("messages are text, not binary")),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(()),
            Message::Close(_) => {
                // The answer to the close frame is queued by now.
                timeout(CLOSE_TIMEOUT, self.websocket.flush()).await.ok();
                return Err(End::Gone);
            }
        };
        if !self.is_acknowledged && text.len() > MAX_BYTES_BEFORE_ACK {
            return Err(End::Close(1009, TooMuchRead.to_string().into()));
        }
        match ClientMessage::parse(self.protocol, &text).map_err(End::invalid)? {
            ClientMessage::Init { token } => self.begin(token).await,
            ClientMessage::Ping => self.send_text(self.protocol.pong()).await,
            ClientMessage::Pong => Ok(()),
            ClientMessage::Subscribe { id, request } => self.start(&id, *request, taken_at).await,
            ClientMessage::Complete { id } => {
                self.operations.stop(&id);
                Ok(())
            }
            ClientMessage::Terminate => Err(End::Close(1000, "".into())),
        }
    }

    async fn begin(&mut self, token: Option<String>) -> Result<(), End> {
        if self.is_acknowledged {
            return Err(End::Close(4429, "Too many initialisation requests".into()));
        }
        if let Some(token) = token {
            self.role = self.shared.gate.role_of_token(&token).ok();
        }
        if self.role.is_none() {
            return Err(self
                .refuse_connection(4401, "UNAUTHENTICATED", "Unauthorized")
                .await);
        }
        self.is_acknowledged = true;
        self.websocket.get_mut().bound_reads(None);
        self.send_text(self.protocol.ack()).await?;
        match self.protocol.keep_alive() {
            Some(message) => self.send_text(message).await,
            None => Ok(()),
        }
    }

    async fn start(&mut self, id: &str, request: Request, taken_at: Instant) -> Result<(), End> {
        let Some(role) = self.role.filter(|_| self.is_acknowledged) else {
            return Err(self
                .refuse_connection(4401, "UNAUTHENTICATED", "Unauthorized")
                .await);
        };
        if self.operations.contains(id) {
            match self.protocol {
                Protocol::Transport => {
                    return Err(End::Close(
                        4409,
                        format!("Subscriber for {id} already exists").into(),
                    ));
                }
                // The older protocol lets a new operation take the place of the old one.
                Protocol::Legacy => self.operations.stop(id),
            }
        }
        let limit = self.shared.limits.max_subscriptions_per_connection;
        if self.operations.len() >= limit {
            let message = format!(
                "this connection runs {limit} operations already, which the option --max-subscriptions-per-connection allows"
            );
            self.shared.count_refusal("RATE_LIMITED");
            let refusal = error_response("RATE_LIMITED", message);
            return self
                .send_text(self.protocol.error(id, &refusal.errors))
                .await;
        }
        match self.shared.graphql.prepare(request) {
            Ok(prepared) => {
                let caller = Caller {
                    role,
                    request_id: self.shared.new_request_id(),
                    taken_at: taken_at.into_std(),
                };
                let log_span = log_span_of_operation(caller.request_id, self.connection_id);
                self.operations
                    .start(id, &self.shared, prepared, caller, log_span);
                Ok(())
            }
            Err(response) => {
                self.shared.count_refusal(code_of(&response));
                self.send_text(self.protocol.error(id, &response.errors))
                    .await
            }
        }
    }

    /// Passes on what an operation has to say.
    async fn tell(&mut self, (id, outcome): (Arc<str>, Outcome)) -> Result<(), End> {
        let text = match outcome {
            Outcome::Next(response) => self.protocol.next(&id, &response),
            Outcome::Refused(response) => self.protocol.error(&id, &response.errors),
            Outcome::Completed => self.protocol.complete(&id),
        };
        self.send_text(text).await
    }

    /// Passes on what else is ready now, so that it goes out in one write; waits for nothing.
    async fn tell_what_is_ready(&mut self) -> Result<(), End> {
        while self.unflushed_bytes < WRITE_BUFFER_BYTES {
            let Some(outcome) = self.operations.next().now_or_never() else {
                break;
            };
            self.tell(outcome).await?;
        }
        Ok(())
    }

    async fn send_text(&mut self, text: String) -> Result<(), End> {
        self.send(Message::text(text)).await
    }

    /// Puts a message into the write buffer, which the loop flushes.
    async fn send(&mut self, message: Message) -> Result<(), End> {
        self.unflushed_bytes += message.len();
        Ok(self.websocket.feed(message).await?)
    }

    /// Says in the protocol's own words, where it has some, why the connection is refused.
    async fn refuse_connection(
        &mut self,
        close_code: u16,
        code: &str,
        reason: &'static str,
    ) -> End {
        if let Some(message) = self.protocol.connection_error(code, reason)
            && let Err(end) = self.send_text(message).await
        {
            return end;
        }
        End::Close(close_code, reason.into())
    }

    /// Sends the close frame and waits a little for the client to close.
    async fn close(mut self, code: u16, reason: &str) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: shorten(reason, MAX_REASON_BYTES).into(),
        };
        let sent = async {
            self.websocket.send(Message::Close(Some(frame))).await?;
            self.websocket.get_mut().shutdown().await.map_err(Error::Io)
        };
        if !matches!(timeout(CLOSE_TIMEOUT, sent).await, Ok(Ok(()))) {
            return;
        }
        // Closing a socket with unread bytes resets it, and the client might lose the close frame.
        self.websocket.get_mut().bound_reads(None);
        let mut unread = [0; 1024];
        let drain =
            async { while matches!(self.websocket.get_mut().read(&mut unread).await, Ok(1..)) {} };
        timeout(CLOSE_TIMEOUT, drain).await.ok();
    }
}

/// What a close that the server decides on counts as; none where nothing was asked that could be refused.
fn code_of_close(code: u16) -> Option<&'static str> {
    match code {
        4401 => Some("UNAUTHENTICATED"),
        1002 | 1007 | 1009 | 4400 | 4409 | 4429 => Some(BAD_USER_INPUT),
        _ => None,
    }
}

/// The beginning of a text that fits into a number of bytes.
fn shorten(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_shortened_between_characters() {
        assert_eq!(shorten("short", 123), "short");
        assert_eq!(shorten("aéé", 4), "aé");
    }
}
