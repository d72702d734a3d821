//! The result file: what checks found, one after the other, in SQLite, so that it can be looked at, compared over time and
//! repaired later. Keys and digests only, never a value.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params};

use crate::compare::{Difference, DifferenceKind, Outcome, Sample, State};
use crate::error::{Error, Result};
use crate::report::{ChannelReport, PlaceAt, Report, digest};
use crate::window::Window;

/// What SQLite's files begin with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// SQLite's `application_id` of these files (`caus`), and the version of the tables below.
const APPLICATION: i64 = 0x6361_7573;
const VERSION: i64 = 2;

/// How long to wait for another process that writes.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Times are milliseconds since 1970; a digest is 32 hexadecimal digits; `kind` is null for what is undecided; what a
/// site lacks is null.
const TABLES: &str = "
CREATE TABLE run (id INTEGER PRIMARY KEY, began INTEGER NOT NULL, took_ms INTEGER NOT NULL, link TEXT NOT NULL,
  first_site TEXT NOT NULL, second_site TEXT NOT NULL, tenant TEXT, window_from INTEGER, window_to INTEGER,
  known_until INTEGER, sample_per_million INTEGER, equal INTEGER NOT NULL,
  list_max INTEGER NOT NULL) STRICT;
CREATE TABLE channel (run INTEGER NOT NULL REFERENCES run (id), name TEXT NOT NULL, compared INTEGER NOT NULL,
  roughly INTEGER NOT NULL, different INTEGER NOT NULL, undecided INTEGER NOT NULL, PRIMARY KEY (run, name)) STRICT;
CREATE TABLE count (run INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT NOT NULL, kind TEXT, keys INTEGER NOT NULL) STRICT;
CREATE TABLE difference (run INTEGER NOT NULL, channel TEXT NOT NULL, db INTEGER, table_name TEXT, key BLOB NOT NULL,
  kind TEXT, parts TEXT NOT NULL, first_type TEXT, first_digest TEXT, first_expire_at INTEGER, second_type TEXT,
  second_digest TEXT, second_expire_at INTEGER, index_name TEXT) STRICT;
CREATE INDEX count_run ON count (run);
CREATE INDEX difference_run ON difference (run);
";

/// What version 2 has that version 1 had not.
const SINCE_VERSION_1: &str = "ALTER TABLE difference ADD COLUMN index_name TEXT; PRAGMA user_version = 2;";

/// What is known of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) id: i64,
    /// Milliseconds since 1970.
    pub(crate) began: u64,
    pub(crate) equal: bool,
    pub(crate) compared: u64,
    pub(crate) different: u64,
    pub(crate) undecided: u64,
    pub(crate) window: Option<Window>,
}

/// A result file.
pub(crate) struct Results {
    path: PathBuf,
    file: Connection,
}

