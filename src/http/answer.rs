//! Answers as GraphQL over HTTP wants them: media types, status codes, and errors that carry a code. Floor 7.
//!
//! Source: the GraphQL over HTTP specification.

use async_graphql::{Response as GraphqlResponse, ServerError, Value};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header},
};
use serde::Serialize;

use crate::{domain::access::RequestId, graphql::AsJson};

/// The media types that an answer can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// `application/graphql-response+json`: the status tells whether the operation ran.
    GraphqlResponse,
    /// `application/json`: 200 for whatever GraphQL answers, for older clients.
    Json,
}

impl Media {
    /// Chooses by the `Accept` headers; `None` where neither is acceptable.
    pub(super) fn negotiate(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(header::ACCEPT).iter().peekable();
        if values.peek().is_none() {
            return Some(Self::Json);
        }
        let (mut json, mut graphql) = (Weight::default(), Weight::default());
        for range in values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
        {
            let (name, weight) = media_range(range);
            match name.to_ascii_lowercase().as_str() {
                "application/graphql-response+json" => graphql.set(2, weight),
                "application/json" => json.set(2, weight),
                // A client that takes anything may not know the newer type.
                "application/*" => json.set(1, weight),
                "*/*" => json.set(0, weight),
                _ => {}
            }
        }
        match (graphql.value, json.value) {
            (0, 0) => None,
            (graphql, json) if graphql >= json => Some(Self::GraphqlResponse),
            _ => Some(Self::Json),
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::GraphqlResponse => "application/graphql-response+json; charset=utf-8",
            Self::Json => "application/json; charset=utf-8",
        })
    }
}

/// The weight of a media type by the most specific range that names it, in thousandths.
#[derive(Default)]
struct Weight {
    specificity: u8,
    value: u16,
}

impl Weight {
    fn set(&mut self, specificity: u8, value: u16) {
        if specificity >= self.specificity {
            *self = Self { specificity, value };
        }
    }
}

/// The name of a media range, and its weight in thousandths; 0 where its parameters ask for another character set.
fn media_range(range: &str) -> (&str, u16) {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let mut weight = 1000;
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        if key.eq_ignore_ascii_case("q") {
            let q = value.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0);
            weight = weight.min((q * 1000.0).round() as u16);
        } else if key.eq_ignore_ascii_case("charset") && !is_utf8(value) {
            weight = 0;
        }
    }
    (name, weight)
}

/// Whether a `Content-Type` is JSON in UTF-8, the only one that a body can have.
pub(super) fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    parts
        .next()
        .is_some_and(|name| name.eq_ignore_ascii_case("application/json"))
        && parts
            .filter_map(|part| part.split_once('='))
            .all(|(key, value)| !key.eq_ignore_ascii_case("charset") || is_utf8(value))
}

fn is_utf8(charset: &str) -> bool {
    let charset = charset.trim_matches('"');
    charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8")
}

/// A GraphQL answer as it is sent: without `data` where nothing was executed.
#[derive(Serialize)]
pub(super) struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<AsJson<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [ServerError],
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    extensions: &'a std::collections::BTreeMap<String, Value>,
}

impl<'a> Answer<'a> {
    pub(super) fn of(response: &'a GraphqlResponse) -> Self {
        Self {
            data: (!is_request_error(response)).then_some(AsJson(&response.data)),
            errors: &response.errors,
            extensions: &response.extensions,
        }
    }
}

/// Whether the operation was refused before any field was executed. Errors of fields have a path.
pub(super) fn is_request_error(response: &GraphqlResponse) -> bool {
    !response.errors.is_empty()
        && response.data == Value::Null
        && response.errors.iter().all(|error| error.path.is_empty())
}

/// Gives a code to errors without one: those are GraphQL's own, for documents and arguments that are wrong.
pub(super) fn complete_codes(response: &mut GraphqlResponse) {
    for error in &mut response.errors {
        let extensions = error.extensions.get_or_insert_default();
        if extensions.get("code").is_none() {
            extensions.set("code", BAD_USER_INPUT);
        }
    }
}

/// The status of a request that was refused: the client's fault, but where the server has no time for it.
fn status_of(response: &GraphqlResponse) -> StatusCode {
    let is_unavailable = |error: &ServerError| {
        let code = error
            .extensions
            .as_ref()
            .and_then(|extensions| extensions.get("code"));
        code == Some(&Value::from(UNAVAILABLE))
    };
    if response.errors.iter().any(is_unavailable) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    StatusCode::BAD_REQUEST
}

/// The answer to an operation.
pub(super) fn answer(media: Media, mut response: GraphqlResponse) -> Response<Body> {
    complete_codes(&mut response);
    let status = match media {
        Media::GraphqlResponse if is_request_error(&response) => status_of(&response),
        _ => StatusCode::OK,
    };
    json(status, media, &Answer::of(&response))
}

pub(super) const BAD_USER_INPUT: &str = "BAD_USER_INPUT";
pub(super) const UNAVAILABLE: &str = "UNAVAILABLE";
/// How long a client is told to wait before it tries again.
const RETRY_AFTER_MS: u32 = 1000;

