use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use causeway_core::{Change, Site, Space};

use super::EngineError;
use super::shared::lock;
use crate::log::PartitionId;
use crate::status::{DeadLetter, KeyText, rfc3339};

/// A direction with more than this many refused changes stops: something is wrong that a person has to see.
const KEPT_MAX: usize = 10_000;

/// What the targets refused, kept in a file of JSON lines beside the log: keys and reasons, never values.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    path: PathBuf,
    sites: [String; 2],
    kept: Arc<Mutex<Vec<DeadLetter>>>,
}

impl DeadLetters {
    /// Reads what is there. A torn last line (a crash while it was written) is dropped: its change is
    /// refused again.
    pub(crate) fn open(dir: &Path, sites: [String; 2]) -> std::io::Result<DeadLetters> {
        let path = dir.join("dead-letters.jsonl");
        let mut kept = Vec::new();
        if path.exists() {
            for line in BufReader::new(File::open(&path)?).lines() {
                kept.extend(serde_json::from_str::<DeadLetter>(&line?).ok());
            }
        }
        Ok(DeadLetters { path, sites, kept: Arc::new(Mutex::new(kept)) })
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
        let letter = DeadLetter {
            channel: channel.to_owned(),
            from: partition.origin.clone(),
            to: self.sites[to.index()].clone(),
            seq: change.seq.0,
            op: change.op.as_str().to_owned(),
            key: KeyText::from(&change.key.name[..]),
            db: if let Space::Db(db) = change.key.space { Some(db) } else { None },
            reason: reason.to_owned(),
            time: rfc3339(SystemTime::now()),
        };
        let same = |known: &DeadLetter| {
            known.channel == letter.channel && known.from == letter.from && known.seq == letter.seq
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
                advice: "look at `syncd dead-letters`, mend the cause, then move that file away".to_owned(),
            }));
        }
        let mut line = serde_json::to_string(&letter).map_err(|e| self.failed(&e))?;
        line.push('\n');
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        });
        written.await.map_err(|e| self.failed(&e))?.map_err(|e| self.failed(&e))?;
        lock(&self.kept).push(letter);
        Ok(())
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> EngineError {
        EngineError::Store(causeway_core::Error::Unavailable {
            action: "keep a dead letter".to_owned(),
            endpoint: self.path.display().to_string(),
            source: error.to_string().into(),
        })
    }

    /// All of `channel`, or all; oldest first.
    pub(crate) fn list(&self, channel: Option<&str>) -> Vec<DeadLetter> {
        lock(&self.kept).iter().filter(|l| channel.is_none_or(|c| l.channel == c)).cloned().collect()
    }
}
