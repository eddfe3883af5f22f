//! Values of options: byte sizes, durations, the database's URL, tokens. What is secret is never printed. Floor 1.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use clap::{Arg, ArgAction, Command, builder::TypedValueParser, error::ErrorKind};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::Url;

use crate::domain::access::Role;

/// Makes an option one that is true or false: `--name` and `--name=true`, or `--name=false`.
pub(super) fn boolean(option: Arg) -> Arg {
    option
        .value_name("BOOL")
        .default_missing_value("true")
        .num_args(0..=1)
        .require_equals(true)
        .action(ArgAction::Set)
}

/// Reads a size such as `16MiB`, `64KiB` or `1048576`, in bytes.
///
/// # Errors
/// Text that is not a whole number with one of the units B, KiB, MiB and GiB.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let (number, unit) = split_unit(text);
    let factor: usize = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        _ => {
            return Err(format!(
                "`{unit}` is not a unit of size; use B, KiB, MiB or GiB, such as 16MiB"
            ));
        }
    };
    number
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "expected a whole number with a unit, such as 16MiB".to_owned())
}

/// Reads a duration such as `250ms`, `5s`, `2m`, `1h` or `30d`.
///
/// # Errors
/// Text that is not a whole number with one of the units ms, s, m, h and d.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => {
            return Err(format!(
                "a unit is missing; use ms, s, m, h or d, such as {text}s"
            ));
        }
        _ => {
            return Err(format!(
                "`{unit}` is not a unit of time; use ms, s, m, h or d, such as 5s"
            ));
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_ms))
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a whole number with a unit, such as 5s or 250ms".to_owned())
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (&text[..digits], text[digits..].trim())
}

/// Which database a URL names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// An embedded SQLite file.
    Sqlite,
    /// A PostgreSQL server.
    Postgres,
}

/// The URL of the database. It may hold a password, so printing it leaves that out.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    text: String,
    kind: DatabaseKind,
}

impl DatabaseUrl {
    /// The URL with its password, for the driver only.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Which database it names.
    #[must_use]
    pub fn kind(&self) -> DatabaseKind {
        self.kind
    }

    /// The path of the SQLite file; `None` for PostgreSQL.
    #[must_use]
    pub fn sqlite_path(&self) -> Option<&str> {
        (self.kind == DatabaseKind::Sqlite).then(|| sqlite_path(&self.text))
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    /// # Errors
    /// Another scheme, a database in memory, or text that is no URL: says what would be right, and never repeats the text.
    fn from_str(text: &str) -> Result<Self, String> {
        const RIGHT: &str = "use sqlite://FILE (such as sqlite://tidings.db) or postgres://USER:PASSWORD@HOST/DATABASE";
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        let kind = match scheme {
            "sqlite" => DatabaseKind::Sqlite,
            "postgres" | "postgresql" => DatabaseKind::Postgres,
            "" => return Err(format!("it is not a URL; {RIGHT}")),
            other => {
                return Err(format!(
                    "{other}: is not a database that tidings can use; {RIGHT}"
                ));
            }
        };
        if kind == DatabaseKind::Sqlite {
            let path = sqlite_path(text);
            if path.contains(":memory:") || text.contains("mode=memory") {
                return Err("a database in memory would lose every event at the stop; name a file, such as sqlite://tidings.db".to_owned());
            }
            if path.is_empty() {
                return Err(
                    "the name of the file is missing; name one, such as sqlite://tidings.db"
                        .to_owned(),
                );
            }
        } else {
            let url = Url::parse(text).map_err(|_| {
                format!("it cannot be read as a URL (special characters in the password must be percent-encoded); {RIGHT}")
            })?;
            if url.host_str().is_some_and(|host| host.contains(',')) {
                return Err("it names several hosts; give a URL for each of them".to_owned());
            }
        }
        Ok(Self {
            text: text.to_owned(),
            kind,
        })
    }
}

fn sqlite_path(url: &str) -> &str {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    let path = path.strip_prefix("//").unwrap_or(path);
    path.split('?').next().unwrap_or_default()
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == DatabaseKind::Sqlite {
            return f.write_str(&self.text);
        }
        // The query part may hold a password too, so only these parts are shown.
        let url = Url::parse(&self.text).map_err(|_| fmt::Error)?;
        write!(f, "postgres://{}", url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bearer token and the role that it gives. Only the secret's SHA-256 is kept, so it cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    role: Role,
    digest: [u8; 32],
}

impl Token {
    /// A token that gives `role` to whoever presents `secret`.
    #[must_use]
    pub fn new(role: Role, secret: &str) -> Self {
        Self {
            role,
            digest: Sha256::digest(secret).into(),
        }
    }

    /// The role that it gives.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether `digest` is the SHA-256 of its secret, in constant time.
    #[must_use]
    pub fn has_digest(&self, digest: &[u8; 32]) -> bool {
        self.digest.ct_eq(digest).into()
    }
}

impl FromStr for Token {
    type Err = String;

    /// # Errors
    /// Text other than `read=SECRET`, `write=SECRET` or `admin=SECRET`; never repeats the text.
    fn from_str(text: &str) -> Result<Self, String> {
        const RIGHT: &str = "expected read=SECRET, write=SECRET or admin=SECRET";
        let (role, secret) = text.split_once('=').ok_or_else(|| RIGHT.to_owned())?;
        let role = match role {
            "read" => Role::Read,
            "write" => Role::Write,
            "admin" => Role::Admin,
            _ => return Err(format!("there is no such role; {RIGHT}")),
        };
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "the secret must be printable ASCII without spaces, and not empty; {RIGHT}"
            ));
        }
        Ok(Self::new(role, secret))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?})", self.role)
    }
}

