use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_core::{Change, Key, Site};
use tracing::error;

use super::EngineError;
use super::shared::lock;
use crate::log::PartitionId;
use crate::status::{DeadLetter, DeadLetterPage, DeadLetterQuery, KeyAt, rfc3339};

/// A direction with more than this many refused changes stops: something is wrong that a person has to see.
const KEPT_MAX: usize = 10_000;

/// What the targets refused, kept in a file of JSON lines beside the log: keys and reasons, never values.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetters {
    path: PathBuf,
    sites: [String; 2],
    /// Oldest first, ids ascending.
    kept: Arc<Mutex<Vec<DeadLetter>>>,
    /// Held by whoever writes the file and then `kept`.
    writing: Arc<Mutex<()>>,
}

impl DeadLetters {
    /// Reads what is there. A line that cannot be read is told: a torn last one (a crash while it was written)
    /// loses nothing, as its change is refused again.
    pub(crate) fn open(dir: &Path, sites: [String; 2]) -> io::Result<DeadLetters> {
        let path = dir.join("dead-letters.jsonl");
        let (mut kept, mut damaged) = (Vec::<DeadLetter>::new(), 0);
        if path.exists() {
            for (n, line) in BufReader::new(File::open(&path)?).split(b'\n').enumerate() {
                match serde_json::from_slice::<DeadLetter>(&line?) {
                    Ok(letter) => {
                        // Those of earlier versions have none.
                        let after = kept.last().map_or(n as u64, |last| last.id + 1);
                        kept.push(DeadLetter { id: letter.id.max(after), ..letter });
                    }
                    Err(_) => damaged += 1,
                }
            }
        }
        if damaged > 0 {
            error!(file = %path.display(), lines = damaged, "dead letters that cannot be read are left out");
        }
        Ok(DeadLetters { path, sites, kept: Arc::new(Mutex::new(kept)), writing: Arc::default() })
    }

    /// Keeps one durably; a second one of the same place is the first one again.
    pub(crate) async fn keep(
        &self,
        channel: &str,
        partition: &PartitionId,
        to: Site,
        change: &Change,
        reason: &str,
    ) -> Result<(), EngineError> {
        let told = (change.seq.0, change.op.as_str(), KeyAt::of(&change.key));
        self.keep_one(channel, partition, to, told, reason).await
    }

    /// The same of a message of the intake topic at `site`, which stands at `offset` and in no log.
    pub(crate) async fn keep_produced(
        &self,
        channel: &str,
        partition: &PartitionId,
        site: Site,
        offset: u64,
        reason: &str,
    ) -> Result<(), EngineError> {
        let told = (offset, DeadLetter::PRODUCED, KeyAt::of(&Key::none()));
        self.keep_one(channel, partition, site, told, reason).await
    }

    async fn keep_one(
        &self,
        channel: &str,
        partition: &PartitionId,
        to: Site,
        (seq, op, at): (u64, &str, KeyAt),
        reason: &str,
    ) -> Result<(), EngineError> {
        let now = SystemTime::now();
        let letter = DeadLetter {
            id: 0,
            channel: channel.to_owned(),
            from: partition.origin.clone(),
            to: self.sites[to.index()].clone(),
            seq,
            op: op.to_owned(),
            at,
            reason: reason.to_owned(),
            time: rfc3339(now),
        };
        let same = |known: &DeadLetter| {
            [&known.channel, &known.from, &known.to] == [&letter.channel, &letter.from, &letter.to]
                && known.seq == letter.seq
                // A message has no seq, and offsets begin anew with the topic.
                && ([&known.op, &letter.op].iter().all(|op| *op != DeadLetter::PRODUCED)
                    || [&known.op, &known.reason] == [&letter.op, &letter.reason])
        };
        let count = {
            let kept = lock(&self.kept);
            if kept.iter().rev().take(1_000).any(same) {
                return Ok(());
            }
            kept.len()
        };
        if count >= KEPT_MAX {
            return Err(EngineError::Store(causeway_core::Error::Setup {
                action: "keep a dead letter".to_owned(),
                endpoint: self.path.display().to_string(),
                reason: format!("there are {count} already"),
                advice: "look at `syncd dead-letters`, mend the cause, then `syncd dead-letters ack --all`"
                    .to_owned(),
            }));
        }
        let this = self.clone();
        let written = tokio::task::spawn_blocking(move || this.append(letter, now));
        written.await.map_err(|e| self.failed(&e))?.map_err(|e| self.failed(&e))
    }

    /// Writes one durably, under an id that none had before: by the time, as all before may be gone.
    fn append(&self, mut letter: DeadLetter, now: SystemTime) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        letter.id = lock(&self.kept).last().map_or(now, |last| now.max(last.id + 1));
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.write_all(&line(&letter)?)?;
        file.sync_data()?;
        lock(&self.kept).push(letter);
        Ok(())
    }

    /// Forgets those with these ids, durably. Blocks.
    pub(crate) fn remove(&self, ids: &BTreeSet<u64>) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let mut left = lock(&self.kept).clone();
        left.retain(|letter| !ids.contains(&letter.id));
        let partial = self.path.with_extension("jsonl.new");
        let mut file = File::create(&partial)?;
        for letter in &left {
            file.write_all(&line(letter)?)?;
        }
        file.sync_all()?;
        std::fs::rename(&partial, &self.path)?;
        *lock(&self.kept) = left;
        Ok(())
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> EngineError {
        EngineError::unavailable("keep a dead letter", &self.path.display().to_string(), error.to_string())
    }

    /// Of `channel`, or all; oldest first.
    pub(crate) fn of(&self, channel: Option<&str>) -> Vec<DeadLetter> {
        lock(&self.kept).iter().filter(|l| channel.is_none_or(|c| l.channel == c)).cloned().collect()
    }

    /// How many a direction has.
    pub(crate) fn count(&self, channel: &str, from: &str) -> u64 {
        lock(&self.kept).iter().filter(|l| l.channel == channel && l.from == from).count() as u64
    }

    /// A page of those that `query` wants, newest first.
    pub(crate) fn list(&self, query: &DeadLetterQuery) -> DeadLetterPage {
        let kept = lock(&self.kept);
        let channel = |letter: &&DeadLetter| query.channel.as_ref().is_none_or(|c| letter.channel == *c);
        let before = |letter: &&DeadLetter| query.before.is_none_or(|before| letter.id < before);
        let mut wanted = kept.iter().rev().filter(channel).filter(before).peekable();
        let dead_letters: Vec<_> = wanted.by_ref().take(query.limit).cloned().collect();
        let next = wanted.peek().and(dead_letters.last()).map(|last| last.id);
        DeadLetterPage { dead_letters, next }
    }
}

fn line(letter: &DeadLetter) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(letter)?;
    line.push(b'\n');
    Ok(line)
}
