//! The conflict log's files: lines of JSON, in files that are named by the first id in them. The newest
//! one is written; the oldest ones go when all together are too large or too old.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::lock;
use crate::status::{ConflictEntry, ConflictPage, ConflictQuery, parse_rfc3339, rfc3339};

/// One file, at the most; it is read as a whole.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// The log is cut into at least so many files, so that this part of it goes at a time.
const FILES_MIN: u32 = 8;
/// Of one page, before it ends.
const PAGE_BYTES_MAX: usize = 4 << 20;

pub(super) struct Files {
    dir: PathBuf,
    file_bytes_max: u64,
    size_max: u64,
    age_max: Duration,
    next_id: u64,
    active: Option<Active>,
}

/// The file that is written.
struct Active {
    first: u64,
    bytes: u64,
    /// When its first entry was made.
    since: SystemTime,
    file: File,
    /// It ends within a line.
    torn: bool,
}

impl Files {
    /// Makes `dir` if it is not there, and goes on behind what it holds. Writes nothing: a full disk is no
    /// reason not to start.
    pub(super) fn open(dir: &Path, size_max: u64, age_max: Duration) -> io::Result<Files> {
        std::fs::create_dir_all(dir)?;
        let mut files = Files {
            dir: dir.to_owned(),
            file_bytes_max: (size_max / u64::from(FILES_MIN)).min(FILE_BYTES_MAX),
            size_max,
            age_max,
            next_id: 1,
            active: None,
        };
        if let Some(&first) = files.firsts()?.first() {
            let held = files.read(first)?;
            let entries: Vec<ConflictEntry> = lines(&held).filter_map(parse).collect();
            // A damaged line may have had an id, too.
            let after = |entry: &ConflictEntry| entry.id.saturating_add(1);
            let counted = first.saturating_add(lines(&held).count() as u64);
            files.next_id = entries.last().map_or(counted, |last| after(last).max(counted));
            files.active = Some(Active {
                first,
                bytes: held.len() as u64,
                since: entries
                    .first()
                    .and_then(|entry| parse_rfc3339(&entry.time))
                    .unwrap_or_else(SystemTime::now),
                file: append_to(&files.path(first))?,
                torn: held.last().is_some_and(|byte| *byte != b'\n'),
            });
        }
        files.upkeep(SystemTime::now());
        Ok(files)
    }

    /// Gives `entries` their ids and writes them. How many are written, and why not all.
    pub(super) fn append(&mut self, entries: Vec<ConflictEntry>, now: SystemTime) -> (u64, io::Result<()>) {
        let (mut written, mut waiting, mut block) = (0, 0, Vec::new());
        for mut entry in entries {
            entry.id = self.next_id;
            let Ok(mut line) = serde_json::to_vec(&entry) else { continue };
            line.push(b'\n');
            if line.len() as u64 > self.file_bytes_max {
                continue;
            }
            if self.wants_new(block.len() + line.len(), now) {
                if let Err(error) = self.write(std::mem::take(&mut block)) {
                    return (written, Err(error));
                }
                written += std::mem::take(&mut waiting);
                if let Err(error) = self.start(entry.id, now) {
                    return (written, Err(error));
                }
            }
            block.extend(line);
            waiting += 1;
            self.next_id = self.next_id.saturating_add(1);
        }
        match self.write(block) {
            Ok(()) => (written + waiting, Ok(())),
            Err(error) => (written, Err(error)),
        }
    }

    /// Whether the next line belongs into a new file, with `more` bytes in hand, that line's included.
    fn wants_new(&self, more: usize, now: SystemTime) -> bool {
        let Some(active) = &self.active else { return true };
        let full = active.bytes + more as u64 > self.file_bytes_max;
        let old = now.duration_since(active.since).is_ok_and(|age| age > self.age_max / FILES_MIN);
        full || old
    }

    fn start(&mut self, first: u64, now: SystemTime) -> io::Result<()> {
        let file = append_to(&self.path(first))?;
        let bytes = file.metadata()?.len();
        // It may be there with nothing in it that could be read.
        self.active = Some(Active { first, bytes, since: now, file, torn: bytes > 0 });
        self.upkeep(now);
        Ok(())
    }

    fn write(&mut self, mut block: Vec<u8>) -> io::Result<()> {
        let Some(active) = self.active.as_mut().filter(|_| !block.is_empty()) else { return Ok(()) };
        // What a crash or a full disk has cut off stays a line of its own, and a damaged one.
        if active.torn {
            block.insert(0, b'\n');
        }
        let result = active.file.write_all(&block);
        active.torn = result.is_err();
        active.bytes = active.file.metadata().map_or(active.bytes + block.len() as u64, |meta| meta.len());
        result
    }

    /// Removes what is too old, and the oldest as long as all are too large together with a full new file.
    pub(super) fn upkeep(&mut self, now: SystemTime) {
        if let Err(error) = self.remove_old(now) {
            warn!(dir = %self.dir.display(), %error, "old files of the conflict log stay");
        }
    }

    fn remove_old(&mut self, now: SystemTime) -> io::Result<()> {
        let active = self.active.as_ref().map(|active| active.first);
        let (mut others, mut full) = (0, false);
        for first in self.firsts()? {
            let meta = match std::fs::metadata(self.path(first)) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                meta => meta?,
            };
            // A file was written last when its newest entry was made.
            let old = now.duration_since(meta.modified()?).is_ok_and(|age| age > self.age_max);
            let size = if Some(first) == active { 0 } else { meta.len() };
            full |= others + size + self.file_bytes_max > self.size_max;
            if old || full {
                if Some(first) == active {
                    self.active = None;
                }
                match std::fs::remove_file(self.path(first)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            } else {
                others += size;
            }
        }
        Ok(())
    }

    fn path(&self, first: u64) -> PathBuf {
        self.dir.join(format!("{first:020}.jsonl"))
    }

    /// The files by the first id in them, newest first.
    fn firsts(&self) -> io::Result<Vec<u64>> {
        let mut firsts = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let first = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
            firsts.extend(first.and_then(|first| first.parse::<u64>().ok()));
        }
        firsts.sort_unstable_by(|a, b| b.cmp(a));
        Ok(firsts)
    }

    /// Empty if it was removed meanwhile.
    fn read(&self, first: u64) -> io::Result<Vec<u8>> {
        match std::fs::read(self.path(first)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        }
    }
}

/// Newest first. The lock is held for one file at a time, so that the writer goes on.
pub(super) fn page(files: &Mutex<Files>, query: &ConflictQuery, now: SystemTime) -> io::Result<ConflictPage> {
    let (firsts, oldest) = {
        let files = lock(files);
        (files.firsts()?, now.checked_sub(files.age_max).map(rfc3339).unwrap_or_default())
    };
    let (mut page, mut bytes) = (ConflictPage::default(), 0);
    for first in firsts.into_iter().filter(|first| query.before.is_none_or(|before| *first < before)) {
        let held = lock(files).read(first)?;
        for line in lines(&held).rev() {
            let Some(entry) = parse(line) else {
                page.damaged += 1;
                continue;
            };
            if !query.matches(&entry) || entry.time < oldest {
                continue;
            }
            if page.conflicts.len() >= query.limit || bytes > PAGE_BYTES_MAX {
                page.next = page.conflicts.last().map(|last| last.id);
                return Ok(page);
            }
            bytes += line.len();
            page.conflicts.push(entry);
        }
    }
    Ok(page)
}

fn lines(held: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    held.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

fn parse(line: &[u8]) -> Option<ConflictEntry> {
    serde_json::from_slice(line).ok()
}

/// Only for the daemon's own user: it may hold values.
fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
