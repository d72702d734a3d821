use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::resp::{Connection, Reply, cmd};

/// What was written to something that can be counted, so that a lost or a doubled write shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// INCRBY of a string.
    Counter,
    /// HINCRBY of the field `n` of a hash.
    Field,
    /// RPUSH of the elements `0`, `1`, … to a list.
    List,
    /// XADD of entries whose field `n` is `0`, `1`, …
    Stream,
}

/// The history of one key. Of a counter, `acknowledged` and `unknown` are sums of what was added; of a
/// list or stream, `acknowledged` is the number of elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key's database.
    pub db: u32,
    /// The key.
    pub key: String,
    /// What it is.
    pub counted: Counted,
    /// The server said that it is done.
    pub acknowledged: u64,
    /// The connection died during the call: it may be done or not.
    pub unknown: u64,
    /// Elements whose call the connection died in, ascending. (Counters: empty.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_elements: Vec<u64>,
    /// Elements that the server refused, ascending: they must not be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_elements: Vec<u64>,
    /// The number of the next element.
    #[serde(default)]
    pub next: u64,
}

/// What one writer wrote, and what it knows of each write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// By database and key.
    pub entries: BTreeMap<(u32, String), Entry>,
    /// Operations acknowledged, also those of keys that are not counted.
    pub operations: u64,
    /// Operations during which the connection died.
    pub unknown: u64,
    /// Operations that the server refused.
    pub refused: u64,
}

impl History {
    pub(crate) fn entry(&mut self, db: u32, key: &str, counted: Counted) -> &mut Entry {
        self.entries.entry((db, key.to_owned())).or_insert_with(|| Entry {
            db,
            key: key.to_owned(),
            counted,
            acknowledged: 0,
            unknown: 0,
            unknown_elements: Vec::new(),
            refused_elements: Vec::new(),
            next: 0,
        })
    }

    /// Writes it as JSON lines, one key each.
    ///
    /// # Errors
    ///
    /// Those of the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut out = std::io::BufWriter::new(file);
        for entry in self.entries.values() {
            serde_json::to_writer(&mut out, entry)?;
            out.write_all(b"\n")?;
        }
        out.flush().with_context(|| format!("write {}", path.display()))
    }

    /// Reads what [`write`](History::write) wrote; the three totals are 0 then.
    ///
    /// # Errors
    ///
    /// Those of the file; a line that is no entry, by its number.
    pub fn read(path: &Path) -> Result<History> {
        let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut history = History::default();
        for (n, line) in std::io::BufReader::new(file).lines().enumerate() {
            let entry: Entry = serde_json::from_str(&line?)
                .with_context(|| format!("{}:{}: not a history entry", path.display(), n + 1))?;
            history.entries.insert((entry.db, entry.key.clone()), entry);
        }
        Ok(history)
    }
}

/// What a judgement found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Keys looked at, each on every server.
    pub keys: u64,
    /// Acknowledged increments (their sum) that were looked for.
    pub increments: u64,
    /// Acknowledged elements of lists and streams that were looked for.
    pub elements: u64,
    /// What is wrong, a line each: which key, on which server, what was expected and what is there.
    pub wrong: Vec<String>,
}

/// Looks for every write of `histories` on every server of `urls`: nothing acknowledged is missing,
/// nothing is there twice, nothing is there that nobody wrote, and the servers agree with each other.
/// The writers have ended and the servers rest.
///
/// # Errors
///
/// A server could not be read.
pub fn judge(histories: &[History], urls: &[String]) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for history in histories {
        let entries: Vec<&Entry> = history.entries.values().collect();
        let mut first: Option<Vec<Found>> = None;
        for url in urls {
            let found = read_all(url, &entries).with_context(|| format!("read {url}"))?;
            for (i, (entry, found)) in entries.iter().zip(&found).enumerate() {
                let wrong = fault(entry, found).or_else(|| {
                    let other = first.as_ref()?.get(i)?;
                    (other != found).then(|| format!("differs from {}", urls[0]))
                });
                if let Some(wrong) = wrong {
                    verdict.wrong.push(format!("{url} db {} {}: {wrong}", entry.db, entry.key));
                }
            }
            first.get_or_insert(found);
        }
        for entry in entries {
            verdict.keys += 1;
            match entry.counted {
                Counted::Counter | Counted::Field => verdict.increments += entry.acknowledged,
                Counted::List | Counted::Stream => verdict.elements += entry.acknowledged,
            }
        }
    }
    Ok(verdict)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Sum(u64),
    Elements(Vec<u64>),
    Other(String),
}

