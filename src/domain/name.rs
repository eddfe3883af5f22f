//! Names that clients choose: types of aggregates, events and commands, streams. Floor 0.

use std::{fmt, sync::Arc};

/// The longest name, in characters.
pub const MAX_NAME_CHARS: usize = 100;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no character in it.
    #[error("must not be empty: give it 1 to {MAX_NAME_CHARS} characters")]
    Empty,
    /// It has too many characters.
    #[error("has {chars} characters: give it 1 to {MAX_NAME_CHARS}")]
    TooLong {
        /// How many it has.
        chars: usize,
    },
    /// It holds a control character (U+0000 to U+001F, U+007F).
    #[error("holds the control character U+{code:04X}: leave it out")]
    Control {
        /// The character's code point.
        code: u32,
    },
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_CHARS {
        let chars = text.chars().count();
        if chars > MAX_NAME_CHARS {
            return Err(NameError::TooLong { chars });
        }
    }
    match text.bytes().find(u8::is_ascii_control) {
        Some(byte) => Err(NameError::Control {
            code: u32::from(byte),
        }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a name that comes from outside.
            ///
            /// # Errors
            /// When it is empty, longer than [`MAX_NAME_CHARS`] or holds a control character.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// Takes a name that was checked before it was stored.
            #[must_use]
            pub fn stored(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// What an aggregate is: `user`.
    AggregateType
}
name! {
    /// What happened, in the past tense: `user_created`.
    EventType
}
name! {
    /// What is asked for, in the imperative: `create_user`.
    CommandType
}
name! {
    /// The name of a stream: `user_events`.
    StreamName
}
name! {
    /// The name of an event handler: `send_welcome`.
    HandlerName
}
name! {
    /// The name under which a function in Rust is registered: `send_mail`.
    FunctionName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_100_characters() {
        assert_eq!(EventType::new(""), Err(NameError::Empty));
        assert!(EventType::new(&"ä".repeat(100)).is_ok());
        assert_eq!(
            EventType::new(&"ä".repeat(101)),
            Err(NameError::TooLong { chars: 101 })
        );
    }

    #[test]
    fn a_name_holds_no_control_character() {
        assert_eq!(StreamName::new("a\0b"), Err(NameError::Control { code: 0 }));
        assert_eq!(
            StreamName::new("a\nb"),
            Err(NameError::Control { code: 10 })
        );
    }
}
