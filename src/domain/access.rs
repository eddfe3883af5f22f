//! Who may do what: roles and the caller of one operation. Floor 0.

use std::fmt;

use uuid::Uuid;

/// What a caller may do; each role includes the ones below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Queries and subscriptions.
    Read,
    /// Also mutations of events, commands, streams and read models.
    Write,
    /// Also what changes how the server works.
    Admin,
}

/// The id of one request, in every log line and every answer about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Who asks for an operation, and under which request id.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// What the caller may do.
    pub role: Role,
    /// The id of the request.
    pub request_id: RequestId,
}
