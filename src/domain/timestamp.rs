//! Instants in UTC with microseconds. Floor 0.

use std::{fmt, time::Duration};

use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};

/// An instant in UTC, in whole microseconds: what both databases keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant of so many microseconds after 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds after 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339: `2026-01-31T12:00:00Z`, with any offset and up to nine digits of a second (cut to six).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text)
            .ok()
            .map(|time| Self(time.timestamp_micros()))
    }

    /// The instant so much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(time.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// How much later this instant is than another one; nothing where it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The same instant for the database.
    #[must_use]
    pub fn to_utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.timestamp_micros())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.to_utc();
        let Ok(year @ 0..=9999) = u32::try_from(time.year()) else {
            return f.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true));
        };
        // Pages of events have many of them, and chrono takes its time.
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        for (from, to, value) in [
            (0, 4, year),
            (5, 7, time.month()),
            (8, 10, time.day()),
            (11, 13, time.hour()),
            (14, 16, time.minute()),
            (17, 19, time.second()),
            (20, 26, time.timestamp_subsec_micros()),
        ] {
            let mut rest = value;
            for digit in text[from..to].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_printed_with_six_digits_and_a_z() {
        let time = Timestamp::parse("2026-01-31T13:00:00.1234567+01:00").expect("RFC 3339");
        assert_eq!(time.to_string(), "2026-01-31T12:00:00.123456Z");
        assert_eq!(Timestamp::parse(&time.to_string()), Some(time));
        assert_eq!(Timestamp::parse("2026-01-31"), None);
    }

    #[test]
    fn instants_are_printed_as_chrono_prints_them() {
        for micros in [
            0,
            -1,
            951_782_399_999_999,
            1_709_251_199_000_001,
            253_402_300_799_999_999,
            253_402_300_800_000_000,
            -62_135_596_800_000_001,
            -62_167_219_200_000_001,
        ] {
            let time = Timestamp::from_micros(micros);
            let expected = time.to_utc().to_rfc3339_opts(SecondsFormat::Micros, true);
            assert_eq!(time.to_string(), expected);
        }
    }
}