/// Reads a value that may hold a secret: unlike clap's own parsers, it leaves the value out of its errors.
#[derive(Clone)]
pub(super) struct SecretParser<T>(std::marker::PhantomData<fn() -> T>);

impl<T> SecretParser<T> {
    pub(super) fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T: FromStr<Err = String> + Clone + Send + Sync + 'static> TypedValueParser
    for SecretParser<T>
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<T, clap::Error> {
        let name = arg.map(ToString::to_string).unwrap_or_default();
        let variable = arg
            .and_then(|arg| Some(format!(" (or {})", arg.get_env()?.to_str()?)))
            .unwrap_or_default();
        let refuse = |problem: String| {
            command.clone().error(
                ErrorKind::ValueValidation,
                format!("the value of '{name}'{variable} is wrong: {problem}"),
            )
        };
        value
            .to_str()
            .ok_or_else(|| refuse("it is not UTF-8".to_owned()))?
            .parse()
            .map_err(refuse)
    }
}

pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let numeric = text
        .strip_prefix("localhost:")
        .map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
        "expected an IP address (or localhost) and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080".to_owned()
    })
}

/// Brings an origin into the form in which browsers send it.
pub(super) fn parse_origin(text: &str) -> Result<String, String> {
    const RIGHT: &str =
        "expected a scheme and a host, such as https://app.example.com or http://localhost:3000";
    let url = Url::parse(text).map_err(|_| RIGHT.to_owned())?;
    let plain = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty();
    if url.host_str().is_none() || !plain || !matches!(url.scheme(), "http" | "https") {
        return Err(RIGHT.to_owned());
    }
    Ok(url.origin().ascii_serialization())
}

pub(super) fn parse_host(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if text.is_empty() || !text.bytes().all(plain) {
        return Err(
            "expected a host name without scheme and port, such as events.example.com".to_owned(),
        );
    }
    Ok(text.to_ascii_lowercase())
}

pub(super) fn parse_filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("{error}; expected error, warn, info, debug or trace, also for each module: info,tidings::http=debug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_bytes("16MiB"), Ok(16 << 20));
        assert_eq!(parse_bytes("64 KiB"), Ok(64 << 10));
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        for wrong in ["", "MiB", "1.5MiB", "-1", "1 parsec", "99999999999GiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("5").unwrap_err().contains("5s"));
        for wrong in ["", "s", "5 fortnights", "-1s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_database_of_another_kind_is_refused_with_what_would_be_right() {
        for wrong in [
            "mysql://localhost/x",
            "tidings.db",
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://x?mode=memory",
            "sqlite://",
        ] {
            let problem = wrong.parse::<DatabaseUrl>().unwrap_err();
            assert!(
                problem.contains("sqlite://tidings.db"),
                "{wrong}: {problem}"
            );
        }
        let url: DatabaseUrl = "sqlite://tidings.db".parse().unwrap();
        assert_eq!(
            (url.kind(), url.sqlite_path()),
            (DatabaseKind::Sqlite, Some("tidings.db"))
        );
        assert_eq!(
            "sqlite:///var/lib/t.db"
                .parse::<DatabaseUrl>()
                .unwrap()
                .sqlite_path(),
            Some("/var/lib/t.db")
        );
    }

    #[test]
    fn a_database_url_is_printed_without_its_password() {
        let url: DatabaseUrl = "postgres://me:hunter2@db.example:5433/tidings?password=hunter2"
            .parse()
            .unwrap();
        assert_eq!(url.to_string(), "postgres://db.example:5433/tidings");
        assert!(!format!("{url:?}").contains("hunter2"));
        assert!(
            !"postgres://me:hunter2@["
                .parse::<DatabaseUrl>()
                .unwrap_err()
                .contains("hunter2")
        );
    }

    #[test]
    fn a_token_is_printed_without_its_secret() {
        let token: Token = "write=s3=cret".parse().unwrap();
        assert_eq!(format!("{token:?}"), "Token(Write)");
        assert!(token.has_digest(&Sha256::digest("s3=cret").into()));
        for wrong in [
            "hunter2",
            "root=hunter2",
            "hunter2=",
            "read=hunter2 hunter2",
            "read=",
        ] {
            assert!(
                !wrong.parse::<Token>().unwrap_err().contains("hunter2"),
                "{wrong}"
            );
        }
    }
}
