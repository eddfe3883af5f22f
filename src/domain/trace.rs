//! The place of a piece of work in a trace, as it travels in headers and in the metadata of events. Floor 0.
//!
//! Source: W3C Trace Context, the header `traceparent`.

use std::fmt;

use serde_json::Value;

use super::Json;

/// The key in the metadata of events and commands, and the name of the header.
pub const TRACEPARENT: &str = "traceparent";

/// What a piece of work belongs to: a trace, and in it the span that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span; never 0.
    pub span_id: u64,
    /// Whether whoever began the trace records it.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads `00-TRACE-SPAN-FLAGS`. Versions to come may have more behind it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // What comes behind in later versions goes into headers as it is.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = u64::try_from(hex(parts.next()?, 16)?).ok()?;
        let flags = hex(parts.next()?, 2)?;
        let is_right = version != 0xff && (version > 0 || parts.next().is_none());
        (is_right && trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            is_sampled: flags & 1 == 1,
        })
    }

    /// What the metadata of an event or a command says.
    #[must_use]
    pub fn of_metadata(metadata: &Json) -> Option<Self> {
        Self::parse(key_of(metadata)?.as_str()?)
    }

    /// Metadata with this in it. What a client has put there itself stays, right or wrong.
    #[must_use]
    pub fn put_into(self, metadata: &Json) -> Option<Json> {
        if key_of(metadata).is_some() {
            return None;
        }
        let inner = metadata.as_str().trim();
        let inner = inner.strip_prefix('{')?.strip_suffix('}')?.trim();
        let comma = if inner.is_empty() { "" } else { "," };
        let text = format!("{{{inner}{comma}\"{TRACEPARENT}\":\"{self}\"}}");
        Some(Json::stored(text))
    }
}

/// The value of the key, whatever it is. Nearly no metadata has it, so it is looked for in the text first.
fn key_of(metadata: &Json) -> Option<Value> {
    // A key may be spelled with escapes.
    let may_be_there = metadata.as_str().contains(TRACEPARENT) || metadata.as_str().contains("\\u");
    if !may_be_there {
        return None;
    }
    match metadata.to_value() {
        Ok(Value::Object(mut fields)) => fields.remove(TRACEPARENT),
        _ => None,
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_right = text.len() == digits && text.bytes().all(is_lower_hex);
    is_right
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.is_sampled);
        write!(
            f,
            "00-{:032x}-{:016x}-{flags:02x}",
            self.trace_id, self.span_id
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written() {
        let parent = TraceParent::parse(TEXT).expect("it is right");
        assert!(parent.is_sampled);
        assert_eq!(parent.to_string(), TEXT);
        let later = TraceParent::parse(&format!("{}-more", TEXT.replacen("00", "01", 1)));
        assert_eq!(later, Some(parent));
    }

    #[test]
    fn what_is_no_header_is_none() {
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-a\r\nx: y",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn metadata_keeps_what_is_in_it() {
        let parent = TraceParent::parse(TEXT).expect("it is right");
        for (before, after) in [
            ("{}", format!(r#"{{"traceparent":"{TEXT}"}}"#)),
            (
                r#"{"by":"me"}"#,
                format!(r#"{{"by":"me","traceparent":"{TEXT}"}}"#),
            ),
            (
                r#"{"a":"traceparent"}"#,
                format!(r#"{{"a":"traceparent","traceparent":"{TEXT}"}}"#),
            ),
        ] {
            let put = parent
                .put_into(&Json::stored(before))
                .expect("it is put in");
            assert_eq!(put.as_str(), after);
            assert_eq!(TraceParent::of_metadata(&put), Some(parent));
        }
        for own in [
            r#"{"traceparent":"mine"}"#,
            r#"{"traceparent":null}"#,
            "{\"trace\\u0070arent\":1}",
            "[]",
        ] {
            assert!(parent.put_into(&Json::stored(own)).is_none(), "{own}");
        }
    }
}
