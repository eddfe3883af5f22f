//! Ids, a type for each thing that has one. Floor 0.

use std::fmt;

use uuid::{Uuid, uuid};

/// The namespace in which a text key stands for the UUIDv5 of an aggregate or an event.
const KEY_NAMESPACE: Uuid = uuid!("9f3c1c56-7a0e-5b1e-9c39-7d3f6f0b6a11");

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

id! {
    /// The id of an aggregate.
    AggregateId
}
id! {
    /// The id of an event. It makes an append idempotent.
    EventId
}
id! {
    /// The id of a command. It makes a command idempotent.
    CommandId
}
id! {
    /// The id of a database, made with it and part of every cursor.
    DatabaseId
}
id! {
    /// The id of an event handler.
    HandlerId
}
id! {
    /// The id of a delivery.
    DeliveryId
}

impl AggregateId {
    /// The id that a text key stands for: a UUID stands for itself, anything else for its UUIDv5.
    ///
    /// Source: RFC 9562, section 5.5.
    #[must_use]
    pub fn from_key(key: &str) -> Self {
        Self(Uuid::try_parse(key).unwrap_or_else(|_| Uuid::new_v5(&KEY_NAMESPACE, key.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_as_a_key_stands_for_itself() {
        let id = uuid!("0192d3f0-1111-7222-8333-444455556666");
        assert_eq!(AggregateId::from_key(&id.to_string()), AggregateId(id));
    }

    #[test]
    fn a_text_key_always_stands_for_the_same_id() {
        let id = AggregateId::from_key("user-123");
        assert_eq!(id, AggregateId::from_key("user-123"));
        assert_ne!(id, AggregateId::from_key("user-124"));
        assert_eq!(id.0.get_version_num(), 5);
    }
}
