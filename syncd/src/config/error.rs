use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong with a configuration file, or a runbook. Names the key and what is allowed; holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    path: PathBuf,
    /// Line and column, from 1, columns in characters; `None` if it is about the file as a whole.
    place: Option<(usize, usize)>,
    message: String,
}

impl ConfigError {
    pub(crate) fn at(path: &Path, place: (usize, usize), message: impl Into<String>) -> ConfigError {
        ConfigError { path: path.to_owned(), place: Some(place), message: message.into() }
    }

    pub(crate) fn whole_file(path: &Path, message: impl Into<String>) -> ConfigError {
        ConfigError { path: path.to_owned(), place: None, message: message.into() }
    }
}

/// `syncd.toml:4:1: unknown field …`.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for ConfigError {}
