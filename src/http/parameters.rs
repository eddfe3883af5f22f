//! The parameters of a GraphQL request, from a body, a query string, or a message on a websocket. Floor 7.

use std::{borrow::Cow, collections::HashMap};

use async_graphql::{Request, Variables};
use serde::{Deserialize, de::IgnoredAny};
use url::form_urlencoded;

#[derive(Deserialize)]
struct Parameters {
    query: String,
    #[serde(default, rename = "operationName")]
    operation_name: Option<String>,
    #[serde(default)]
    variables: Option<Variables>,
    /// Nothing reads them, but they have to be a map.
    #[serde(default, rename = "extensions")]
    _extensions: Option<HashMap<String, IgnoredAny>>,
}

impl From<Parameters> for Request {
    fn from(parameters: Parameters) -> Self {
        let mut request =
            Request::new(parameters.query).variables(parameters.variables.unwrap_or_default());
        request.operation_name = parameters.operation_name;
        request
    }
}

const RIGHT: &str =
    r#"expected a JSON object such as {"query": "{ server { version } }", "variables": {}}"#;

/// Reads the JSON of a request.
///
/// # Errors
/// A text that says what is wrong and what would be right.
pub(super) fn from_json(json: &[u8]) -> Result<Request, String> {
    match json.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err(format!("the request is empty; {RIGHT}")),
        Some(b'[') => {
            return Err(format!(
                "several requests in one array are not supported, send each alone; {RIGHT}"
            ));
        }
        Some(_) => {}
    }
    serde_json::from_slice::<Parameters>(json)
        .map(Request::from)
        .map_err(|error| format!("the request cannot be read: {error}; {RIGHT}"))
}

/// Reads the query string of a GET request.
///
/// # Errors
/// A text that says what is wrong and what would be right.
pub(super) fn from_query_string(query_string: &str) -> Result<Request, String> {
    let (mut query, mut operation_name, mut variables) = (None, None, None);
    for (name, value) in form_urlencoded::parse(query_string.as_bytes()) {
        let repeated = match &*name {
            "query" => query.replace(value).is_some(),
            "operationName" => operation_name.replace(value).is_some(),
            "variables" => variables
                .replace(json_parameter::<Variables>("variables", &value)?)
                .is_some(),
            "extensions" => {
                json_parameter::<HashMap<String, IgnoredAny>>("extensions", &value)?;
                false
            }
            _ => false,
        };
        if repeated {
            return Err(format!("the parameter `{name}` is there more than once"));
        }
    }
    let query = query.ok_or(
        "the parameter `query` is missing: expected /graphql?query=… (the playground is at /)",
    )?;
    Ok(Parameters {
        query: query.into_owned(),
        operation_name: operation_name
            .filter(|name| !name.is_empty())
            .map(Cow::into_owned),
        variables: variables.flatten(),
        _extensions: None,
    }
    .into())
}

fn json_parameter<'a, T: Deserialize<'a>>(name: &str, text: &'a str) -> Result<Option<T>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map_err(|error| {
        format!("the parameter `{name}` cannot be read: {error}; expected a JSON object")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_from_json() {
        let request = from_json(br#" {"query":"query A { x }","operationName":"A","variables":{"n":1},"extensions":{},"other":1}"#).unwrap();
        assert_eq!(
            (
                request.query.as_str(),
                request.operation_name.as_deref(),
                request.variables.len()
            ),
            ("query A { x }", Some("A"), 1)
        );
        from_json(br#"{"query":"{ x }","operationName":null,"variables":null,"extensions":null}"#)
            .unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_what_would_be_right() {
        for wrong in [
            "",
            "  ",
            "null",
            "[]",
            r#"[{"query":"{ x }"}]"#,
            r#"["{ x }"]"#,
            "{",
            r#""{ x }""#,
            "{}",
            r#"{"query":null}"#,
            r#"{"query":1}"#,
            r#"{"query":"{ x }","variables":[]}"#,
            r#"{"query":"{ x }","variables":"{}"}"#,
            r#"{"query":"{ x }","extensions":1}"#,
            r#"{"query":"{ x }","operationName":["a"]}"#,
            r#"{"query":"{ x }","variables":{"a":"\ud800"}}"#,
            r#"{"query":"{ x }","variables":{"a":1e999999}}"#,
            r#"{"query":"{ x }"} x"#,
            "{\"query\":\"\u{1}\"}",
        ] {
            let problem = from_json(wrong.as_bytes()).unwrap_err();
            assert!(
                problem.contains("expected a JSON object"),
                "{wrong}: {problem}"
            );
        }
        assert!(from_json(b"{\"query\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_request_is_read_from_a_query_string() {
        let request = from_query_string(
            "query=%7B+x+%7D&variables=%7B%22n%22%3A1%7D&operationName=&extensions=%7B%7D&x=1",
        )
        .unwrap();
        assert_eq!(
            (
                request.query.as_str(),
                request.operation_name,
                request.variables.len()
            ),
            ("{ x }", None, 1)
        );
        for wrong in [
            "",
            "query",
            "variables=%7B%7D",
            "query=a&query=b",
            "query=a&variables=%5B%5D",
            "query=a&extensions=1",
            "query=a&variables=%7B",
        ] {
            assert_eq!(
                from_query_string(wrong).is_err(),
                wrong != "query",
                "{wrong}"
            );
        }
    }
}
