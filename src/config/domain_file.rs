//! The file that declares the domain: which one, and reading it. Floor 1.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::documented_defaults;
use crate::domain::{
    Decider, Domain, DomainError,
    declared::{self, DeclaredAggregate, WrongDeclaration},
};

/// Which aggregates, commands and events there are.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Domain")]
pub struct DomainFile {
    /// The file (TOML) that declares the aggregates with their commands and events; `tidings domain check FILE` says whether
    /// one is right [without it: the users of the guide]
    #[arg(
        id = "domain",
        long = "domain",
        env = "TIDINGS_DOMAIN",
        value_name = "FILE"
    )]
    pub path: Option<PathBuf>,
}

/// Why a file gives no domain.
#[derive(Debug, thiserror::Error)]
pub enum DomainFileError {
    /// It cannot be read.
    #[error("cannot read the domain file {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It declares no domain that can be used.
    #[error("the domain file is wrong:\n{}", with_path(.path, .wrong))]
    Wrong {
        /// The file.
        path: String,
        /// What is wrong with it.
        wrong: WrongDeclaration,
    },
    /// What it declares makes no domain.
    #[error("the domain file {path} cannot be used")]
    NoDomain {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: DomainError,
    },
}

/// Each problem in a line of its own, in the form that editors follow.
fn with_path(path: &str, wrong: &WrongDeclaration) -> String {
    let lines: Vec<String> = wrong
        .problems
        .iter()
        .map(|problem| format!("{path}:{problem}"))
        .collect();
    lines.join("\n")
}

impl DomainFile {
    /// Loads the domain: that of the file, or the built-in one.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong: each problem with its line and what would be right.
    pub fn load(&self) -> Result<Domain, DomainFileError> {
        match &self.path {
            None => Ok(Domain::guide()),
            Some(path) => read(path).map(|(_, domain)| domain),
        }
    }
}

/// Reads a domain file: what it declares, and the domain that this is.
///
/// # Errors
/// As [`DomainFile::load`].
pub fn read(path: &Path) -> Result<(Vec<DeclaredAggregate>, Domain), DomainFileError> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|source| DomainFileError::Unreadable {
        path: name.clone(),
        source,
    })?;
    let declared = declared::parse(&text).map_err(|wrong| DomainFileError::Wrong {
        path: name.clone(),
        wrong,
    })?;
    let deciders = declared
        .iter()
        .map(|aggregate| Arc::new(aggregate.clone()) as Arc<dyn Decider>)
        .collect();
    let domain =
        Domain::new(deciders).map_err(|source| DomainFileError::NoDomain { path: name, source })?;
    Ok((declared, domain))
}

impl Default for DomainFile {
    fn default() -> Self {
        documented_defaults()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_domain_is_that_of_the_guide() {
        let domain = DomainFile { path: None }
            .load()
            .expect("the built-in domain");
        let commands: Vec<&str> = domain
            .command_types()
            .map(|kind| kind.description.name.as_str())
            .collect();
        assert_eq!(commands, ["create_user", "delete_user", "update_user"]);
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "[aggregates.user]\npublish = 1\n").expect("written");
        let path = Some(file.path().to_owned());
        let error = DomainFile { path }.load().expect_err("it is wrong");
        let expected = format!("\n{}:2:1: unknown key `publish`", file.path().display());
        assert!(error.to_string().contains(&expected), "{error}");

        let path = Some(PathBuf::from("/no/such/file.toml"));
        let error = DomainFile { path }.load().expect_err("there is none");
        assert!(error.to_string().contains("/no/such/file.toml"), "{error}");
    }
}
