use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use causeway_core::{Change, Class, Key, Op, Space, Unit};

use crate::value::Value;

/// The element of a key's content without its expire-at.
const CONTENT: &[u8] = b"#value";

/// One of the store's operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Set(String, String),
    IncrBy(String, i64),
    RPush(String, String),
    HSet(String, String, String),
    HIncrBy(String, String, i64),
    HDel(String, String),
    SAdd(String, String),
    SRem(String, String),
    ExpireAt(String, u64),
    Persist(String),
    Del(String),
    /// Of the two keys the stream says only that they have to be read again.
    Rename(String, String),
    FlushAll,
}

/// What became of a key, as its owner keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) value: Value,
    pub(crate) expire_at: Option<u64>,
}

impl Command {
    /// Reads the words; `Err` says what is wrong with them, without values.
    pub(crate) fn parse(text: &[u8]) -> Result<Command, String> {
        let text = std::str::from_utf8(text).map_err(|_| "the command is not text".to_owned())?;
        let words: Vec<&str> = text.split(' ').collect();
        let name = words.first().copied().unwrap_or_default();
        let bad = || format!("{name:?} with {} words is no command", words.len());
        let own = |w: &str| w.to_owned();
        Ok(match words.as_slice() {
            ["SET", k, v] => Command::Set(own(k), own(v)),
            ["INCRBY", k, n] => Command::IncrBy(own(k), n.parse().map_err(|_| bad())?),
            ["RPUSH", k, e] => Command::RPush(own(k), own(e)),
            ["HSET", k, f, v] => Command::HSet(own(k), own(f), own(v)),
            ["HINCRBY", k, f, n] => Command::HIncrBy(own(k), own(f), n.parse().map_err(|_| bad())?),
            ["HDEL", k, f] => Command::HDel(own(k), own(f)),
            ["SADD", k, m] => Command::SAdd(own(k), own(m)),
            ["SREM", k, m] => Command::SRem(own(k), own(m)),
            ["PEXPIREAT", k, at] => Command::ExpireAt(own(k), at.parse().map_err(|_| bad())?),
            ["PERSIST", k] => Command::Persist(own(k)),
            ["DEL", k] => Command::Del(own(k)),
            ["RENAME", from, to] => Command::Rename(own(from), own(to)),
            ["FLUSHALL"] => Command::FlushAll,
            _ => return Err(bad()),
        })
    }

    /// The key, of two the first; empty for the whole store.
    pub(crate) fn key(&self) -> &str {
        match self {
            Command::Set(k, _)
            | Command::IncrBy(k, _)
            | Command::RPush(k, _)
            | Command::HSet(k, _, _)
            | Command::HIncrBy(k, _, _)
            | Command::HDel(k, _)
            | Command::SAdd(k, _)
            | Command::SRem(k, _)
            | Command::ExpireAt(k, _)
            | Command::Persist(k)
            | Command::Del(k)
            | Command::Rename(k, _) => k,
            Command::FlushAll => "",
        }
    }