impl Results {
    /// Whether the file at `path` is one of SQLite's.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub(crate) fn is_at(path: &Path) -> std::io::Result<bool> {
        let mut begin = Vec::new();
        File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut begin)?;
        Ok(begin == MAGIC)
    }

    /// Opens the file at `path`, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if it is another file; [`Error::Local`] if it cannot be written.
    pub(crate) fn create(path: &Path) -> Result<Results> {
        Results::open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
    }

    /// Opens the file at `path`, which is there.
    ///
    /// # Errors
    ///
    /// As [`create`](Results::create).
    pub(crate) fn open(path: &Path) -> Result<Results> {
        Results::open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    fn open_with(path: &Path, flags: OpenFlags) -> Result<Results> {
        let failed = |error: rusqlite::Error| Error::Usage(format!("{}: {error}", path.display()));
        let mut file = Connection::open_with_flags(path, flags).map_err(failed)?;
        file.busy_timeout(BUSY_MAX).map_err(failed)?;
        let number = |file: &Connection, pragma: &str| {
            file.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0)).map_err(failed)
        };
        let made =
            file.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
        let is_new = number(&made, "schema_version")? == 0;
        if is_new && flags.contains(OpenFlags::SQLITE_OPEN_CREATE) {
            let ours =
                format!("{TABLES} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};");
            made.execute_batch(&ours).map_err(failed)?;
        }
        let found = || Ok::<_, Error>((number(&made, "application_id")?, number(&made, "user_version")?));
        if found()? == (APPLICATION, 1) {
            made.execute_batch(SINCE_VERSION_1).map_err(failed)?;
        }
        let found = found()?;
        made.commit().map_err(failed)?;
        match found {
            (APPLICATION, VERSION) => Ok(Results { path: path.to_owned(), file }),
            (APPLICATION, version) => Err(Error::Usage(format!(
                "{}: its version is {version}, allowed is {VERSION}: it is of another release",
                path.display()
            ))),
            _ => Err(Error::Usage(format!("{}: allowed is a file that `--result` wrote", path.display()))),
        }
    }

    fn failed(&self, error: rusqlite::Error) -> Error {
        Error::Local(format!("{}: {error}", self.path.display()))
    }

    /// Adds a run that began at `began`; all of it is on disk afterwards. Gives its number.
    ///
    /// # Errors
    ///
    /// [`Error::Local`]; nothing of it is in the file then.
    pub(crate) fn add(&mut self, report: &Report, began: u64) -> Result<i64> {
        let added = self.file.transaction().and_then(|file| {
            let id = insert(&file, report, began)?;
            file.commit().map(|()| id)
        });
        added.map_err(|error| self.failed(error))
    }

    /// The newest `count` runs, the oldest of them first.
    ///
    /// # Errors
    ///
    /// [`Error::Local`].
    pub(crate) fn runs(&self, count: usize) -> Result<Vec<Run>> {
        let sql = "SELECT id, began, equal, window_from, window_to, SUM(compared), SUM(different), SUM(undecided) \
             FROM run LEFT JOIN channel ON run = id GROUP BY id ORDER BY id DESC LIMIT ?";
        let run = |row: &Row<'_>| {
            Ok(Run {
                id: row.get("id")?,
                began: row.get("began")?,
                equal: row.get("equal")?,
                window: window_of(row)?,
                compared: row.get::<_, Option<u64>>(5)?.unwrap_or(0),
                different: row.get::<_, Option<u64>>(6)?.unwrap_or(0),
                undecided: row.get::<_, Option<u64>>(7)?.unwrap_or(0),
            })
        };
        let read = || -> rusqlite::Result<Vec<Run>> {
            let mut found = self.file.prepare(sql)?;
            let runs = found.query_map([i64::try_from(count).unwrap_or(i64::MAX)], run)?;
            runs.collect()
        };
        let mut runs = read().map_err(|error| self.failed(error))?;
        runs.reverse();
        Ok(runs)
    }

    /// What a run found, and when it began: the one with that number, or the newest.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there is none.
    pub(crate) fn read(&self, id: Option<i64>) -> Result<(Report, u64)> {
        let found = select(&self.file, id).map_err(|error| self.failed(error))?;
        found.ok_or_else(|| {
            let which = id.map_or("a run".to_owned(), |id| format!("run {id}"));
            Error::Usage(format!(
                "{}: {which} is not in it; --list shows those that are",
                self.path.display()
            ))
        })
    }
}

fn insert(file: &Transaction<'_>, report: &Report, began: u64) -> rusqlite::Result<i64> {
    let [first, second] = &report.sites;
    let window = report.window.map(|(window, _)| window);
    file.execute(
        "INSERT INTO run (began, took_ms, link, first_site, second_site, tenant, window_from, window_to, known_until, \
         sample_per_million, equal, list_max) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            began,
            report.took.as_millis() as u64,
            report.link,
            first,
            second,
            report.tenant,
            window.map(|window| window.from),
            window.map(|window| window.to),
            report.window.and_then(|(_, until)| until),
            report.sample.map(|sample| sample.per_million),
            report.equal(),
            report.list_max as u64,
        ],
    )?;
    let run = file.last_insert_rowid();
    for ChannelReport { name, outcome } in &report.channels {
        file.prepare_cached("INSERT INTO channel VALUES (?, ?, ?, ?, ?, ?)")?.execute(params![
            run,
            name,
            outcome.compared,
            outcome.compared_roughly,
            outcome.different,
            outcome.undecided
        ])?;
        for ((what, kind), count) in &outcome.counts {
            let kind = kind.map(DifferenceKind::as_str);
            file.prepare_cached("INSERT INTO count VALUES (?, ?, ?, ?, ?)")?
                .execute(params![run, name, what, kind, count])?;
        }
        for one in outcome.differences.iter().chain(&outcome.unsettled) {
            let PlaceAt { db, table, index } = PlaceAt::of(&one.space);
            let [a, b] = one.sites.map(|state| {
                let digest = state.as_ref().map(digest);
                (state.map(|state| state.what), digest, state.and_then(|state| state.expire_at))
            });
            // Texts are always JSON.
            let parts = serde_json::to_string(&one.parts).unwrap_or_default();
            file.prepare_cached("INSERT INTO difference VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?
                .execute(params![
                    run,
                    name,
                    db,
                    table,
                    &one.name[..],
                    one.kind.map(DifferenceKind::as_str),
                    parts,
                    a.0,
                    a.1,
                    a.2,
                    b.0,
                    b.1,
                    b.2,
                    index
                ])?;
        }
    }
    Ok(run)
}

