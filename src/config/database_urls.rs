//! The URLs of the database: one, or those of the PostgreSQL servers of which one is the primary. Floor 1.

use std::{fmt, str::FromStr};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};

use super::values::{DatabaseKind, DatabaseUrl, SecretParser};

const NAME: &str = "database-url";
const DEFAULT: &str = "sqlite://tidings.db";
/// What a URL begins with. A comma that is not followed by one of these is a part of its URL.
const SCHEMES: [&str; 3] = ["sqlite:", "postgres:", "postgresql:"];

/// The URLs of one database, in the order in which they are tried; at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrls(Vec<DatabaseUrl>);

impl DatabaseUrls {
    /// Which database the first of them names: all are of one kind where `problem` has none.
    #[must_use]
    pub fn kind(&self) -> DatabaseKind {
        self.0[0].kind()
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &DatabaseUrl> {
        self.0.iter()
    }

    /// The first of them: the only one on SQLite.
    #[must_use]
    pub fn first(&self) -> &DatabaseUrl {
        &self.0[0]
    }

    /// What is wrong with them together.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let is_postgres = |url: &DatabaseUrl| url.kind() == DatabaseKind::Postgres;
        (self.0.len() > 1 && !self.0.iter().all(is_postgres)).then_some(
            "--database-url: it is given several times for the servers of one PostgreSQL of which one is the primary; a SQLite \
             file has one URL",
        )
    }
}

impl FromStr for DatabaseUrls {
    type Err = String;

    /// Reads one or several, with commas between them.
    ///
    /// # Errors
    /// As [`DatabaseUrl`]; never repeats the text.
    fn from_str(text: &str) -> Result<Self, String> {
        let begins_url = |rest: &str| SCHEMES.iter().any(|scheme| rest.starts_with(scheme));
        let mut urls = Vec::new();
        let mut begin = 0;
        for (comma, _) in text.match_indices(',') {
            if begins_url(text[comma + 1..].trim_start()) {
                urls.push(text[begin..comma].trim().parse()?);
                begin = comma + 1;
            }
        }
        urls.push(text[begin..].trim().parse()?);
        Ok(Self(urls))
    }
}

/// By hand, since one value may hold several URLs, and a comma need not divide them.
impl Args for DatabaseUrls {
    fn augment_args(command: Command) -> Command {
        command.arg(
            Arg::new(NAME)
                .long(NAME)
                .env("DATABASE_URL")
                .hide_env_values(true)
                .value_name("URL")
                .default_value(DEFAULT)
                .action(ArgAction::Append)
                .value_parser(SecretParser::<DatabaseUrls>::new())
                .help(
                    "The database: sqlite://FILE, or postgres://USER:PASSWORD@HOST/DATABASE. Repeatable (with commas between \
                     them, too) for a PostgreSQL with standbys: they are tried in order until one is the primary, at start and \
                     after a lost connection",
                ),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DatabaseUrls {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = matches.get_many::<DatabaseUrls>(NAME).into_iter().flatten();
        let urls: Vec<_> = given.flat_map(|urls| urls.0.iter().cloned()).collect();
        if urls.is_empty() {
            return Err(clap::Error::new(ErrorKind::MissingRequiredArgument));
        }
        Ok(Self(urls))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Without passwords.
impl fmt::Display for DatabaseUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, url) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{url}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DatabaseUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let urls: DatabaseUrls = text.parse().unwrap();
        urls.iter().map(|url| url.as_str().to_owned()).collect()
    }

    #[test]
    fn only_a_comma_before_another_url_divides_them() {
        assert_eq!(
            read("postgres://a/d,postgresql://b/d, postgres://c/d"),
            ["postgres://a/d", "postgresql://b/d", "postgres://c/d"]
        );
        assert_eq!(read("sqlite://one,two.db"), ["sqlite://one,two.db"]);
        assert_eq!(
            read("postgres://me:a,b@h/d,postgres://me:a,b@i/d"),
            ["postgres://me:a,b@h/d", "postgres://me:a,b@i/d"]
        );
    }

    #[test]
    fn a_wrong_one_among_several_is_refused_without_its_password() {
        let problem = "postgres://a/d,postgres://me:hunter2@["
            .parse::<DatabaseUrls>()
            .unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn several_are_refused_where_one_is_a_file() {
        for (text, is_right) in [
            ("sqlite://a.db", true),
            ("postgres://a/d,postgres://b/d", true),
            ("sqlite://a.db,sqlite://b.db", false),
            ("postgres://a/d,sqlite://b.db", false),
        ] {
            let urls: DatabaseUrls = text.parse().unwrap();
            assert_eq!(urls.problem().is_none(), is_right, "{text}");
        }
    }
}
