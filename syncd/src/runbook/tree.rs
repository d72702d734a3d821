//! YAML as a tree that knows its lines and columns.
//!
//! A runbook needs lists, maps and texts. Anchors, aliases and tags are refused: they are what makes a small file
//! a large one, and nobody can see at a glance what it says.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// Line and column, from 1, columns in characters.
pub(super) type Place = (usize, usize);

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at: Place,
    pub(super) message: String,
}

impl Wrong {
    pub(super) fn new(at: Place, message: impl Into<String>) -> Wrong {
        Wrong { at, message: message.into() }
    }
}

/// Bytes of a file: two hundred steps with all that they can say.
pub(super) const BYTES_MAX: u64 = 256 << 10;

/// A step's list of channels is four deep.
const DEPTH_MAX: usize = 8;

/// Lists, maps and texts of a file.
const NODES_MAX: usize = 20_000;

/// Characters of one text.
const TEXT_MAX: usize = 4_096;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing stands there, or `null`, or `~`.
    Nothing,
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: Place,
    pub(super) key: String,
    pub(super) value: Node,
}

impl Value {
    /// For messages.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Value::Nothing => "nothing",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// A list or map that is not at its end.
struct Open {
    at: Place,
    list: Option<Vec<Node>>,
    map: Vec<Entry>,
    key: Option<(Place, String)>,
}

/// Reads the one document of `text`.
pub(super) fn read(text: &str) -> Result<Node, Wrong> {
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    let mut nodes = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event
            .map_err(|error| Wrong::new(place(error.marker().line(), error.marker().col()), error.info()))?;
        let at = start(&span);
        nodes += 1;
        if nodes > NODES_MAX {
            return Err(Wrong::new(at, format!("more than {NODES_MAX} values, allowed are fewer")));
        }
        let whole = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::DocumentStart(_) if root.is_some() => {
                return Err(Wrong::new(at, "a second document, allowed is one in a file"));
            }
            Event::DocumentStart(_) => continue,
            Event::Alias(_) => return Err(Wrong::new(at, ALIAS)),
            Event::Scalar(text, style, anchor, tag) => {
                plain_node(at, anchor, tag.is_some())?;
                Node { at, value: scalar(at, &text, style)? }
            }
            Event::SequenceStart(anchor, tag) => {
                plain_node(at, anchor, tag.is_some())?;
                deeper(&mut open, at, true)?;
                continue;
            }
            Event::MappingStart(anchor, tag) => {
                plain_node(at, anchor, tag.is_some())?;
                deeper(&mut open, at, false)?;
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open { at, list: Some(list), .. }) => Node { at, value: Value::List(list) },
                Some(Open { at, map, .. }) => Node { at, value: Value::Map(map) },
                None => return Err(Wrong::new(at, "an end of what did not begin")),
            },
        };
        match open.last_mut() {
            Some(outer) => outer.take(whole)?,
            None => root = Some(whole),
        }
    }
    root.ok_or_else(|| Wrong::new((1, 1), "the file is empty, allowed is a runbook"))
}

const ALIAS: &str = "anchors and aliases (& and *) are not allowed: write it out, or put the text in quotes";

impl Open {
    fn take(&mut self, node: Node) -> Result<(), Wrong> {
        if let Some(list) = &mut self.list {
            list.push(node);
            return Ok(());
        }
        let Some((at, key)) = self.key.take() else {
            let Value::Text(key) = node.value else {
                let message = format!("a key that is {}, allowed is a text", node.value.what());
                return Err(Wrong::new(node.at, message));
            };
            if let Some(first) = self.map.iter().find(|entry| entry.key == key) {
                let message =
                    format!("`{key}` stands here twice, first in line {}; allowed is once", first.at.0);
                return Err(Wrong::new(node.at, message));
            }
            self.key = Some((node.at, key));
            return Ok(());
        };
        self.map.push(Entry { at, key, value: node });
        Ok(())
    }
}

fn deeper(open: &mut Vec<Open>, at: Place, list: bool) -> Result<(), Wrong> {
    if open.len() == DEPTH_MAX {
        return Err(Wrong::new(at, format!("lists and maps more than {DEPTH_MAX} deep, allowed are fewer")));
    }
    open.push(Open { at, list: list.then(Vec::new), map: Vec::new(), key: None });
    Ok(())
}

fn plain_node(at: Place, anchor: usize, tagged: bool) -> Result<(), Wrong> {
    match (anchor, tagged) {
        (0, false) => Ok(()),
        (0, true) => Err(Wrong::new(at, "tags (!) are not allowed: put the text in quotes")),
        _ => Err(Wrong::new(at, ALIAS)),
    }
}

fn scalar(at: Place, text: &str, style: ScalarStyle) -> Result<Value, Wrong> {
    if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null") {
        return Ok(Value::Nothing);
    }
    if text.chars().count() > TEXT_MAX {
        return Err(Wrong::new(at, format!("a text of more than {TEXT_MAX} characters, allowed are fewer")));
    }
    // What is printed must not steer a terminal.
    if text.chars().any(|c| c.is_control() && c != '\n') {
        return Err(Wrong::new(at, "a text with control characters, allowed are printable ones"));
    }
    Ok(Value::Text(text.to_owned()))
}

fn start(span: &Span) -> Place {
    place(span.start.line(), span.start.col())
}

fn place(line: usize, column: usize) -> Place {
    (line.max(1), column + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(node: &Node) -> &str {
        match &node.value {
            Value::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_know_where_they_stand() {
        let Value::Map(entries) = read("a: 1\nlist:\n  - x: [é, ü]\n  - ~\n").unwrap().value else {
            panic!()
        };
        assert_eq!((entries[0].at, entries[0].value.at), ((1, 1), (1, 4)));
        assert_eq!(text(&entries[0].value), "1");
        let Value::List(items) = &entries[1].value.value else { panic!() };
        let Value::Map(inner) = &items[0].value else { panic!() };
        let Value::List(letters) = &inner[0].value.value else { panic!() };
        assert_eq!(letters[1].at, (3, 12));
        assert_eq!(items[1].value, Value::Nothing);
    }

    #[test]
    fn what_makes_a_small_file_a_large_one_is_refused() {
        for (yaml, at, holds) in [
            ("a: &x 1\nb: *x", (1, 4), "anchors"),
            ("a: 1\nb: *x", (2, 4), ""),
            ("a: !!str 1", (1, 4), "tags"),
            ("a: 1\n---\nb: 2", (2, 1), "second document"),
            ("a: 1\nb: 2\na: 3", (3, 1), "twice, first in line 1"),
            ("[[[[[[[[[[1]]]]]]]]]]", (1, 9), "8 deep"),
            ("", (1, 1), "empty"),
            ("# only words", (1, 1), "empty"),
            ("? [a]\n: b", (1, 3), "a key that is a list"),
            ("a: \"\\e[2J\"", (1, 4), "control"),
            ("a: [1", (2, 1), ""),
        ] {
            let wrong = read(yaml).unwrap_err();
            assert!(wrong.message.contains(holds) && wrong.at == at, "{yaml}: {wrong:?}");
        }
        let bomb = format!("[{}]", "a,".repeat(NODES_MAX));
        assert!(read(&bomb).unwrap_err().message.contains("values"));
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read(&"- ".repeat(100_000)).unwrap_err().message.contains("deep"));
        assert!(
            read(&format!("a: {}", "x".repeat(TEXT_MAX + 1))).unwrap_err().message.contains("characters")
        );
    }
}
