//! Places: versions in an aggregate, positions in a stream or a partition. Floor 0.

use std::fmt;

/// An event's place in its aggregate, from 1; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i32);

impl Version {
    /// The version of an aggregate without events.
    pub const NONE: Self = Self(0);

    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in a stream or in a partition's log, from 1; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub i64);

impl Position {
    /// Before the first.
    pub const START: Self = Self(0);
    /// The greatest that a client can name: 2^53 - 1.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The version that an aggregate must have for an append to be accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// Whatever it is.
    #[default]
    Any,
    /// Just this one; 0 for an aggregate without events.
    Exactly(Version),
}

/// The position that a stream must be at for an append to be accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpectedPosition {
    /// Whatever it is.
    #[default]
    Any,
    /// Just this one; 0 for an empty stream.
    Exactly(Position),
}