/// A request that is refused before GraphQL has it, with the same form of body as every other error.
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// Nothing was done, and the same request may succeed later.
    is_retryable: bool,
    request_id: Option<RequestId>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            is_retryable: false,
            request_id: None,
            header: None,
        }
    }

    /// Nothing was done, for want of something that comes back soon.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            is_retryable: true,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, message)
        }
    }

    pub(super) fn bad_input(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, BAD_USER_INPUT, message)
    }

    pub(super) fn unauthenticated() -> Self {
        let message = "a token is needed, as the header `Authorization: Bearer TOKEN`; this request has none, or an unknown one";
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// The code that its error has.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// Where the server is short of something, it says for which request: the log knows it by this id.
    pub(super) fn of_request(self, request_id: RequestId) -> Self {
        Self {
            request_id: Some(request_id),
            ..self
        }
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    pub(super) fn answer(self, media: Media) -> Response<Body> {
        let mut response = json(self.status, media, &self.body());
        if self.is_retryable {
            let seconds = HeaderValue::from(RETRY_AFTER_MS / 1000);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if let Some(header) = self.header {
            let (name, value) = *header;
            response.headers_mut().insert(name, value);
        }
        response
    }

    fn body(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Body<'a> {
            errors: [Error<'a>; 1],
        }
        #[derive(Serialize)]
        struct Error<'a> {
            message: &'a str,
            extensions: Extensions<'a>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Extensions<'a> {
            code: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            outcome: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_ms: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            request_id: Option<String>,
        }
        Body {
            errors: [Error {
                message: &self.message,
                extensions: Extensions {
                    code: self.code,
                    outcome: self.is_retryable.then_some("NOT_DONE"),
                    retry_after_ms: self.is_retryable.then_some(RETRY_AFTER_MS),
                    request_id: self
                        .request_id
                        .filter(|_| self.is_retryable)
                        .map(|id| id.to_string()),
                },
            }],
        }
    }
}

/// An error in GraphQL's form.
pub(super) fn error_response(code: &'static str, message: impl Into<String>) -> GraphqlResponse {
    let mut error = ServerError::new(message, None);
    error.extensions.get_or_insert_default().set("code", code);
    GraphqlResponse::from_errors(vec![error])
}

fn json(status: StatusCode, media: Media, body: &impl Serialize) -> Response<Body> {
    let mut bytes = Vec::with_capacity(512);
    serde_json::to_writer(&mut bytes, body).expect("an answer holds only what JSON can hold");
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media.content_type());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(accept: &[&str]) -> Option<Media> {
        let headers = accept
            .iter()
            .map(|value| (header::ACCEPT, HeaderValue::from_str(value).unwrap()));
        Media::negotiate(&headers.collect())
    }

    #[test]
    fn a_client_that_takes_anything_gets_json() {
        for accept in [
            &[][..],
            &["*/*"],
            &["application/*"],
            &["text/html, */*;q=0.8"],
            &["application/json"],
        ] {
            assert_eq!(negotiate(accept), Some(Media::Json), "{accept:?}");
        }
    }

    #[test]
    fn a_client_that_names_the_newer_type_gets_it() {
        for accept in [
            &["application/graphql-response+json"][..],
            &["application/graphql-response+json; charset=utf-8"],
            &["application/graphql-response+json, application/json;q=0.9"],
            &["application/json, application/graphql-response+json"],
            &[
                "application/json;q=0.5",
                "Application/GraphQL-Response+JSON;q=0.6",
            ],
        ] {
            assert_eq!(
                negotiate(accept),
                Some(Media::GraphqlResponse),
                "{accept:?}"
            );
        }
        assert_eq!(
            negotiate(&["application/graphql-response+json;q=0.1, application/json"]),
            Some(Media::Json)
        );
    }

    #[test]
    fn a_client_that_takes_neither_gets_none() {
        for accept in [
            "text/html",
            "application/json;q=0",
            "application/json; charset=latin1",
            "",
            "*/*;q=0",
        ] {
            assert_eq!(negotiate(&[accept]), None, "{accept}");
        }
        assert_eq!(
            negotiate(&["application/json;q=0, */*"]),
            None,
            "the most specific range counts"
        );
    }

    #[test]
    fn only_json_in_utf8_is_a_body() {
        for right in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/json; profile=x",
        ] {
            assert!(is_json(right), "{right}");
        }
        for wrong in [
            "",
            "text/plain",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-16",
            "text/plain; application/json",
        ] {
            assert!(!is_json(wrong), "{wrong}");
        }
    }

    #[test]
    fn data_is_left_out_only_where_nothing_was_executed() {
        let text =
            |response: &GraphqlResponse| serde_json::to_string(&Answer::of(response)).unwrap();
        let refused = error_response(BAD_USER_INPUT, "no");
        assert_eq!(
            text(&refused),
            r#"{"errors":[{"message":"no","extensions":{"code":"BAD_USER_INPUT"}}]}"#
        );
        let mut failed = error_response(BAD_USER_INPUT, "no");
        failed.errors[0]
            .path
            .push(async_graphql::PathSegment::Field("stream".to_owned()));
        assert!(text(&failed).starts_with(r#"{"data":null,"#));
    }
}
