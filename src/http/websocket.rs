//! GraphQL over websockets: the handshake, and one task for each connection. Floor 7.

mod operations;
mod protocol;
mod session;

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header},
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role as Side, WebSocketConfig},
    },
};
use tracing::Instrument;

use self::{protocol::Protocol, session::Session};
use super::{
    answer::Refusal,
    connection::{Connection, Socket},
    router::{Shared, log_span},
};
use crate::domain::access::{RequestId, Role};

/// Each connection keeps a buffer of this size, so it is small.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// What is ready is collected up to about this size before it is written; each connection may keep a buffer of twice that.
const WRITE_BUFFER_BYTES: usize = 8 * 1024;

/// What is read until the connection is acknowledged: everybody may send that much, and a token fits in.
/// The socket counts it, as the limits of a `WebSocketStream` cannot be changed once it is made.
const MAX_BYTES_BEFORE_ACK: usize = 16 * 1024;

/// Whether a request wants to become a websocket.
pub(super) fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET
        && request.headers().contains_key(header::UPGRADE)
        && has_token(request.headers(), &header::UPGRADE, "websocket")
}

/// Whether a header's list holds a word.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// Answers the handshake; the connection goes on in a task of its own, and has the id of the handshake's request.
///
/// A client that offers no protocol of ours is refused here and not by a close code after the handshake (4406): browsers give up on
/// a handshake that accepts none of what they offered, so that the code would never be seen, and other clients can read the text.
pub(super) fn upgrade(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
    request_id: RequestId,
) -> Result<Response<Body>, Refusal> {
    let headers = request.headers();
    let Some(protocol) = Protocol::choose(headers) else {
        return Err(Refusal::bad_input(
            "the websocket needs a subprotocol (Sec-WebSocket-Protocol): graphql-transport-ws, or the older graphql-ws",
        ));
    };
    let Some(key) = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|_| has_token(headers, &header::CONNECTION, "upgrade"))
    else {
        return Err(Refusal::bad_input(
            "a websocket handshake needs `Connection: Upgrade` and Sec-WebSocket-Key",
        ));
    };
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version.as_bytes() != b"13")
    {
        let refusal = Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            super::answer::BAD_USER_INPUT,
            "the version of the websocket has to be 13",
        );
        let version = HeaderValue::from_static("13");
        return Err(refusal.with_header(header::SEC_WEBSOCKET_VERSION, version));
    }
    let Ok(role) = role_before_init(shared, headers) else {
        return Err(Refusal::unauthenticated());
    };
    let accept =
        HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is ASCII");

    let on_upgrade = hyper::upgrade::on(&mut request);
    let counted = shared.app.metrics().websocket();
    let task = run(
        on_upgrade,
        Arc::clone(shared),
        Arc::clone(connection),
        protocol,
        role,
        request_id,
    );
    let task = async move {
        task.await;
        drop(counted);
    };
    shared.tasks.spawn(task.instrument(log_span(request_id)));

    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(protocol.name()),
    );
    Ok(response)
}

/// The role by the handshake's own header; `None` where it has none, so that `connection_init` has to bring the token.
///
/// # Errors
/// The header's token is unknown.
fn role_before_init(
    shared: &Shared,
    headers: &HeaderMap,
) -> Result<Option<Role>, super::access::Refused> {
    match shared.gate.role_of_headers(headers) {
        Ok(role) => Ok(Some(role)),
        Err(refused) if headers.contains_key(header::AUTHORIZATION) => Err(refused),
        Err(_) => Ok(None),
    }
}

async fn run(
    on_upgrade: OnUpgrade,
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    protocol: Protocol,
    role: Option<Role>,
    connection_id: RequestId,
) {
    let upgraded = match on_upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            return tracing::debug!(%error, "a websocket handshake broke off");
        }
    };
    let parts = match upgraded.downcast::<TokioIo<Socket>>() {
        Ok(parts) => parts,
        Err(_) => {
            return tracing::error!("a websocket is not on a socket of this server");
        }
    };
    let limit = Some(shared.limits.max_request_bytes);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(limit)
        .max_frame_size(limit);
    let (mut socket, read_ahead) = (parts.io.into_inner(), parts.read_buf.to_vec());
    socket.bound_reads(Some(MAX_BYTES_BEFORE_ACK.saturating_sub(read_ahead.len())));
    let websocket =
        WebSocketStream::from_partially_read(socket, read_ahead, Side::Server, Some(config)).await;
    Session::new(websocket, shared, protocol, role, connection_id)
        .run()
        .await;
    drop(connection);
}
