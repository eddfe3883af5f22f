//! Event handlers: what each does with the events of its types, and how that is written. Floor 0.

use std::{fmt, time::Duration};

use super::{
    Event, EventType, FunctionName, HandlerId, HandlerName, NameError, StreamName, Timestamp,
    WebhookUrl,
};

/// The longest name of a thing in PostgreSQL, in bytes.
const MAX_SQL_NAME_BYTES: usize = 63;
/// What a function can be.
const RIGHT: &str = "use log, publish:STREAM, http(s)://…, sql:FUNCTION (PostgreSQL only) or the name of a function that this \
                     server has in Rust";

/// Runs its function for every event of its types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventHandler {
    /// Its id.
    pub id: HandlerId,
    /// Its name; no two have the same.
    pub name: HandlerName,
    /// The types that it wants, sorted; empty: every type.
    pub event_types: Vec<EventType>,
    /// What it does.
    pub function: HandlerFunction,
    /// Whether it does it.
    pub is_active: bool,
    /// It waits until then, for its endpoint failed many times in a row; then it is probed. A success clears it.
    pub paused_until: Option<Timestamp>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// Grows with every change of it and of its deliveries that others than its dispatchers make.
    pub revision: i64,
}

impl EventHandler {
    /// Whether it waits at its place: its endpoint failed many times in a row, and it has not been probed again for as long as a
    /// probe may take. Every server says the same, for it follows from what is stored.
    #[must_use]
    pub fn is_paused(&self, now: Timestamp, probe: Duration) -> bool {
        is_paused(self.paused_until, now, probe)
    }

    /// Whether it wants an event.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        self.event_types.is_empty() || self.event_types.binary_search(&event.event_type).is_ok()
    }
}

/// Whether a pause that is stored has not come to its end, with the time that the probe behind it may take.
#[must_use]
pub fn is_paused(until: Option<Timestamp>, now: Timestamp, probe: Duration) -> bool {
    until.is_some_and(|until| until.after(probe) > now)
}

impl HandlerId {
    /// The name of its checkpoints.
    #[must_use]
    pub fn checkpoint_name(self) -> String {
        format!("handler:{self}")
    }
}

/// What a handler does with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerFunction {
    /// Writes a line to the server's log.
    Log,
    /// Makes it an entry of a stream.
    Publish(StreamName),
    /// Posts it.
    Webhook(WebhookUrl),
    /// Calls a function in PostgreSQL.
    Sql(SqlFunctionName),
    /// Calls a function in Rust.
    Rust(FunctionName),
}

/// Why a text is no function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// It is of no kind that there is.
    #[error("is no function: {RIGHT}")]
    Unknown,
    /// What is behind `publish:` is no stream.
    #[error("names no stream behind `publish:`: the name {0}")]
    Stream(NameError),
    /// It is no URL that can be posted to.
    #[error("is no URL that can be posted to: {0}")]
    Url(&'static str),
    /// What is behind `sql:` is no name of a function.
    #[error(
        "names no SQL function behind `sql:`: use the name alone, with its schema if need be (sql:notify_sales, \
         sql:sales.notify), of letters, digits and underscores"
    )]
    Sql,
}

impl HandlerFunction {
    /// Reads a function. Whether what it names is there is another matter.
    ///
    /// # Errors
    /// When it is of no kind that there is, or the name or URL in it is none.
    pub fn parse(text: &str) -> Result<Self, FunctionError> {
        if text == "log" {
            return Ok(Self::Log);
        }
        if let Some(stream) = text.strip_prefix("publish:") {
            let stream = StreamName::new(stream).map_err(FunctionError::Stream)?;
            return Ok(Self::Publish(stream));
        }
        if let Some(function) = text.strip_prefix("sql:") {
            return SqlFunctionName::parse(function)
                .map(Self::Sql)
                .ok_or(FunctionError::Sql);
        }
        if text.contains("://") {
            return WebhookUrl::parse(text)
                .map(Self::Webhook)
                .map_err(FunctionError::Url);
        }
        if !text.is_empty() && text.chars().all(is_plain) {
            return FunctionName::new(text)
                .map(Self::Rust)
                .map_err(|_| FunctionError::Unknown);
        }
        Err(FunctionError::Unknown)
    }

