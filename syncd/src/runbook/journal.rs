//! The journal of a runbook: what was asked, by whom, what was done and what came of it, one JSON object a line.
//!
//! Lines are only ever added, each in one write that is fsynced before what it announces begins. A kill can cut off the
//! last line, which nothing relied on yet: the next runner takes it away, and says so. The file itself is the lock of
//! its runs.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::status::rfc3339;

/// Of the lines' form; a greater one is of a later release.
const FORMAT: u32 = 1;

/// A run is some kilobytes: a journal of many thousand runs.
const BYTES_MAX: u64 = 64 << 20;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// RFC 3339.
    pub time: String,
    /// Counts the runs of the runbook, from 1.
    pub run: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The user's name, or `uid 1000`.
    pub user: String,
    /// The machine's.
    pub host: String,
    /// The runner's process.
    pub pid: u32,
}

impl Who {
    /// This process, and whose it is.
    pub fn is_here() -> Who {
        let uid = rustix::process::getuid().as_raw();
        let names = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let named = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
        };
        let user = names.lines().find_map(named).unwrap_or_else(|| format!("uid {uid}"));
        // Of root alone it would say too little.
        let sudo = std::env::var("SUDO_USER").ok().filter(|of| !of.is_empty() && *of != user);
        let user = sudo.map(|of| format!("{of} as {user}")).unwrap_or(user);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Who { user, host, pid: std::process::id() }
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.user, self.host)
    }
}

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A run begins.
    Begin {
        /// Of the lines.
        format: u32,
        /// Who asked for it.
        who: Who,
        /// The release of `syncd`.
        version: String,
        /// The runbook's name.
        runbook: String,
        /// Its file, as it was named.
        file: String,
        /// SHA-256 of its text.
        digest: String,
        /// The link of the configuration.
        link: String,
        /// The parameters' values.
        params: BTreeMap<String, String>,
        /// The steps' names, in order.
        steps: Vec<String>,
    },
    /// Somebody goes on with the run.
    Resume {
        /// Who.
        who: Who,
    },
    /// The last line was cut off, and was taken away.
    Torn {
        /// How many bytes.
        bytes: u64,
    },
    /// The run is given up for a new one.
    Abandoned {
        /// By whom.
        who: Who,
    },
    /// A step begins, or begins again after a break.
    Started {
        /// Which.
        step: String,
        /// Counts how often the run came to it, from 1.
        attempt: u32,
        /// It goes on after a break.
        resumed: bool,
        /// The window that its times came out as.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window: Option<[String; 2]>,
    },
    /// What a step has to know after a break.
    Note {
        /// Which.
        step: String,
        /// What.
        note: Note,
    },
    /// A step was left out, as its `when` does not hold.
    Skipped {
        /// Which.
        step: String,
        /// Why.
        why: String,
    },
    /// A step waits for a person.
    Waiting {
        /// Which.
        step: String,
        /// What for.
        what: String,
    },
    /// A step is done.
    Done {
        /// Which.
        step: String,
        /// What came of it.
        outcome: String,
        /// Who approved it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Who>,
    },
    /// A step failed.
    Failed {
        /// Which.
        step: String,
        /// What came of it.
        outcome: String,
        /// 1: the answer is no; 3: it could not be done.
        code: u8,
        /// `stop`, `continue`, or the step that follows.
        then: String,
        /// Who said no.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Who>,
    },
    /// The runner was stopped in the middle of a step.
    Interrupted {
        /// Which.
        step: String,
        /// By what signal.
        signal: String,
    },
    /// The run is at its end: nothing is left to do.
    End {
        /// Steps that failed on the way.
        failed: Vec<String>,
    },
}