fn window_of(row: &Row<'_>) -> rusqlite::Result<Option<Window>> {
    let (from, to): (Option<u64>, Option<u64>) = (row.get("window_from")?, row.get("window_to")?);
    Ok(from.zip(to).map(|(from, to)| Window { from, to }))
}

fn select(file: &Connection, id: Option<i64>) -> rusqlite::Result<Option<(Report, u64)>> {
    let sql = "SELECT * FROM run WHERE id = COALESCE(?, (SELECT MAX(id) FROM run))";
    let run = file.query_row(sql, [id], |row| {
        let report = Report {
            link: row.get("link")?,
            sites: [row.get("first_site")?, row.get("second_site")?],
            tenant: row.get("tenant")?,
            window: window_of(row)?.zip(Some(row.get("known_until")?)),
            sample: row
                .get::<_, Option<u32>>("sample_per_million")?
                .map(|per_million| Sample { per_million, seed: 0 }),
            took: Duration::from_millis(row.get("took_ms")?),
            list_max: usize::try_from(row.get::<_, u64>("list_max")?).unwrap_or(usize::MAX),
            channels: Vec::new(),
        };
        Ok((row.get::<_, i64>("id")?, report, row.get("began")?))
    });
    let Some((id, mut report, began)) = run.optional()? else { return Ok(None) };
    let mut channels =
        file.prepare("SELECT name, compared, roughly, different, undecided FROM channel WHERE run = ?")?;
    let found = channels.query_map([id], |row| {
        let outcome = Outcome {
            compared: row.get(1)?,
            compared_roughly: row.get(2)?,
            different: row.get(3)?,
            undecided: row.get(4)?,
            ..Outcome::default()
        };
        Ok(ChannelReport { name: row.get(0)?, outcome })
    })?;
    report.channels = found.collect::<rusqlite::Result<_>>()?;
    let mut counts = file.prepare("SELECT type, kind, keys FROM count WHERE run = ? AND channel = ?")?;
    let mut differences =
        file.prepare("SELECT * FROM difference WHERE run = ? AND channel = ? ORDER BY rowid")?;
    for ChannelReport { name, outcome } in &mut report.channels {
        let name = &*name;
        let found = counts.query_map(params![id, name], |row| {
            let what: String = row.get(0)?;
            Ok(((known(&what), kind(row.get(1)?)), row.get(2)?))
        })?;
        outcome.counts = found.collect::<rusqlite::Result<_>>()?;
        for one in differences.query_map(params![id, name], difference)? {
            let one = one?;
            let list = if one.kind.is_some() { &mut outcome.differences } else { &mut outcome.unsettled };
            list.push(one);
        }
    }
    Ok(Some((report, began)))
}

fn difference(row: &Row<'_>) -> rusqlite::Result<Difference> {
    let place = PlaceAt { db: row.get("db")?, table: row.get("table_name")?, index: row.get("index_name")? };
    let state = |site: &str| {
        let what: Option<String> = row.get(format!("{site}_type").as_str())?;
        let digest: Option<String> = row.get(format!("{site}_digest").as_str())?;
        let expire_at = row.get(format!("{site}_expire_at").as_str())?;
        let digest = digest.and_then(|digest| u128::from_str_radix(&digest, 16).ok());
        Ok::<_, rusqlite::Error>(what.zip(digest).map(|(what, digest)| State {
            what: known(&what),
            digest,
            expire_at,
        }))
    };
    Ok(Difference {
        space: place.space(),
        name: Bytes::from(row.get::<_, Vec<u8>>("key")?),
        kind: kind(row.get("kind")?),
        sites: [state("first")?, state("second")?],
        parts: serde_json::from_str(&row.get::<_, String>("parts")?).unwrap_or_default(),
    })
}

