//! The messages of the two protocols of GraphQL over websockets. Floor 7.
//!
//! Sources: the protocol documents of graphql-ws (`graphql-transport-ws`) and of subscriptions-transport-ws (`graphql-ws`).

use std::{borrow::Cow, fmt};

use async_graphql::{Request, Response, ServerError};
use axum::http::{HeaderMap, header};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::http::{answer::Answer, parameters};

/// An operation's id is repeated in each of its messages, so it may not be long.
const MAX_ID_BYTES: usize = 256;

/// The protocol of a connection, as its subprotocol names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// `graphql-transport-ws`.
    Transport,
    /// `graphql-ws`, the older one.
    Legacy,
}

impl Protocol {
    /// The newest one that the client offers.
    pub(super) fn choose(headers: &HeaderMap) -> Option<Self> {
        let offers = |protocol: Self| {
            let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
            values
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .any(|name| name.trim() == protocol.name())
        };
        [Self::Transport, Self::Legacy]
            .into_iter()
            .find(|protocol| offers(*protocol))
    }

    /// Its name as a subprotocol.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Transport => "graphql-transport-ws",
            Self::Legacy => "graphql-ws",
        }
    }
}

/// What a client says.
#[derive(Debug)]
pub(super) enum ClientMessage {
    /// It wants to begin; the token its payload holds, if any.
    Init { token: Option<String> },
    /// It wants a pong.
    Ping,
    /// It answers a ping.
    Pong,
    /// It starts an operation.
    Subscribe { id: String, request: Box<Request> },
    /// It ends an operation.
    Complete { id: String },
    /// It ends the connection.
    Terminate,
}

#[derive(Deserialize)]
struct RawMessage<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default, borrow)]
    payload: Option<&'a RawValue>,
}

impl ClientMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// A text that says what is wrong with it.
    pub(super) fn parse(protocol: Protocol, text: &str) -> Result<Self, String> {
        if !text.trim_start().starts_with('{') {
            return Err("a message is a JSON object".to_owned());
        }
        let raw: RawMessage<'_> = serde_json::from_str(text)
            .map_err(|error| format!("the message cannot be read: {error}"))?;
        let payload = raw
            .payload
            .map(RawValue::get)
            .filter(|payload| *payload != "null");
        match (protocol, &*raw.kind) {
            (_, "connection_init") => Ok(Self::Init {
                token: payload.map(read_token).transpose()?.flatten(),
            }),
            (Protocol::Transport, "ping") => Ok(Self::Ping),
            (Protocol::Transport, "pong") => Ok(Self::Pong),
            (Protocol::Transport, "subscribe") | (Protocol::Legacy, "start") => {
                let payload = payload.ok_or("the payload is missing")?;
                let request = Box::new(parameters::from_json(payload.as_bytes())?);
                Ok(Self::Subscribe {
                    id: checked_id(raw.id)?,
                    request,
                })
            }
            (Protocol::Transport, "complete") | (Protocol::Legacy, "stop") => Ok(Self::Complete {
                id: checked_id(raw.id)?,
            }),
            (Protocol::Legacy, "connection_terminate") => Ok(Self::Terminate),
            (_, kind) => Err(format!(
                "the type {:.40} is unknown in {}",
                kind,
                protocol.name()
            )),
        }
    }
}

fn checked_id(id: Option<String>) -> Result<String, String> {
    match id {
        Some(id) if !id.is_empty() && id.len() <= MAX_ID_BYTES => Ok(id),
        _ => Err(format!("an id of 1 to {MAX_ID_BYTES} bytes is needed")),
    }
}

/// The fields of the payload of `connection_init` that can hold a token; the others are skipped, and no values are made of them.
#[derive(Default)]
struct InitPayload {
    authorization: Option<String>,
    token: Option<String>,
}

impl<'de> Deserialize<'de> for InitPayload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = InitPayload;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InitPayload, A::Error> {
                let mut payload = InitPayload::default();
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    let field = if name.eq_ignore_ascii_case("authorization") {
                        &mut payload.authorization
                    } else if name.eq_ignore_ascii_case("token") {
                        &mut payload.token
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let value: &RawValue = map.next_value()?;
                    if field.is_none() && value.get().starts_with('"') {
                        *field =
                            Some(serde_json::from_str(value.get()).map_err(de::Error::custom)?);
                    }
                }
                Ok(payload)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// The token in the payload of `connection_init`: `{"Authorization": "Bearer …"}` in any case, or `{"token": "…"}`.
fn read_token(payload: &str) -> Result<Option<String>, String> {
    let payload: InitPayload = serde_json::from_str(payload)
        .map_err(|_| "the payload of connection_init is a JSON object".to_owned())?;
    Ok(match payload.authorization {
        // A value without the scheme is no token, but no absence of one either: it is refused as unknown.
        Some(value) => Some(
            crate::http::access::bearer(&value)
                .unwrap_or_default()
                .to_owned(),
        ),
        None => payload.token,
    })
}

#[derive(Serialize)]
struct ServerMessage<'a, P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<P>,
}