/// What a step has to know after a break.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    /// A snapshot is about to be asked for; this is how things stood.
    Asking {
        /// The channel.
        channel: String,
        /// By origin, the seq at which its last snapshot began.
        first: BTreeMap<String, Option<u64>>,
    },
    /// The daemon took it.
    Asked {
        /// The channel.
        channel: String,
        /// When that daemon began: one that began later knows nothing of it.
        since: String,
        /// One was under way already, and is waited for in its place.
        joined: bool,
    },
    /// A channel's part of the step is done, and need not be done again.
    Part {
        /// The channel.
        channel: String,
        /// What came of it.
        outcome: String,
    },
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another runner has it.
    #[error("{path} is in use: {who} runs this runbook just now; `syncd runbook status` shows how far it is", path = path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
        /// As far as it says so.
        who: String,
    },
    /// A line in the middle is none.
    #[error("{path}:{line}: is no line of a runbook's journal; move the file away to begin anew, and keep it for the audit", path = path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// It is of a later release.
    #[error("{path} was written by a later release (format {found}): use that one", path = path.display())]
    Newer {
        /// The journal.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// It has grown too large.
    #[error("{path} is larger than {max} MiB: move it away, and keep it for the audit", path = path.display(), max = BYTES_MAX >> 20)]
    TooLarge {
        /// The journal.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {action} {path}: {reason}", path = path.display())]
    Io {
        /// The journal, or its folder.
        path: PathBuf,
        /// A verb.
        action: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Where the journals are: beside the log's folder, `data/runbooks` unless the configuration says otherwise.
pub fn folder(config: &Config) -> PathBuf {
    config.log.dir.parent().unwrap_or(Path::new("")).join("runbooks")
}

/// A runbook's journal, held for this process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
}

impl Journal {
    /// Opens the journal of runbook `name` in `folder` and holds it until dropped; makes both where they are missing.
    ///
    /// # Errors
    ///
    /// Any of [`JournalError`].
    pub fn open(folder: &Path, name: &str) -> Result<Journal, JournalError> {
        let path = folder.join(format!("{name}.jsonl"));
        std::fs::create_dir_all(folder).map_err(|error| io(folder, "make the folder", &error))?;
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|error| io(&path, "open", &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let who = parse(&path, &bytes(&path, &mut file)?).ok().and_then(|(lines, _)| runner(&lines));
                return Err(JournalError::InUse { path, who: who.unwrap_or_else(|| "somebody".to_owned()) });
            }
            Err(TryLockError::Error(error)) => return Err(io(&path, "lock", &error)),
        }
        let bytes = bytes(&path, &mut file)?;
        let (lines, whole) = parse(&path, &bytes)?;
        // So that the file's name is as durable as what will be in it.
        File::open(folder).and_then(|dir| dir.sync_all()).map_err(|error| io(folder, "sync", &error))?;
        let mut journal = Journal { path, file, lines };
        let torn = bytes.len() as u64 - whole;
        if torn > 0 {
            journal.file.set_len(whole).map_err(|error| io(&journal.path, "mend", &error))?;
            let run = journal.lines.last().map_or(0, |line| line.run);
            journal.append(SystemTime::now(), run, Event::Torn { bytes: torn })?;
        }
        Ok(journal)
    }

    /// All lines, the oldest first.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line, and returns once it is durable.
    ///
    /// # Errors
    ///
    /// [`JournalError::Io`]: what the line announces must not begin.
    pub fn append(&mut self, now: SystemTime, run: u64, event: Event) -> Result<&Line, JournalError> {
        let line = Line { time: rfc3339(now), run, event };
        let error = |error: std::io::Error| io(&self.path, "write to", &error);
        let mut text = serde_json::to_vec(&line).map_err(|wrong| error(wrong.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).and_then(|()| self.file.sync_data()).map_err(error)?;
        self.lines.push(line);
        Ok(&self.lines[self.lines.len() - 1])
    }
}

/// The journal of runbook `name` in `folder` as it is now, and whether somebody runs it; `None` if there is none.
///
/// # Errors
///
/// As [`Journal::open`], but for [`JournalError::InUse`].
pub fn read(folder: &Path, name: &str) -> Result<Option<(Vec<Line>, bool)>, JournalError> {
    let path = folder.join(format!("{name}.jsonl"));
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(&path, "open", &error)),
    };
    // Whoever asks must not be taken for a runner: the lock is shared, and gone at once.
    let runs = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    let _ = file.unlock();
    let (lines, _) = parse(&path, &bytes(&path, &mut file)?)?;
    Ok(Some((lines, runs)))
}

fn bytes(path: &Path, file: &mut File) -> Result<Vec<u8>, JournalError> {
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| io(path, "read", &error))?;
    match bytes.len() as u64 > BYTES_MAX {
        true => Err(JournalError::TooLarge { path: path.to_owned() }),
        false => Ok(bytes),
    }
}