fn kind(word: Option<String>) -> Option<DifferenceKind> {
    use DifferenceKind::{Content, Expiry, Extra, Missing};
    [Missing, Extra, Content, Expiry].into_iter().find(|kind| Some(kind.as_str()) == word.as_deref())
}

/// The word of this program for a kind of value.
fn known(word: &str) -> &'static str {
    const WORDS: [&str; 14] = [
        "string",
        "hyperloglog",
        "list",
        "set",
        "zset",
        "hash",
        "stream",
        "other",
        "function",
        "row",
        "document",
        "table",
        "gone",
        "none",
    ];
    WORDS.into_iter().find(|known| *known == word).unwrap_or("value")
}

#[cfg(test)]
mod tests {
    use causeway_core::Space;

    use super::*;

    fn report(different: u64) -> Report {
        let state = |digest| Some(State { what: "hash", digest, expire_at: Some(7) });
        let mut outcome = Outcome { compared: 9, ..Outcome::default() };
        for n in 0..different {
            let spaces = [
                Space::Db(3),
                Space::Table("shop.orders".into()),
                Space::Index("push-1".into()),
                Space::Whole,
            ];
            let space = spaces[n as usize % 4].clone();
            let kind = (n % 3 != 0).then_some(DifferenceKind::Content);
            let name = Bytes::from(vec![n as u8, 0xff]);
            let parts = vec!["price".to_owned()];
            outcome.add(Difference { space, name, kind, sites: [state(u128::from(n)), None], parts }, 100);
        }
        Report {
            link: "dc-cloud".into(),
            sites: ["dc".into(), "cloud".into()],
            tenant: Some("7".into()),
            window: Some((Window { from: 1_000, to: 2_000 }, Some(3_000))),
            sample: Some(Sample { per_million: 5_000, seed: 3 }),
            took: Duration::from_millis(12),
            list_max: 100,
            channels: vec![ChannelReport { name: "tags".into(), outcome }],
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.sqlite");
        for (n, different) in [(1, 7), (2, 0)] {
            assert_eq!(Results::create(&path).unwrap().add(&report(different), 1_000 * n).unwrap(), n as i64);
        }
        let results = Results::open(&path).unwrap();
        for (id, different) in [(Some(1), 7), (Some(2), 0), (None, 0)] {
            let (read, _) = results.read(id).unwrap();
            assert_eq!((read.json(), read.text()), (report(different).json(), report(different).text()));
        }
        let runs = results.runs(10).unwrap();
        assert_eq!(
            runs.iter().map(|run| (run.id, run.began, run.equal)).collect::<Vec<_>>(),
            [(1, 1_000, false), (2, 2_000, true)]
        );
        assert_eq!((runs[0].compared, runs[0].different, runs[0].undecided), (9, 4, 3));
        assert_eq!(results.runs(1).unwrap()[0].id, 2);
        assert!(results.read(Some(3)).is_err());
    }

    #[test]
    fn another_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        assert!(Results::open(&path).is_err(), "there is none");
        for text in [&b"{}"[..], &[b'x'; 10_000], MAGIC] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Results::create(&path), Err(Error::Usage(_))));
            assert_eq!(std::fs::read(&path).unwrap(), text, "it stays as it is");
        }
        std::fs::remove_file(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE t (a)").unwrap();
        drop(other);
        assert!(matches!(Results::create(&path), Err(Error::Usage(_))));
        let newer = folder.path().join("newer");
        Results::create(&newer).unwrap().file.execute_batch("PRAGMA user_version = 9").unwrap();
        assert!(Results::open(&newer).err().unwrap().to_string().contains("another release"));
    }

    #[test]
    fn a_file_of_version_1_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old.sqlite");
        let old = "ALTER TABLE difference DROP COLUMN index_name; PRAGMA user_version = 1";
        Results::create(&path).unwrap().file.execute_batch(old).unwrap();
        Results::create(&path).unwrap().add(&report(7), 1_000).unwrap();
        let (read, _) = Results::open(&path).unwrap().read(None).unwrap();
        assert_eq!(read.json(), report(7).json());
    }
}
