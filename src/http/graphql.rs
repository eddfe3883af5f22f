//! GraphQL over HTTP: POST, and GET for queries. Floor 7.
//!
//! Source: the GraphQL over HTTP specification.

use std::time::Duration;

use async_graphql::{Response as GraphqlResponse, parser::types::OperationType};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::{
    answer::{BAD_USER_INPUT, Media, Refusal, UNAVAILABLE, answer, error_response, is_json},
    parameters,
    router::Shared,
};
use crate::{
    domain::access::{Caller, RequestId},
    graphql::Prepared,
};

/// Answers a request to `/graphql` that is no websocket.
pub(super) async fn serve(
    shared: &Shared,
    request: Request<Incoming>,
    request_id: RequestId,
) -> Response<Body> {
    let Some(media) = Media::negotiate(request.headers()) else {
        let message = "an answer can be application/graphql-response+json or application/json; Accept has to name one of them";
        return Refusal::new(StatusCode::NOT_ACCEPTABLE, BAD_USER_INPUT, message)
            .answer(Media::Json);
    };
    match run(shared, request, request_id).await {
        Ok(response) => answer(media, response),
        Err(refusal) => refusal.answer(media),
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
    let parameters = if is_get {
        parameters::from_query_string(request.uri().query().unwrap_or_default())
    } else if request.method() == Method::POST {
        check_content_type(request.headers())?;
        parameters::from_json(&read_body(shared, request.into_body()).await?)
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
        Err(response) => return Ok(*response),
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
    Ok(execute(shared, prepared, Caller { role, request_id }).await)
}

/// An append watches the time itself, and its answer that it is overdue holds the ids that make a repeat safe: it comes first.
const GRACE: Duration = Duration::from_millis(500);

/// Executes a query or mutation within the time that one may take.
pub(super) async fn execute(
    shared: &Shared,
    prepared: Prepared,
    caller: Caller,
) -> GraphqlResponse {
    let is_mutation = prepared.operation == OperationType::Mutation;
    let execution = shared.graphql.execute(prepared, caller);
    let limit = shared.limits.request_timeout + GRACE;
    match tokio::time::timeout(limit, execution).await {
        Ok(response) => response,
        Err(_) => overdue(shared, is_mutation),
    }
}

fn overdue(shared: &Shared, is_mutation: bool) -> GraphqlResponse {
    let limit_ms = shared.limits.request_timeout.as_millis();
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

/// Reads a body up to the limit, without a copy where it came in one piece.
async fn read_body(shared: &Shared, mut body: Incoming) -> Result<Bytes, Refusal> {
    let limit = shared.limits.max_request_bytes;
    let too_large = || {
        let message = format!(
            "the request is larger than {limit} bytes, which the option --max-request-bytes allows"
        );
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, BAD_USER_INPUT, message)
            .with_header(header::CONNECTION, CLOSE)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let read = async {
        let mut only = Bytes::new();
        let mut joined: Option<BytesMut> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Refusal::bad_input("the request's body broke off"))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if joined.as_ref().map_or(only.len(), BytesMut::len) + data.len() > limit {
                return Err(too_large());
            }
            match &mut joined {
                Some(joined) => joined.extend_from_slice(&data),
                None if only.is_empty() => only = data,
                None => {
                    let expected = usize::try_from(body.size_hint().lower())
                        .unwrap_or_default()
                        .min(limit);
                    let mut both = BytesMut::with_capacity(only.len() + data.len() + expected);
                    both.extend_from_slice(&only);
                    both.extend_from_slice(&data);
                    joined = Some(both);
                }
            }
        }
        Ok(joined.map_or(only, BytesMut::freeze))
    };
    tokio::time::timeout(shared.limits.request_timeout, read)
        .await
        .unwrap_or_else(|_| {
            let message = "the request's body did not arrive in time";
            Err(
                Refusal::new(StatusCode::REQUEST_TIMEOUT, BAD_USER_INPUT, message)
                    .with_header(header::CONNECTION, CLOSE),
            )
        })
}

const CLOSE: HeaderValue = HeaderValue::from_static("close");

fn method_refused(message: String, allow: &'static str) -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, BAD_USER_INPUT, message)
        .with_header(header::ALLOW, HeaderValue::from_static(allow))
}
