use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use causeway_core::Seq;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::log::{PartitionId, new_name};
use crate::status::HeldAnswer;

/// The channels that an operator paused, in a file beside the log: they stay so over a restart.
#[derive(Debug)]
pub(crate) struct Pauses {
    path: PathBuf,
    paused: BTreeSet<String>,
}

impl Pauses {
    pub(crate) fn open(dir: &Path) -> io::Result<Pauses> {
        let path = dir.join("paused.json");
        Ok(Pauses { paused: read(&path)?, path })
    }

    pub(crate) fn contains(&self, channel: &str) -> bool {
        self.paused.contains(channel)
    }

    /// Stored before it takes effect.
    pub(crate) fn set(&mut self, channel: &str, paused: bool) -> io::Result<()> {
        let mut next = self.paused.clone();
        if paused {
            next.insert(channel.to_owned())
        } else {
            next.remove(channel)
        };
        replace(&self.path, &next)?;
        self.paused = next;
        Ok(())
    }
}

/// What operators said of held changes of whole stores, by partition and seq, in a file beside the log: a
/// store that is filled again from the log meets them again.
#[derive(Debug)]
pub(crate) struct Answers {
    path: PathBuf,
    given: BTreeMap<String, BTreeMap<u64, HeldAnswer>>,
}

impl Answers {
    /// Of a partition; older ones were trimmed from the log long since, or are asked for again.
    const KEPT_MAX: usize = 1_000;

    pub(crate) fn open(dir: &Path) -> io::Result<Answers> {
        let path = dir.join("held.json");
        Ok(Answers { given: read(&path)?, path })
    }

    pub(crate) fn get(&self, partition: &PartitionId, seq: Seq) -> Option<HeldAnswer> {
        self.given.get(&partition.to_string())?.get(&seq.0).copied()
    }

    /// Stored before it takes effect.
    pub(crate) fn keep(&mut self, partition: &PartitionId, seq: Seq, answer: HeldAnswer) -> io::Result<()> {
        let mut next = self.given.clone();
        let given = next.entry(partition.to_string()).or_default();
        given.insert(seq.0, answer);
        while given.len() > Self::KEPT_MAX {
            given.pop_first();
        }
        replace(&self.path, &next)?;
        self.given = next;
        Ok(())
    }
}

/// The partitions of which something was applied, in a file beside the log: a target without a marker is then
/// not a new one. Needed where a channel goes one way: else the target's own log tells.
#[derive(Debug)]
pub(crate) struct Begun {
    path: PathBuf,
    partitions: BTreeSet<String>,
}

impl Begun {
    pub(crate) fn open(dir: &Path) -> io::Result<Begun> {
        let path = dir.join("applied.json");
        Ok(Begun { partitions: read(&path)?, path })
    }

    pub(crate) fn contains(&self, partition: &PartitionId) -> bool {
        self.partitions.contains(&partition.to_string())
    }

    /// Stored before it counts: a write that failed is tried again.
    pub(crate) fn note(&mut self, partition: &PartitionId) -> io::Result<()> {
        if self.contains(partition) {
            return Ok(());
        }
        let mut next = self.partitions.clone();
        next.insert(partition.to_string());
        replace(&self.path, &next)?;
        self.partitions = next;
        Ok(())
    }
}

/// By which name this daemon is known in its group: drawn once for the folder, so that it is the same after a restart.
pub(crate) fn member_name(dir: &Path) -> io::Result<String> {
    let path = dir.join("member.json");
    let kept: Option<String> = read(&path)?;
    match kept {
        Some(name) => Ok(name),
        None => {
            let name = new_name();
            replace(&path, &name)?;
            Ok(name)
        }
    }
}

/// What the JSON file `path` holds; nothing, if there is none.
fn read<T: DeserializeOwned + Default>(path: &Path) -> io::Result<T> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error),
    }
}

/// Writes a JSON file durably, whole or not at all.
fn replace(path: &Path, what: &impl Serialize) -> io::Result<()> {
    let partial = path.with_extension("json.new");
    let text = serde_json::to_vec(what).map_err(io::Error::other)?;
    let mut file = std::fs::File::create(&partial)?;
    io::Write::write_all(&mut file, &text)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(origin: &str) -> PartitionId {
        PartitionId { channel: "tags".to_owned(), origin: origin.to_owned(), number: 0 }
    }

    #[test]
    fn a_beginning_that_could_not_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut begun = Begun::open(&log).unwrap();
        assert!(begun.note(&partition("dc")).is_err() && !begun.contains(&partition("dc")));
        std::fs::create_dir(&log).unwrap();
        begun.note(&partition("dc")).unwrap();
        assert!(Begun::open(&log).unwrap().contains(&partition("dc")));
    }

    #[test]
    fn an_answer_is_remembered_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut answers = Answers::open(dir.path()).unwrap();
        for seq in 0..1_002 {
            answers.keep(&partition("dc"), Seq(seq), HeldAnswer::Drop).unwrap();
        }
        let answers = Answers::open(dir.path()).unwrap();
        assert_eq!(answers.get(&partition("dc"), Seq(1_001)), Some(HeldAnswer::Drop));
        assert_eq!(answers.get(&partition("dc"), Seq(1)), None);
        assert_eq!(answers.get(&partition("cloud"), Seq(1_001)), None);
    }

    #[test]
    fn a_paused_channel_stays_paused_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        Pauses::open(dir.path()).unwrap().set("tags", true).unwrap();
        let mut pauses = Pauses::open(dir.path()).unwrap();
        assert!(pauses.contains("tags") && !pauses.contains("orders"));
        pauses.set("tags", false).unwrap();
        assert!(!Pauses::open(dir.path()).unwrap().contains("tags"));
    }
}
