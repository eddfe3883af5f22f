//! Every request passes here: its id, the gate, the address that it asks for, and the headers of every answer. Floor 7.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header},
};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;
use tracing::Instrument;
use uuid::Uuid;

use super::{
    access::{Gate, Refused},
    answer::{Media, Refusal},
    body::room_for_bodies,
    connection::Connection,
    console, graphql, health, metrics, websocket,
};
use crate::{
    app::App,
    config::Limits,
    domain::{
        access::RequestId,
        trace::{TRACEPARENT, TraceParent},
    },
    graphql::Graphql,
    metrics::Operation,
    traces::Span,
};

/// The address of the API.
const GRAPHQL: &str = "/graphql";

/// What all connections of a server share.
pub(super) struct Shared {
    pub(super) graphql: Graphql,
    pub(super) app: Arc<App>,
    pub(super) gate: Gate,
    pub(super) limits: Limits,
    /// Cancelled where the server stops: nothing new is begun.
    pub(super) stopping: CancellationToken,
    /// The tasks of open connections.
    pub(super) tasks: TaskTracker,
    /// A place for each connection that may be open.
    pub(super) places: Arc<Semaphore>,
    /// The room for all bodies in work.
    pub(super) body_room: Semaphore,
    pages: Router,
}

impl Shared {
    pub(super) fn new(
        graphql: Graphql,
        app: Arc<App>,
        gate: Gate,
        limits: Limits,
        stopping: CancellationToken,
    ) -> Self {
        let pages = console::router().fallback(nothing_here);
        let tasks = TaskTracker::new();
        let limits_of_places = limits.max_connections;
        let body_room = room_for_bodies(&limits);
        Self {
            graphql,
            app,
            gate,
            limits,
            stopping,
            tasks,
            places: Arc::new(Semaphore::new(limits_of_places)),
            body_room,
            pages,
        }
    }

    /// How many connections are open.
    pub(super) fn open_connections(&self) -> usize {
        let places = self.limits.max_connections;
        places.saturating_sub(self.places.available_permits())
    }

    /// Counts a request to the API that was refused before it was known what it asks for.
    pub(super) fn count_refusal(&self, code: &str) {
        let metrics = self.app.metrics();
        metrics.count_request(Operation::Unknown, code, None);
    }

    /// An id for a request.
    pub(super) fn new_request_id(&self) -> RequestId {
        RequestId(self.app.clock().new_id())
    }
}

/// Answers one request.
pub(super) async fn handle(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    connection.mark_used();
    let request_id = shared.new_request_id();
    let answer = answer(shared, connection, request, request_id);
    answer.instrument(log_span(request_id)).await
}

/// What every line of the log says that is written for a request, at whatever level.
pub(super) fn log_span(request_id: RequestId) -> tracing::Span {
    tracing::error_span!(parent: None, "request", %request_id)
}

/// The same for an operation on a websocket, which has an id of its own; its connection has that of the handshake.
pub(super) fn log_span_of_operation(
    request_id: RequestId,
    connection_id: RequestId,
) -> tracing::Span {
    tracing::error_span!(parent: None, "request", %request_id, %connection_id)
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
    request_id: RequestId,
) -> Response<Body> {
    tracing::debug!(method = %request.method(), path = request.uri().path(), "request");
    let mut response = match shared.gate.admit(&request) {
        Ok(cross_origin) => {
            let preflight_headers = request
                .headers()
                .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
                .cloned();
            let span = begin_span(shared, &request, request_id);
            let routed = route(shared, connection, request, request_id);
            let mut response = span.within(routed).await;
            span.set(
                "http.response.status_code",
                i64::from(response.status().as_u16()),
            );
            if let Some(origin) = cross_origin {
                allow_origin(response.headers_mut(), origin, preflight_headers);
            }
            response
        }
        Err(refused) => {
            if request.uri().path() == GRAPHQL {
                shared.count_refusal(refused.code());
            }
            refuse(refused)
        }
    };
    let headers = response.headers_mut();
    if shared.gate.allows_origins() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    headers.insert(X_REQUEST_ID, request_id_value(request_id));
    tracing::debug!(status = response.status().as_u16(), "answer");
    response
}

