//! What connectors read their part of the configuration with.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::OpenError;

type Result<T> = std::result::Result<T, OpenError>;

/// A table and where it stands.
pub struct At<'t> {
    /// The table.
    pub table: &'t Table,
    /// Its place, from the channel's table on.
    pub path: Vec<String>,
}

impl<'t> At<'t> {
    /// The error about `key`.
    pub fn error(&self, key: &str, message: &str) -> OpenError {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        OpenError { path, message: message.to_owned() }
    }

    /// Refuses keys that are not `allowed`.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn known(&self, allowed: &[&str]) -> Result<()> {
        for key in self.table.keys() {
            if !allowed.contains(&key.as_str()) {
                let names: Vec<String> = allowed.iter().map(|k| format!("`{k}`")).collect();
                let message = format!("unknown field, expected one of {}", names.join(", "));
                return Err(self.error(key, &message));
            }
        }
        Ok(())
    }

    /// The table `key`, empty where there is none.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn inner(&self, key: &str) -> Result<At<'t>> {
        static EMPTY: std::sync::LazyLock<Table> = std::sync::LazyLock::new(Table::new);
        let mut path = self.path.clone();
        path.push(key.to_owned());
        match self.table.get(key) {
            None => Ok(At { table: &EMPTY, path }),
            Some(Value::Table(table)) => Ok(At { table, path }),
            Some(_) => Err(self.error(key, "a table was expected, such as { … }")),
        }
    }

    /// The text `key`, which is not empty.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn string(&self, key: &str) -> Result<Option<String>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(self.error(key, "a text was expected")),
        }
    }

    /// The list of texts `key`, none of them empty; `example` is one as it may be.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn strings(&self, key: &str, example: &str) -> Result<Vec<String>> {
        let wrong = || self.error(key, &format!("a list of texts was expected, such as [\"{example}\"]"));
        match self.table.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if !items.is_empty() => items
                .iter()
                .map(|item| item.as_str().filter(|s| !s.is_empty()).map(str::to_owned).ok_or_else(wrong))
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// Reads a site's `url`, or `urls` instead: the key that was given, and what stands there. `one` and `several` are what such
    /// an address looks like under each.
    ///
    /// # Errors
    ///
    /// Neither is given, or both, or not as allowed.
    pub fn urls(&self, one: &str, several: &str) -> Result<(&'static str, Vec<String>)> {
        match (self.string("url")?, self.table.contains_key("urls")) {
            (Some(_), true) => Err(self.error("urls", "`url` is given already: keep one of both")),
            (Some(url), false) => Ok(("url", vec![url])),
            (None, true) => Ok(("urls", self.strings("urls", several)?)),
            (None, false) => Err(self.error("url", &format!("is missing, allowed is such as `{one}`"))),
        }
    }

    /// The list of numbers `key`, each from 0 to `max`; it is there.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn integers(&self, key: &str, max: i64) -> Result<Vec<i64>> {
        let wrong = || self.error(key, &format!("a list of numbers from 0 to {max} was expected"));
        match self.table.get(key) {
            Some(Value::Array(items)) if !items.is_empty() => items
                .iter()
                .map(|item| item.as_integer().filter(|n| (0..=max).contains(n)).ok_or_else(wrong))
                .collect(),
            _ => Err(wrong()),
        }
    }

    /// The file `key`, seen from `directory`: it is there.
    ///
    /// # Errors
    ///
    /// It is not, or is a folder.
    pub fn file(&self, key: &str, directory: &Path) -> Result<Option<PathBuf>> {
        let Some(name) = self.string(key)? else { return Ok(None) };
        let path = directory.join(name);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => Err(self.error(key, &format!("{} is a folder", path.display()))),
            Ok(_) => Ok(Some(path)),
            Err(e) => Err(self.error(key, &format!("{}: {e}", path.display()))),
        }
    }

    /// A site's own certificate and its key: `cert_file` and `key_file`, seen from `directory`.
    ///
    /// # Errors
    ///
    /// As [`file`](At::file), and one is given without the other.
    pub fn identity(&self, directory: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
        match (self.file("cert_file", directory)?, self.file("key_file", directory)?) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (Some(_), None) => Err(self.error("key_file", "is missing: cert_file needs its key")),
            (None, Some(_)) => Err(self.error("cert_file", "is missing: key_file needs its certificate")),
        }
    }

    /// The number `key`, from `min` to `max`.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn size(&self, key: &str, min: i64, max: i64) -> Result<Option<usize>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if (min..=max).contains(n) => Ok(Some(*n as usize)),
            Some(_) => Err(self.error(key, &format!("allowed is a number from {min} to {max}"))),
        }
    }

    /// The number `key`, at least 1.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn rate(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.size(key, 1, i64::MAX)?.map(|n| n as u64))
    }
}

/// `%41` as `A`; `None` where the result is not UTF-8 or a `%` has no two digits.
pub fn percent(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || Some(char::from(bytes.next()?).to_digit(16)? as u8);
        out.push(digit()? * 16 + digit()?);
    }
    String::from_utf8(out).ok()
}

/// A password, or the file that holds it. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// As the configuration gave it.
    Text(String),
    /// Read at each connect; one newline at the end is not part of it.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Text(_) => f.write_str("Secret"),
            Secret::File(path) => write!(f, "Secret(in {})", path.display()),
        }
    }
}

impl Secret {
    /// The password.
    ///
    /// # Errors
    ///
    /// Its file cannot be read.
    pub fn read(&self) -> std::io::Result<String> {
        match self {
            Secret::Text(text) => Ok(text.clone()),
            Secret::File(path) => {
                let text = std::fs::read_to_string(path)?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
            }
        }
    }
}