/// The lines, and how many bytes they take: what follows is a line that was cut off.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Line>, u64), JournalError> {
    let (mut lines, mut whole) = (Vec::new(), 0);
    let mut bad = None;
    for (index, text) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let line = text.strip_suffix(b"\n").and_then(|text| serde_json::from_slice::<Line>(text).ok());
        match (line, bad) {
            // A good one behind it: that was no torn end.
            (Some(_), Some(line)) => return Err(JournalError::Damaged { path: path.to_owned(), line }),
            (Some(line), None) => {
                if let Event::Begin { format, .. } = &line.event
                    && *format > FORMAT
                {
                    return Err(JournalError::Newer { path: path.to_owned(), found: *format });
                }
                whole += text.len() as u64;
                lines.push(line);
            }
            (None, bad_before) => {
                // A later release's event parses as JSON, and is no torn end either.
                let json = text.strip_suffix(b"\n").map(serde_json::from_slice::<serde_json::Value>);
                if matches!(json, Some(Ok(_))) {
                    return Err(JournalError::Damaged { path: path.to_owned(), line: index + 1 });
                }
                bad = bad_before.or(Some(index + 1));
            }
        }
    }
    Ok((lines, whole))
}

/// Who runs it, as the journal says.
fn runner(lines: &[Line]) -> Option<String> {
    lines.iter().rev().find_map(|line| match &line.event {
        Event::Begin { who, .. } | Event::Resume { who } => Some(format!("{who} (pid {})", who.pid)),
        _ => None,
    })
}

fn io(path: &Path, action: &'static str, error: &std::io::Error) -> JournalError {
    JournalError::Io { path: path.to_owned(), action, reason: error.to_string() }
}

/// The first line of a run.
pub(super) fn begin(who: Who, book: &super::Runbook, link: &str, params: BTreeMap<String, String>) -> Event {
    Event::Begin {
        format: FORMAT,
        who,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runbook: book.name.clone(),
        file: book.path.display().to_string(),
        digest: book.digest.clone(),
        link: link.to_owned(),
        params,
        steps: book.steps.iter().map(|step| step.name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(step: &str) -> Event {
        Event::Skipped { step: step.to_owned(), why: "so".to_owned() }
    }

    #[test]
    fn a_line_that_was_cut_off_is_taken_away_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "x").unwrap();
        journal.append(SystemTime::now(), 1, skipped("a")).unwrap();
        journal.append(SystemTime::now(), 1, skipped("b")).unwrap();
        let path = journal.path().to_owned();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in second..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (lines, runs) = read(folder.path(), "x").unwrap().unwrap();
            assert_eq!((lines.len(), runs), (1, false), "{cut}");
            let journal = Journal::open(folder.path(), "x").unwrap();
            let torn = (cut > second).then(|| Event::Torn { bytes: (cut - second) as u64 });
            assert_eq!(journal.lines().get(1).map(|line| line.event.clone()), torn, "{cut}");
            drop(journal);
            assert!(Journal::open(folder.path(), "x").unwrap().lines().len() <= 2);
        }
        // What a file system leaves of a write that never came to be.
        std::fs::write(&path, [&whole[..second], &[0; 30]].concat()).unwrap();
        assert_eq!(Journal::open(folder.path(), "x").unwrap().lines().len(), 2);
    }

    #[test]
    fn damage_in_the_middle_is_an_error_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), "x").unwrap();
        for step in ["a", "b", "c"] {
            journal.append(SystemTime::now(), 1, skipped(step)).unwrap();
        }
        let path = journal.path().to_owned();
        drop(journal);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("\"step\":\"b\"", "\"step", 1)).unwrap();
        assert!(matches!(Journal::open(folder.path(), "x"), Err(JournalError::Damaged { line: 2, .. })));
        std::fs::write(&path, format!("{text}{{\"time\":\"x\",\"run\":1,\"event\":\"new\"}}\n")).unwrap();
        assert!(matches!(read(folder.path(), "x"), Err(JournalError::Damaged { line: 4, .. })));
    }

    #[test]
    fn two_runners_do_not_share_a_journal() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path(), "x").unwrap().is_none());
        let mut journal = Journal::open(folder.path(), "x").unwrap();
        let who = Who { user: "eve".into(), host: "h".into(), pid: 7 };
        journal.append(SystemTime::now(), 1, Event::Resume { who }).unwrap();
        let refused = Journal::open(folder.path(), "x").unwrap_err().to_string();
        assert!(refused.contains("eve at h (pid 7) runs this runbook"), "{refused}");
        assert!(read(folder.path(), "x").unwrap().unwrap().1);
        drop(journal);
        assert!(!read(folder.path(), "x").unwrap().unwrap().1);
    }
}
