//! `${NAME}` in any string of the file is the environment's. What was filled in is remembered, so that no
//! message ever shows it.

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

/// Looks a variable up: the process's environment, or a test's.
pub(super) type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The process's environment; a value that is not UTF-8 counts as unset.
pub(super) fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Shorter values are no secrets, and stand in any message by chance.
const SECRET_MIN: usize = 4;

/// What was filled in: value to name.
#[derive(Clone, Default)]
pub(super) struct Filled(BTreeMap<String, String>);

/// The names only.
impl fmt::Debug for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.values()).finish()
    }
}

impl Filled {
    /// `message`, with each value that came from the environment turned back into its name.
    pub(super) fn hide_in(&self, message: &str) -> String {
        // Longest first: one value may hold another.
        let mut values: Vec<_> = self.0.iter().filter(|(value, _)| value.len() >= SECRET_MIN).collect();
        values.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        values.into_iter().fold(message.to_owned(), |text, (value, name)| {
            text.replace(value.as_str(), &format!("${{{name}}}"))
        })
    }
}

/// What is wrong with a `${…}`, and where the string begins.
pub(super) struct Unset {
    pub(super) offset: usize,
    pub(super) message: String,
}

/// Fills in every string value below `table`; keys stay as they are.
pub(super) fn fill(table: &mut DeTable<'_>, lookup: &Lookup<'_>) -> Result<Filled, Unset> {
    let mut filled = Filled::default();
    for (_, value) in table.iter_mut() {
        let offset = value.span().start;
        fill_value(value.get_mut(), offset, lookup, &mut filled)?;
    }
    Ok(filled)
}

fn fill_value(
    value: &mut DeValue<'_>,
    offset: usize,
    lookup: &Lookup<'_>,
    filled: &mut Filled,
) -> Result<(), Unset> {
    match value {
        DeValue::String(text) if text.contains("${") => {
            let replaced = expand(text, lookup, filled).map_err(|message| Unset { offset, message })?;
            *text = replaced.into();
        }
        DeValue::Array(array) => {
            for item in array.iter_mut() {
                let offset = item.span().start;
                fill_value(item.get_mut(), offset, lookup, filled)?;
            }
        }
        DeValue::Table(table) => {
            for (_, value) in table.iter_mut() {
                let offset = value.span().start;
                fill_value(value.get_mut(), offset, lookup, filled)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn expand(text: &str, lookup: &Lookup<'_>, filled: &mut Filled) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        expanded.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            return Err("`${` without its `}`".to_owned());
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("`${{{name}}}` is no environment variable's name: letters, digits and _"));
        }
        let value = lookup(name).ok_or_else(|| {
            format!("environment variable `{name}` is not set, nothing to put for `${{{name}}}`")
        })?;
        expanded.push_str(&value);
        filled.0.insert(value, name.to_owned());
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}
