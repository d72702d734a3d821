//! Where each key and value of the file stands, so that an error found later can still point at it.

use std::collections::HashMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// Line and column, from 1.
pub(super) type Place = (usize, usize);

/// By path from the root: `["channel", "0", "batch", "bytes_max"]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    known: HashMap<Vec<String>, Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    key: Place,
    value: Place,
}

impl Places {
    pub(super) fn new(text: &str, root: &DeTable<'_>) -> Places {
        let lines = Lines::new(text);
        let mut places = Places::default();
        places.table(&lines, root, &mut Vec::new());
        places
    }

    fn table(&mut self, lines: &Lines<'_>, table: &DeTable<'_>, path: &mut Vec<String>) {
        for (key, value) in table.iter() {
            path.push(key.get_ref().to_string());
            self.value(lines, key.span(), value.span(), value.get_ref(), path);
            path.pop();
        }
    }

    fn value(
        &mut self,
        lines: &Lines<'_>,
        key: Range<usize>,
        span: Range<usize>,
        value: &DeValue<'_>,
        path: &mut Vec<String>,
    ) {
        let known = Known { key: lines.place(key.start), value: lines.place(span.start) };
        self.known.insert(path.clone(), known);
        match value {
            DeValue::Table(table) => self.table(lines, table, path),
            DeValue::Array(array) => {
                for (i, item) in array.iter().enumerate() {
                    path.push(i.to_string());
                    self.value(lines, item.span(), item.span(), item.get_ref(), path);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    /// Where the value at `path` stands; of what is not there, where the nearest table around it does.
    pub(super) fn value_at(&self, path: &[String]) -> Place {
        self.nearest(path).map_or((1, 1), |(known, whole)| if whole { known.value } else { known.key })
    }

    /// Where the key at `path` stands, or the nearest table around it.
    pub(super) fn key_at(&self, path: &[String]) -> Place {
        self.nearest(path).map_or((1, 1), |(known, _)| known.key)
    }

    fn nearest(&self, path: &[String]) -> Option<(Known, bool)> {
        (1..=path.len())
            .rev()
            .find_map(|end| self.known.get(&path[..end]).map(|known| (*known, end == path.len())))
    }
}

/// Byte offsets to lines and columns.
pub(super) struct Lines<'t> {
    text: &'t str,
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Lines { text }
    }

    /// `offset` beyond the end, or inside a character, counts as the nearest place before.
    pub(super) fn place(&self, offset: usize) -> Place {
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}
