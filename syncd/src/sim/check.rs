//! What has to be true of the two sites in the end.

use std::collections::{BTreeMap, BTreeSet};

use causeway_core::{Change, Op, Site};
use causeway_memory::{Memory, Value};

use super::world::name;
use crate::owners::Owners;

/// All keys of a site: value and expire-at.
pub(super) type Dump = BTreeMap<String, (String, Option<u64>)>;

/// A key that is not what it has to be.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) key: String,
    pub(super) text: String,
}

fn value(dump: &Dump, key: &str) -> String {
    match dump.get(key) {
        None => "-".to_owned(),
        Some((value, None)) => value.clone(),
        Some((value, Some(at))) => format!("{value} until {at}"),
    }
}

/// Where only one site writes a key: both hold just what it wrote.
pub(super) fn exact(expected: &Dump, found: &[Dump; 2]) -> Vec<Difference> {
    let keys: BTreeSet<&String> = found.iter().chain([expected]).flat_map(BTreeMap::keys).collect();
    let wrong = |key: &&String| found.iter().any(|dump| dump.get(*key) != expected.get(*key));
    let tell = |key: &String| Difference {
        key: key.clone(),
        text: format!(
            "{key}: expected {}, first {}, second {}",
            value(expected, key),
            value(&found[0], key),
            value(&found[1], key)
        ),
    };
    keys.into_iter().filter(wrong).map(tell).collect()
}

/// Where both write the same keys: the sites are equal, and, where the logs hold every write, so is the
/// outcome of all of them in the order of their versions, without what a delete had observed.
pub(super) fn collided(
    found: &[Dump; 2],
    logs: Option<&[Vec<Change>; 2]>,
    owners: Option<&Owners>,
) -> Vec<Difference> {
    let keys: BTreeSet<&String> = found.iter().flat_map(BTreeMap::keys).collect();
    let mut wrong = Vec::new();
    for key in keys {
        if found[0].get(key) != found[1].get(key) {
            let text = format!("{key}: first {}, second {}", value(&found[0], key), value(&found[1], key));
            wrong.push(Difference { key: key.clone(), text });
        }
    }
    let Some(logs) = logs else { return wrong };
    let mut writes: BTreeMap<&str, Vec<(usize, &Change)>> = BTreeMap::new();
    for (site, log) in logs.iter().enumerate() {
        for change in log.iter().filter(|change| is_write(change)) {
            writes.entry(name(change)).or_default().push((site, change));
        }
    }
    for (key, writes) in writes {
        // What has expired by now, and where, is not told by the logs alone; values in pieces are not put together here.
        if key.starts_with(['e', 'f', 'i']) || writes.iter().any(|(_, change)| change.part.is_some()) {
            continue;
        }
        if wrong.iter().any(|difference| difference.key == key) {
            continue;
        }
        let owner = owners.and_then(|owners| owners.of(key.as_bytes()));
        let expected = outcome(writes, owner.map(Site::index));
        let held = found[0].get(key).map(|(value, _)| value.clone());
        let same = match key.starts_with(['l', 'q']) {
            true => elements(&expected) == elements(&held),
            false => expected == held,
        };
        if !same {
            let [expected, held] = [expected, held].map(|value| value.unwrap_or_else(|| "-".to_owned()));
            let text = format!("{key}: expected {expected}, both {held}");
            wrong.push(Difference { key: key.to_owned(), text });
        }
    }
    wrong
}

/// Whether an application made it: by a command, or so that the key had to be read again.
fn is_write(change: &Change) -> bool {
    matches!(change.op, Op::Command | Op::Delete | Op::State) && !change.was_asked_for()
}

/// What makes a key what `change` says.
fn commands(change: &Change) -> Vec<String> {
    let text = change.value.as_deref().map(String::from_utf8_lossy);
    if change.op == Op::Command {
        return text.into_iter().map(String::from).collect();
    }
    let key = name(change);
    let mut commands = vec![format!("DEL {key}")];
    match text.and_then(|text| Value::parse(text.as_bytes())) {
        None => {}
        Some(Value::Str(value)) => commands.push(format!("SET {key} {value}")),
        Some(Value::List(items)) => commands.extend(items.iter().map(|item| format!("RPUSH {key} {item}"))),
        Some(Value::Hash(fields)) => {
            commands.extend(fields.iter().map(|(f, v)| format!("HSET {key} {f} {v}")))
        }
        Some(Value::Set(members)) => commands.extend(members.iter().map(|m| format!("SADD {key} {m}"))),
    }
    commands
}

fn elements(value: &Option<String>) -> BTreeSet<&str> {
    value.iter().flat_map(|value| value.split(' ')).collect()
}

/// What a key holds after all its writes: by their versions, or where a site owns the key, its own in their order, and
/// each of the other's behind what it had seen of those.
fn outcome(mut writes: Vec<(usize, &Change)>, owner: Option<usize>) -> Option<String> {
    writes.sort_by_key(|(site, change)| match owner {
        None => (change.hlc.0, 0, *site as u64),
        Some(owner) if owner == *site => (change.seq.0, 1, 0),
        Some(_) => (change.seen.0, 0, change.seq.0),
    });
    let deletes: Vec<_> = writes.iter().copied().filter(|(_, change)| change.op == Op::Delete).collect();
    let store = Memory::new();
    for (site, change) in writes.into_iter().filter(|(_, change)| change.op != Op::Delete) {
        let held = deletes.iter().any(|(from, delete)| match *from == site {
            true => change.seq < delete.seq,
            false => change.seq < delete.seen,
        });
        if !held {
            for command in commands(change) {
                let _refused = store.write(Site::First, &[&command]);
            }
        }
    }
    store.dump(Site::First).into_values().next().map(|(value, _)| value)
}