fn read_all(url: &str, entries: &[&Entry]) -> Result<Vec<Found>> {
    let mut connection = Connection::open(url)?;
    let mut found = Vec::with_capacity(entries.len());
    let mut db = 0;
    for chunk in entries.chunk_by(|a, b| a.db == b.db) {
        if chunk[0].db != db {
            db = chunk[0].db;
            connection.must(&["SELECT", &db.to_string()])?;
        }
        for chunk in chunk.chunks(200) {
            let commands: Vec<_> = chunk
                .iter()
                .map(|entry| match entry.counted {
                    Counted::Counter => cmd(&["GET", &entry.key]),
                    Counted::Field => cmd(&["HGET", &entry.key, "n"]),
                    Counted::List => cmd(&["LRANGE", &entry.key, "0", "-1"]),
                    Counted::Stream => cmd(&["XRANGE", &entry.key, "-", "+"]),
                })
                .collect();
            let replies = connection.pipeline(&commands)?;
            found.extend(chunk.iter().zip(&replies).map(|(entry, reply)| understand(entry, reply)));
        }
    }
    Ok(found)
}

fn understand(entry: &Entry, reply: &Reply) -> Found {
    if let Some(error) = reply.error() {
        return Found::Other(error.to_owned());
    }
    let number = |reply: &Reply| reply.int().and_then(|n| u64::try_from(n).ok());
    let found = match entry.counted {
        Counted::Counter | Counted::Field => match reply {
            Reply::Bulk(None) => Some(Found::Sum(0)),
            reply => number(reply).map(Found::Sum),
        },
        Counted::List => reply.items().iter().map(number).collect::<Option<_>>().map(Found::Elements),
        Counted::Stream => {
            // Each is [id, [field, value]].
            let of = |entry: &Reply| number(entry.items().get(1)?.items().get(1)?);
            reply.items().iter().map(of).collect::<Option<_>>().map(Found::Elements)
        }
    };
    found.unwrap_or_else(|| Found::Other("not what the writer writes".to_owned()))
}

/// What is wrong with what was found, if anything.
fn fault(entry: &Entry, found: &Found) -> Option<String> {
    match found {
        Found::Other(what) => Some(what.clone()),
        Found::Sum(sum) => {
            let most = entry.acknowledged + entry.unknown;
            if *sum < entry.acknowledged {
                Some(format!(
                    "{} lost: {sum}, acknowledged were {}",
                    entry.acknowledged - sum,
                    entry.acknowledged
                ))
            } else if *sum > most {
                Some(format!("{} too many: {sum}, written were {most}", sum - most))
            } else {
                None
            }
        }
        Found::Elements(elements) => {
            if let Some(pair) = elements.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Some(format!("element {} stands after {}", pair[1], pair[0]));
            }
            if let Some(odd) =
                elements.iter().find(|n| **n >= entry.next || entry.refused_elements.binary_search(n).is_ok())
            {
                return Some(format!("element {odd} is there and was never accepted"));
            }
            let unknown = elements.iter().filter(|n| entry.unknown_elements.binary_search(n).is_ok()).count();
            let certain = (elements.len() - unknown) as u64;
            (certain != entry.acknowledged)
                .then(|| format!("{} elements lost of {}", entry.acknowledged - certain, entry.acknowledged))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(acknowledged: u64, unknown: u64) -> Entry {
        let mut history = History::default();
        let entry = history.entry(0, "k", Counted::Counter);
        (entry.acknowledged, entry.unknown) = (acknowledged, unknown);
        entry.clone()
    }

    fn list(next: u64, unknown: &[u64], refused: &[u64]) -> Entry {
        let mut history = History::default();
        let entry = history.entry(0, "k", Counted::List);
        entry.next = next;
        entry.unknown_elements = unknown.to_vec();
        entry.refused_elements = refused.to_vec();
        entry.acknowledged = next - (unknown.len() + refused.len()) as u64;
        entry.clone()
    }

    #[test]
    fn a_counter_is_right_between_what_was_acknowledged_and_what_was_tried() {
        for (sum, right) in [(9, false), (10, true), (12, true), (13, false)] {
            assert_eq!(fault(&counter(10, 2), &Found::Sum(sum)).is_none(), right, "{sum}");
        }
    }

    #[test]
    fn a_lost_a_doubled_a_swapped_and_a_refused_element_show() {
        let entry = list(5, &[3], &[1]);
        for elements in [vec![0, 2, 4], vec![0, 2, 3, 4]] {
            assert_eq!(fault(&entry, &Found::Elements(elements)), None);
        }
        for elements in
            [vec![0, 2], vec![0, 2, 2, 4], vec![0, 4, 2], vec![0, 1, 2, 4], vec![0, 2, 4, 5], vec![0, 2, 3]]
        {
            assert!(fault(&entry, &Found::Elements(elements.clone())).is_some(), "{elements:?}");
        }
    }

    #[test]
    fn a_history_reads_back_from_its_file() {
        let mut history = History::default();
        history.entries.insert((0, "k".into()), list(5, &[3], &[1]));
        let dir = tempfile::tempdir().unwrap();
        history.write(&dir.path().join("h")).unwrap();
        assert_eq!(History::read(&dir.path().join("h")).unwrap(), history);
    }
}
