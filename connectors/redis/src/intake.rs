//! A change that an application hands over, as JSON (docs/INTAKE.md): `{"db": 3, "command": ["SET", "k", "v"]}`. An
//! argument that is no text is `{"base64": "…"}`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use causeway_core::{Change, Key, Op, Position, Space};
use serde::Deserialize;

use crate::commands::{Effects, SplitOp, effects};
use crate::resp::Command;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    db: u32,
    command: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Argument {
    Text(String),
    Number(serde_json::Number),
    Bytes { base64: String },
}

impl Argument {
    fn bytes(self) -> Result<Vec<u8>, String> {
        Ok(match self {
            Argument::Text(text) => text.into_bytes(),
            Argument::Number(number) => number.to_string().into_bytes(),
            Argument::Bytes { base64 } => {
                BASE64.decode(base64).map_err(|error| format!("base64: {error}"))?
            }
        })
    }
}

/// Words of a command at the least: of those that the stream brings the server has seen to that.
const WORDS_MIN: [(&str, usize); 10] = [
    ("SET", 3),
    ("HSET", 4),
    ("HMSET", 4),
    ("HDEL", 3),
    ("SADD", 3),
    ("SREM", 3),
    ("ZADD", 4),
    ("ZREM", 3),
    ("PEXPIREAT", 3),
    ("EXPIREAT", 3),
];

/// Reads a line. That the command does not depend on what is there is for the caller to see, by its class.
///
/// # Errors
///
/// It is no such JSON, or a command that a line cannot be.
pub(crate) fn change(line: &[u8]) -> Result<Change, String> {
    let form = "a line is {\"command\": [\"SET\", key, value]}, with \"db\" if that is not 0";
    let Line { db, command } = serde_json::from_slice(line).map_err(|error| format!("{error}; {form}"))?;
    let args: Vec<Vec<u8>> = command.into_iter().map(Argument::bytes).collect::<Result<_, _>>()?;
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    let command = Command::of(&args);
    let name = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).to_ascii_uppercase();
    if let Some((_, min)) = WORDS_MIN.iter().find(|(known, min)| *known == name && args.len() < *min) {
        return Err(format!("{name} with {} words is no command: it has {min} at least", args.len()));
    }
    let key = |name: &Bytes| Key { space: Space::Db(db), name: name.clone() };
    let made = |op, name: &Bytes, value| Ok(Change::captured(op, key(name), value, Position::default(), 0));
    match effects(&command, db) {
        Effects::One(key) => made(Op::Command, &key, Some(command.raw.clone())),
        Effects::Split(all) => match all.as_slice() {
            [(key, SplitOp::Delete)] if ["DEL", "UNLINK"].contains(&name.as_str()) => {
                made(Op::Delete, key, None)
            }
            [_] => Err(format!("{name} asks for a condition, and nobody looks: hand over what came of it")),
            _ => Err(format!("{name} of several keys: a line is of one key, send a line for each")),
        },
        Effects::Reread(_) => Err(format!(
            "{name} depends on when or where it is done: hand over what came of it, a time as SET … PXAT or PEXPIREAT"
        )),
        Effects::Nothing | Effects::Whole | Effects::Function => Err(format!("{name} writes no key: {form}")),
        Effects::Unknown => {
            Err(format!("{name} with {} arguments is no command that is known here", args.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(Op, u32, Vec<u8>, Option<String>), String> {
        let change = change(line.as_bytes())?;
        let Space::Db(db) = change.key.space else { panic!("{change:?}") };
        let value = change.value.map(|value| String::from_utf8_lossy(&value).into_owned());
        Ok((change.op, db, change.key.name.to_vec(), value))
    }

    #[test]
    fn a_command_of_one_key_is_a_change() {
        let set = "*5\r\n$3\r\nset\r\n$1\r\nk\r\n$1\r\n7\r\n$4\r\nPXAT\r\n$13\r\n1900000000000\r\n";
        assert_eq!(
            read(r#"{"db": 3, "command": ["set", "k", 7, "PXAT", 1900000000000]}"#),
            Ok((Op::Command, 3, b"k".to_vec(), Some(set.to_owned())))
        );
        assert_eq!(read(r#"{"command": ["DEL", {"base64": "/w=="}]}"#), Ok((Op::Delete, 0, vec![255], None)));
    }

    #[test]
    fn what_cannot_be_one_says_why() {
        for (line, part) in [
            ("", "EOF"),
            ("[]", "a line is"),
            (r#"{"command": [], "key": 1}"#, "unknown field"),
            (r#"{"command": [null]}"#, "a line is"),
            (r#"{"command": ["SET", {"base64": "?"}]}"#, "base64"),
            (r#"{"command": []}"#, "no command"),
            (r#"{"command": ["SET", "k"]}"#, "no command"),
            (r#"{"command": ["SET", "k", "v", "NX"]}"#, "condition"),
            (r#"{"command": ["SETNX", "k", "v"]}"#, "condition"),
            (r#"{"command": ["SET", "k", "v", "EX", "9"]}"#, "PXAT"),
            (r#"{"command": ["EXPIRE", "k", "9"]}"#, "PEXPIREAT"),
            (r#"{"command": ["DEL", "a", "b"]}"#, "a line for each"),
            (r#"{"command": ["RENAME", "a", "b"]}"#, "what came of it"),
            (r#"{"command": ["FLUSHALL"]}"#, "no key"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