    /// Reads a function that is stored. What is none, for somebody else has written it there, is a name that no server has a
    /// function of.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        if let Some(url) = WebhookUrl::stored(text) {
            return Self::Webhook(url);
        }
        Self::parse(text).unwrap_or_else(|_| Self::Rust(FunctionName::stored(text)))
    }
}

impl fmt::Display for HandlerFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("log"),
            Self::Publish(stream) => write!(f, "publish:{stream}"),
            Self::Webhook(url) => f.write_str(url.as_str()),
            Self::Sql(function) => write!(f, "sql:{function}"),
            Self::Rust(name) => f.write_str(name.as_str()),
        }
    }
}

/// The name of a function in PostgreSQL, as it is stored there: not folded to small letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlFunctionName {
    /// Its schema; without one, the function is looked for as the search path says.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
}

impl SqlFunctionName {
    fn parse(text: &str) -> Option<Self> {
        let is_name = |part: &str| {
            let starts_well = part
                .chars()
                .next()
                .is_some_and(|first| first.is_alphabetic() || first == '_');
            starts_well
                && part.len() <= MAX_SQL_NAME_BYTES
                && part
                    .chars()
                    .all(|char| char.is_alphanumeric() || char == '_')
        };
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        (is_name(name) && schema.is_none_or(is_name)).then(|| Self {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for SqlFunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

/// Checks a name that a handler is registered with, its own or that of a type: names of handlers go into URLs, dashboards and
/// scripts, so there is nothing in them that any of these gives a meaning to.
///
/// # Errors
/// What would be right.
pub fn check_handler_name(text: &str) -> Result<(), &'static str> {
    if text.contains("..") || !text.chars().all(is_plain) {
        return Err("may hold letters, digits and _ - . : / @ + only, and no two dots in a row");
    }
    Ok(())
}

fn is_plain(char: char) -> bool {
    char.is_alphanumeric() || "_-.:/@+".contains(char)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_read_and_written_as_the_same_text() {
        for text in [
            "log",
            "publish:user_events",
            "publish:a b's",
            "https://example.com/hook?a=b",
            "http://example.com:8080/",
            "sql:notify_sales",
            "sql:sales.Notify",
            "send_mail",
        ] {
            let function = HandlerFunction::parse(text).expect(text);
            assert_eq!(function.to_string(), text);
            assert_eq!(HandlerFunction::parse(&function.to_string()), Ok(function));
        }
    }

    #[test]
    fn what_is_no_function_is_refused_with_what_would_be_right() {
        for (text, hint) in [
            ("", "publish:STREAM"),
            ("log; DROP TABLE events", "publish:STREAM"),
            ("o'clock", "publish:STREAM"),
            ("publish:", "1 to 100 characters"),
            ("publish:a\nb", "control character"),
            ("ftp://example.com/", "https://"),
            ("https://", "https://HOST"),
            ("https://ada:secret@example.com/", "leave them out"),
            ("https://example.com/#top", "leave it out"),
            ("sql:", "the name alone"),
            ("sql:f(uuid, uuid, jsonb)", "the name alone"),
            ("sql:f; DROP TABLE events", "the name alone"),
            ("sql:\"f\"", "the name alone"),
            ("sql:a..f", "the name alone"),
            ("sql:a.b.c", "the name alone"),
            ("sql:1f", "the name alone"),
        ] {
            let error = HandlerFunction::parse(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(HandlerFunction::parse(&format!("sql:{}", "a".repeat(64))).is_err());
    }

    #[test]
    fn a_name_holds_nothing_that_other_programs_give_a_meaning_to() {
        for right in ["send_welcome", "användare", "a.b-c:d/e@f+1"] {
            assert_eq!(check_handler_name(right), Ok(()));
        }
        for wrong in ["a'b", "a\"b", "a;b", "a..b", "a b", "a\\b", "a`b", "<a>"] {
            assert!(check_handler_name(wrong).is_err(), "{wrong}");
        }
    }
}