/// The span of a request to the API, in the client's own trace where the client names one.
fn begin_span<B>(shared: &Shared, request: &Request<B>, request_id: RequestId) -> Span {
    let traces = shared.app.traces();
    if !traces.is_on() || request.uri().path() != GRAPHQL || websocket::is_upgrade(request) {
        return Span::default();
    }
    let client = request.headers().get(TRACEPARENT);
    let client = client.and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let span = traces.serve(format!("{} {GRAPHQL}", request.method()), client);
    span.set("http.request.method", request.method().to_string());
    span.set("url.path", GRAPHQL);
    span.set("tidings.request_id", request_id.to_string());
    span
}

async fn route(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
    request_id: RequestId,
) -> Response<Body> {
    match request.uri().path() {
        GRAPHQL if request.method() == Method::OPTIONS => options(),
        GRAPHQL if websocket::is_upgrade(&request) => {
            websocket::upgrade(shared, connection, request, request_id).unwrap_or_else(|refusal| {
                shared.count_refusal(refusal.code());
                refusal.answer(Media::Json)
            })
        }
        GRAPHQL => graphql::serve(shared, request, request_id).await,
        "/healthz" => health::alive(),
        "/metrics" => metrics::serve(shared, request.headers()).await,
        "/readyz" => health::ready(&shared.app).await,
        "/schema.graphql" => schema(shared, request.headers()),
        _ => match shared.pages.clone().call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
    }
}

fn options() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(
        header::ALLOW,
        HeaderValue::from_static("GET, POST, OPTIONS"),
    );
    response
}

fn schema(shared: &Shared, headers: &HeaderMap) -> Response<Body> {
    match shared.gate.role_of_headers(headers) {
        Ok(_) => plain(StatusCode::OK, shared.graphql.sdl()),
        Err(_) => Refusal::unauthenticated().answer(Media::Json),
    }
}

async fn nothing_here() -> Response<Body> {
    plain(
        StatusCode::NOT_FOUND,
        "There is nothing at this address. The API is at /graphql, its schema at /schema.graphql, the playground at /.\n",
    )
}

fn refuse(refused: Refused) -> Response<Body> {
    match refused {
        Refused::BadHost => plain(
            StatusCode::BAD_REQUEST,
            "The request needs one Host header that holds a name or an address.\n",
        ),
        Refused::UnknownHost(host) => plain(
            StatusCode::MISDIRECTED_REQUEST,
            format!(
                "This server does not answer to the name {host}. If clients are to reach it under that name, start it with the option \
                 --allow-host {host} (or TIDINGS_ALLOW_HOST={host}).\n"
            ),
        ),
        Refused::ForeignOrigin(origin) => {
            let message = format!(
                "web pages of the origin {origin} may not use this server; the option --allow-origin (or TIDINGS_ALLOW_ORIGIN) names those that may"
            );
            Refusal::new(StatusCode::FORBIDDEN, "FORBIDDEN", message).answer(Media::Json)
        }
        Refused::Unauthenticated => Refusal::unauthenticated().answer(Media::Json),
    }
}

/// An answer for people.
pub(super) fn plain(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Tells the browser that pages of this origin may read the answer.
fn allow_origin(
    headers: &mut HeaderMap,
    origin: HeaderValue,
    preflight_headers: Option<HeaderValue>,
) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("x-request-id"),
    );
    if let Some(asked) = preflight_headers {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
    }
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST"),
    );
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("600"),
    );
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn request_id_value(request_id: RequestId) -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    HeaderValue::from_str(request_id.0.hyphenated().encode_lower(&mut buffer))
        .expect("a UUID is ASCII")
}
