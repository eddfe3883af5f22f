//! GraphQL over HTTP: POST, and GET for queries. Floor 7.
//!
//! Source: the GraphQL over HTTP specification.

use std::{pin::pin, time::Duration};

use async_graphql::{Response as GraphqlResponse, Value, parser::types::OperationType};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header},
};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::{
    answer::{BAD_USER_INPUT, Media, Refusal, UNAVAILABLE, answer, error_response, is_json},
    body::{Room, read_body},
    parameters,
    router::Shared,
};
use crate::{
    appender::taken_at,
    domain::access::{Caller, RequestId},
    graphql::Prepared,
    metrics::{self, Operation},
};

/// Answers a request to `/graphql` that is no websocket.
pub(super) async fn serve(
    shared: &Shared,
    request: Request<Incoming>,
    request_id: RequestId,
) -> Response<Body> {
    let Some(media) = Media::negotiate(request.headers()) else {
        let message = "an answer can be application/graphql-response+json or application/json; Accept has to name one of them";
        shared.count_refusal(BAD_USER_INPUT);
        return Refusal::new(StatusCode::NOT_ACCEPTABLE, BAD_USER_INPUT, message)
            .answer(Media::Json);
    };
    match run(shared, request, request_id).await {
        Ok(response) => answer(media, response),
        Err(refusal) => {
            shared.count_refusal(refusal.code());
            refusal.of_request(request_id).answer(media)
        }
    }
}

async fn run(
    shared: &Shared,
    request: Request<Incoming>,
    request_id: RequestId,
) -> Result<GraphqlResponse, Refusal> {
    let role = shared
        .gate
        .role_of_headers(request.headers())
        .map_err(|_| Refusal::unauthenticated())?;
    let is_get = request.method() == Method::GET;
    let mut room = Room::new(&shared.body_room);
    // How long a client takes to send its request is its own affair.
    let mut taken_at = Instant::now();
    let parameters = if is_get {
        parameters::from_query_string(request.uri().query().unwrap_or_default())
    } else if request.method() == Method::POST {
        check_content_type(request.headers())?;
        let body = read_body(&shared.limits, &mut room, request.into_body()).await?;
        taken_at = Instant::now();
        parameters::from_json(&body)
    } else {
        let message = format!(
            "{} is not a method of GraphQL; use POST, or GET for queries",
            request.method()
        );
        return Err(method_refused(message, "GET, POST, OPTIONS"));
    };
    let prepared = match shared
        .graphql
        .prepare(parameters.map_err(Refusal::bad_input)?)
    {
        Ok(prepared) => prepared,
        Err(response) => {
            shared.count_refusal(code_of(&response));
            return Ok(*response);
        }
    };
    match prepared.operation {
        OperationType::Mutation if is_get => {
            return Err(method_refused(
                "a mutation needs POST; GET is for queries".to_owned(),
                "POST",
            ));
        }
        OperationType::Subscription => {
            let message = "a subscription needs a websocket at this same address, with the subprotocol graphql-transport-ws or graphql-ws";
            return Err(Refusal::bad_input(message));
        }
        _ => {}
    }
    let caller = Caller {
        role,
        request_id,
        taken_at: taken_at.into_std(),
    };
    Ok(execute(shared, prepared, caller).await)
}

/// An append watches the time itself, and its answer that it is overdue holds the ids that make a repeat safe: it comes first.
const GRACE: Duration = Duration::from_millis(500);

/// Executes a query or mutation within the time that one may take.
pub(super) async fn execute(
    shared: &Shared,
    prepared: Prepared,
    caller: Caller,
) -> GraphqlResponse {
    let began = Instant::now();
    let (operation, name) = match prepared.operation {
        OperationType::Mutation => (Operation::Mutation, "graphql mutation"),
        _ => (Operation::Query, "graphql query"),
    };
    let span = shared.app.traces().serve(name, None);
    let time_limit = prepared.time_limit.clone();
    let execution = shared.graphql.execute(prepared, caller);
    let execution = taken_at(caller.taken_at.into(), execution);
    let mut execution = pin!(span.within(execution));
    let limit = shared.limits.request_timeout + GRACE;
    let response = match timeout(limit, execution.as_mut()).await {
        Ok(response) => response,
        Err(_) if time_limit.is_lifted() => execution.await,
        Err(_) => overdue(shared, operation == Operation::Mutation, caller.request_id),
    };
    let code = code_of(&response);
    if code != metrics::OK {
        span.set_failed(code);
    }
    let metrics = shared.app.metrics();
    metrics.count_request(operation, code, Some(began.elapsed()));
    response
}

/// The code of the first error, or that there is none.
pub(super) fn code_of(response: &GraphqlResponse) -> &str {
    let Some(error) = response.errors.first() else {
        return metrics::OK;
    };
    match error.extensions.as_ref().and_then(|set| set.get("code")) {
        Some(Value::String(code)) => code,
        // One without a code is the library's own, and gets this one in the answer.
        _ => BAD_USER_INPUT,
    }
}

fn overdue(shared: &Shared, is_mutation: bool, request_id: RequestId) -> GraphqlResponse {
    let limit_ms = u64::try_from(shared.limits.request_timeout.as_millis()).unwrap_or(u64::MAX);
    tracing::warn!(
        limit_ms,
        is_mutation,
        "an operation took too long and was given up; --request-timeout allows no more"
    );
    let (outcome, advice) = match is_mutation {
        true => ("UNKNOWN", "repeating it with the same ids is safe"),
        false => ("NOT_DONE", "ask for less, or again later"),
    };
    let mut response = error_response(
        UNAVAILABLE,
        format!("the operation took longer than {limit_ms} ms; {advice}"),
    );
    for error in &mut response.errors {
        let extensions = error.extensions.get_or_insert_default();
        extensions.set("outcome", outcome);
        extensions.set("retryAfterMs", 1000);
        extensions.set("requestId", request_id.to_string());
    }
    response
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if is_json(content_type) && !headers.contains_key(header::CONTENT_ENCODING) {
        return Ok(());
    }
    let message = "a request's body is JSON in UTF-8, not compressed: send it with `Content-Type: application/json`";
    Err(Refusal::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        BAD_USER_INPUT,
        message,
    ))
}

fn method_refused(message: String, allow: &'static str) -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, BAD_USER_INPUT, message)
        .with_header(header::ALLOW, HeaderValue::from_static(allow))
}