fn write<P: Serialize>(id: Option<&str>, kind: &str, payload: Option<P>) -> String {
    serde_json::to_string(&ServerMessage { id, kind, payload })
        .expect("an answer holds only what JSON can hold")
}

impl Protocol {
    /// The connection has begun.
    pub(super) fn ack(self) -> String {
        write(None, "connection_ack", None::<()>)
    }

    /// The client's ping is answered.
    pub(super) fn pong(self) -> String {
        write(None, "pong", None::<()>)
    }

    /// A sign of life, where the protocol has one of its own.
    pub(super) fn keep_alive(self) -> Option<String> {
        (self == Self::Legacy).then(|| write(None, "ka", None::<()>))
    }

    /// The connection is refused, where the protocol has a message for it.
    pub(super) fn connection_error(self, code: &str, message: &str) -> Option<String> {
        let payload = serde_json::json!({ "message": message, "extensions": { "code": code } });
        (self == Self::Legacy).then(|| write(None, "connection_error", Some(payload)))
    }

    /// A result of an operation.
    pub(super) fn next(self, id: &str, response: &Response) -> String {
        let kind = match self {
            Self::Transport => "next",
            Self::Legacy => "data",
        };
        write(Some(id), kind, Some(Answer::of(response)))
    }

    /// The operation was refused; nothing more comes of it.
    pub(super) fn error(self, id: &str, errors: &[ServerError]) -> String {
        /// The older protocol takes one error, and its clients look for more of them inside.
        #[derive(Serialize)]
        struct LegacyError<'a> {
            #[serde(flatten)]
            first: Option<&'a ServerError>,
            #[serde(skip_serializing_if = "Option::is_none")]
            errors: Option<&'a [ServerError]>,
        }
        match self {
            Self::Transport => write(Some(id), "error", Some(errors)),
            Self::Legacy => {
                let payload = LegacyError {
                    first: errors.first(),
                    errors: (errors.len() > 1).then_some(errors),
                };
                write(Some(id), "error", Some(payload))
            }
        }
    }

    /// The operation has ended by itself.
    pub(super) fn complete(self, id: &str) -> String {
        write(Some(id), "complete", None::<()>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn choose(offered: &str) -> Option<Protocol> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_str(offered).unwrap(),
        );
        Protocol::choose(&headers)
    }

    #[test]
    fn the_newer_protocol_is_preferred() {
        assert_eq!(
            choose("graphql-ws, graphql-transport-ws"),
            Some(Protocol::Transport)
        );
        assert_eq!(choose("graphql-ws"), Some(Protocol::Legacy));
        assert_eq!(choose("mqtt"), None);
    }

    #[test]
    fn tokens_are_found_under_each_of_their_names() {
        let token = |payload: &str| {
            let text = format!(r#"{{"type":"connection_init","payload":{payload}}}"#);
            match ClientMessage::parse(Protocol::Transport, &text) {
                Ok(ClientMessage::Init { token }) => token,
                other => panic!("{other:?}"),
            }
        };
        for payload in [
            r#"{"Authorization":"Bearer x"}"#,
            r#"{"authorization":"bearer x"}"#,
            r#"{"token":"x"}"#,
        ] {
            assert_eq!(token(payload).as_deref(), Some("x"), "{payload}");
        }
        assert_eq!(token(r#"{"Authorization":"x"}"#).as_deref(), Some(""));
        assert_eq!(
            token(r#"{"other":{"token":"x"},"TOKEN":1,"token":"y"}"#).as_deref(),
            Some("y")
        );
        assert_eq!(token(r#"{"other":1}"#), None);
        assert_eq!(token("null"), None);
    }

    #[test]
    fn messages_of_the_other_protocol_are_unknown() {
        let start = r#"{"type":"start","id":"1","payload":{"query":"{ x }"}}"#;
        assert!(
            ClientMessage::parse(Protocol::Transport, start)
                .unwrap_err()
                .contains("graphql-transport-ws")
        );
        ClientMessage::parse(Protocol::Legacy, start).unwrap();
        assert!(ClientMessage::parse(Protocol::Legacy, r#"{"type":"ping"}"#).is_err());
    }

    #[test]
    fn junk_is_refused() {
        let long_id = format!(r#"{{"type":"complete","id":"{}"}}"#, "x".repeat(257));
        for junk in [
            "",
            "x",
            "[]",
            "{}",
            "null",
            r#"["complete","1"]"#,
            r#"{"type":1}"#,
            r#"{"type":"subscribe"}"#,
            r#"{"type":"subscribe","id":"1"}"#,
            r#"{"type":"subscribe","id":"","payload":{"query":"{ x }"}}"#,
            r#"{"type":"subscribe","id":1,"payload":{"query":"{ x }"}}"#,
            r#"{"type":"subscribe","id":"1","payload":{}}"#,
            r#"{"type":"complete"}"#,
            r#"{"type":"connection_init","payload":[]}"#,
            &long_id,
        ] {
            assert!(
                ClientMessage::parse(Protocol::Transport, junk).is_err(),
                "{junk}"
            );
        }
    }
}