    /// All its keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let other = if let Command::Rename(_, to) = self { Some(to.as_str()) } else { None };
        [self.key()].into_iter().chain(other)
    }

    /// How the stream says it: a delete is `Op::Delete`, FLUSHALL `Op::Ddl`.
    pub(crate) fn op(&self) -> Op {
        match self {
            Command::Del(_) => Op::Delete,
            Command::FlushAll => Op::Ddl,
            _ => Op::Command,
        }
    }

    /// Whether it is left out of the stream where it finds nothing to do.
    pub(crate) fn may_do_nothing(&self) -> bool {
        matches!(
            self,
            Command::HDel(..)
                | Command::SAdd(..)
                | Command::SRem(..)
                | Command::ExpireAt(..)
                | Command::Persist(_)
                | Command::Del(_)
        )
    }

    /// Changes what `old` holds; `Err` says why the store refuses it, and nothing is changed then.
    pub(crate) fn on(&self, old: Option<Stored>) -> Result<Option<Stored>, String> {
        let wrong_type = || "WRONGTYPE the key holds another kind of value".to_owned();
        let expire_at = old.as_ref().and_then(|s| s.expire_at);
        let keep = |value| Ok(Some(Stored { value, expire_at }));
        let value = old.map(|s| s.value);
        let add = |old: Option<&String>, by: i64| -> Result<String, String> {
            let number: i64 =
                old.map_or(Ok(0), |t| t.parse()).map_err(|_| "the value is no number".to_owned())?;
            number
                .checked_add(by)
                .map(|n| n.to_string())
                .ok_or_else(|| "the number would overflow".to_owned())
        };
        match self {
            Command::Rename(..) => Err("a key is renamed with what another one holds".to_owned()),
            Command::Set(_, v) => Ok(Some(Stored { value: Value::Str(v.clone()), expire_at: None })),
            Command::Del(_) | Command::FlushAll => Ok(None),
            Command::IncrBy(_, by) => match value {
                None => keep(Value::Str(add(None, *by)?)),
                Some(Value::Str(text)) => keep(Value::Str(add(Some(&text), *by)?)),
                Some(_) => Err(wrong_type()),
            },
            Command::RPush(_, element) => match value.unwrap_or(Value::List(Vec::new())) {
                Value::List(mut items) => {
                    items.push(element.clone());
                    keep(Value::List(items))
                }
                _ => Err(wrong_type()),
            },
            Command::HSet(..) | Command::HIncrBy(..) | Command::HDel(..) => {
                match value.unwrap_or_else(|| Value::Hash(BTreeMap::new())) {
                    Value::Hash(mut fields) => {
                        match self {
                            Command::HIncrBy(_, f, by) => {
                                let sum = add(fields.get(f), *by)?;
                                fields.insert(f.clone(), sum);
                            }
                            Command::HSet(_, f, v) => drop(fields.insert(f.clone(), v.clone())),
                            Command::HDel(_, f) => drop(fields.remove(f)),
                            _ => {}
                        }
                        if fields.is_empty() { Ok(None) } else { keep(Value::Hash(fields)) }
                    }
                    _ => Err(wrong_type()),
                }
            }
            Command::SAdd(_, member) | Command::SRem(_, member) => {
                match value.unwrap_or_else(|| Value::Set(BTreeSet::new())) {
                    Value::Set(mut members) => {
                        match self {
                            Command::SAdd(..) => members.insert(member.clone()),
                            _ => members.remove(member),
                        };
                        if members.is_empty() { Ok(None) } else { keep(Value::Set(members)) }
                    }
                    _ => Err(wrong_type()),
                }
            }
            Command::ExpireAt(_, at) => Ok(value.map(|value| Stored { value, expire_at: Some(*at) })),
            Command::Persist(_) => Ok(value.map(|value| Stored { value, expire_at: None })),
        }
    }

    fn touches(&self) -> (Option<Bytes>, Class) {
        let element = |f: &str| Some(Bytes::copy_from_slice(f.as_bytes()));
        match self {
            Command::Set(..) => (None, Class::Absolute),
            Command::IncrBy(..) => (Some(Bytes::from_static(CONTENT)), Class::Commuting),
            Command::RPush(..) => (Some(Bytes::from_static(CONTENT)), Class::Other),
            Command::HSet(_, f, _) | Command::HDel(_, f) | Command::SAdd(_, f) | Command::SRem(_, f) => {
                (element(f), Class::Absolute)
            }
            Command::HIncrBy(_, f, _) => (element(f), Class::Commuting),
            Command::ExpireAt(..) | Command::Persist(_) => {
                (Some(Bytes::from_static(Unit::EXPIRE_AT)), Class::Absolute)
            }
            Command::Del(_) => (None, Class::Observed),
            Command::Rename(..) => (None, Class::Other),
            Command::FlushAll => (None, Class::Absolute),
        }
    }
}

/// The key called `name`.
pub(crate) fn key(name: &str) -> Key {
    Key { space: Space::Whole, name: Bytes::copy_from_slice(name.as_bytes()) }
}

/// See [`causeway_core::Connector::units`].
pub(crate) fn units(change: &Change) -> Vec<(Unit, Class)> {
    let whole = |class| vec![(Unit { key: change.key.clone(), element: None }, class)];
    match change.op {
        Op::Read | Op::Put | Op::State | Op::Ddl => whole(Class::Absolute),
        Op::Delete => whole(Class::Observed),
        Op::Refresh | Op::Fence | Op::Position => Vec::new(),
        Op::Command => match change.value.as_deref().map(Command::parse) {
            Some(Ok(command)) => {
                let (element, class) = command.touches();
                vec![(Unit { key: change.key.clone(), element }, class)]
            }
            // What is not understood conflicts with everything on its key.
            _ => whole(Class::Other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(commands: &[&str]) -> Result<Option<String>, String> {
        let mut stored = None;
        for command in commands {
            stored = Command::parse(command.as_bytes())?.on(stored)?;
        }
        Ok(stored.map(|s| s.value.text()))
    }

    #[test]
    fn commands_do_what_their_names_say() {
        let says = |commands: &[&str]| after(commands).unwrap().unwrap_or_default();
        assert_eq!(says(&["SET k 4", "INCRBY k -7"]), "string -3");
        assert_eq!(says(&["RPUSH k b", "RPUSH k a"]), "list b a");
        assert_eq!(says(&["HSET k f 1", "HINCRBY k f 2", "HSET k g x"]), "hash f 3 g x");
        assert_eq!(says(&["HSET k f 1", "HDEL k f"]), "");
        assert_eq!(says(&["SADD k b", "SADD k a", "SADD k b", "SREM k c"]), "set a b");
        assert_eq!(says(&["SADD k b", "SREM k b"]), "");
        assert_eq!(says(&["SET k 4", "DEL k"]), "");
    }

    #[test]
    fn a_key_that_is_renamed_has_both_keys() {
        let rename = Command::parse(b"RENAME a b").unwrap();
        assert_eq!(rename.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(rename.on(None).is_err(), "it is not done by one key alone");
    }

    #[test]
    fn what_the_store_refuses_changes_nothing_and_shows_no_value() {
        let error = after(&["RPUSH k secret", "INCRBY k 1"]).unwrap_err();
        assert!(error.starts_with("WRONGTYPE") && !error.contains("secret"));
        assert!(after(&["SET k 9223372036854775807", "INCRBY k 1"]).is_err());
        assert!(Command::parse(b"EVIL k").is_err() && Command::parse(b"\xff").is_err());
    }
}
