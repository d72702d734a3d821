//! One segment of a partition: a redb file that holds a stretch of its blocks, under the offset of each
//! one's first record.
//!
//! redb keeps the tree right through crashes. It doesn't check what it reads, and a damaged page may make
//! it panic: so blocks carry their own checksum, and every call is guarded. A segment is a partition's
//! own and is small, so that damage costs no more than this one (decision 0001).

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use redb::{Database, ReadOnlyDatabase, ReadableDatabase, TableDefinition};

use super::block::Sealed;

const BLOCKS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("blocks");

/// Pages that redb may keep of a segment that is being written: what one group commit touches.
const WRITE_CACHE: usize = 8 << 20;
/// Pages that redb may keep of a segment that is only read: the way down to a block.
const READ_CACHE: usize = 1 << 20;

const SUFFIX: &str = "redb";
/// A segment that is being made; one found when opening was never used.
const NEW_SUFFIX: &str = "new";

/// Why a segment could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The disk is full, or a quota or limit is reached.
    Full(String),
    /// The file is not as it was written.
    Damaged(String),
    /// The file is not there (any more).
    Missing,
    /// Anything else that the file system said.
    Io(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Fault::Full(error.to_string())
            }
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Fault::Damaged(error.to_string()),
            io::ErrorKind::NotFound => Fault::Missing,
            _ => Fault::Io(error.to_string()),
        }
    }
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => error.into(),
            redb::Error::Corrupted(reason) => Fault::Damaged(reason),
            redb::Error::RepairAborted => {
                Fault::Damaged("it was not closed, and cannot be repaired".to_owned())
            }
            // A segment has one table, and always the same.
            error @ (redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }) => Fault::Damaged(error.to_string()),
            error => Fault::Io(error.to_string()),
        }
    }
}

/// Runs `action`; a panic of redb's is damage.
fn guarded<T>(action: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(result) => Ok(result?),
        Err(_) => Err(Fault::Damaged("its tree is not whole".to_owned())),
    }
}

/// An open file, and what went wrong with it first: redb serves nothing after that, and doesn't say why.
struct Handle<D> {
    db: D,
    failed: OnceLock<Fault>,
}

impl<D> Handle<D> {
    fn new(db: D) -> Self {
        Handle { db, failed: OnceLock::new() }
    }

    fn guarded<T>(&self, action: impl FnOnce(&D) -> Result<T, redb::Error>) -> Result<T, Fault> {
        let is_repeated = |error: &redb::Error| matches!(error, redb::Error::PreviousIo);
        let mut repeated = false;
        let result = guarded(|| action(&self.db).inspect_err(|error| repeated = is_repeated(error)));
        result.map_err(|fault| {
            let first = self.failed.get_or_init(|| fault.clone());
            if repeated { first.clone() } else { fault }
        })
    }
}

/// The path of the segment whose first record has the offset `first`.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.{SUFFIX}"))
}

/// The offsets at which the segments in `dir` begin, in order. Removes what was never finished.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        if suffix == Some(NEW_SUFFIX) {
            std::fs::remove_file(&path)?;
        } else if suffix == Some(SUFFIX) {
            firsts.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// What a file takes on disk, in bytes; 0 if it is not there.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// Makes the entries of `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The segment that is written.
pub(super) struct Active {
    first: u64,
    handle: Handle<Database>,
}

impl Active {
    /// Makes a segment; once this returns, it survives a crash. Half-made ones don't show.
    pub(super) fn create(dir: &Path, first: u64) -> Result<Active, Fault> {
        let new = dir.join(format!("{first:020}.{NEW_SUFFIX}"));
        let _ = std::fs::remove_file(&new);
        let db = guarded(|| {
            let db = redb::Builder::new().set_cache_size(WRITE_CACHE).create(&new)?;
            let transaction = db.begin_write()?;
            transaction.open_table(BLOCKS)?;
            transaction.commit()?;
            Ok(db)
        })?;
        std::fs::rename(&new, path(dir, first))?;
        sync_dir(dir)?;
        Ok(Active { first, handle: Handle::new(db) })
    }

    /// Opens a segment to go on writing it. After a crash this reads all of it once.
    pub(super) fn open(dir: &Path, first: u64) -> Result<Active, Fault> {
        let db = guarded(|| Ok(redb::Builder::new().set_cache_size(WRITE_CACHE).open(path(dir, first))?))?;
        Ok(Active { first, handle: Handle::new(db) })
    }

    /// The offset at which it begins.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Writes `blocks`, all or none of them, and returns when they are durable.
    pub(super) fn write(&self, blocks: &[Sealed]) -> Result<(), Fault> {
        self.handle.guarded(|db| {
            let transaction = db.begin_write()?;
            let mut table = transaction.open_table(BLOCKS)?;
            for block in blocks {
                table.insert(block.first(), block.bytes().as_ref())?;
            }
            drop(table);
            Ok(transaction.commit()?)
        })
    }

    /// Closes it properly, so that it can be opened for reading without a repair.
    pub(super) fn close(self) {
        let _ = guarded(|| {
            drop(self.handle);
            Ok(())
        });
    }
}

/// A segment that is not written any more.
pub(super) struct Closed {
    handle: Handle<ReadOnlyDatabase>,
}

impl Closed {
    /// Opens a segment for reading only.
    pub(super) fn open(dir: &Path, first: u64) -> Result<Closed, Fault> {
        guarded(|| {
            let db = redb::Builder::new().set_cache_size(READ_CACHE).open_read_only(path(dir, first))?;
            Ok(Closed { handle: Handle::new(db) })
        })
    }
}

/// Looking things up in a segment, whether it is written or not.
pub(super) trait Lookup {
    /// The last block that begins at or before `at`, unchecked: its first record's offset, and its bytes.
    fn covering(&self, at: u64) -> Result<Option<(u64, Bytes)>, Fault>;

    /// The offset of the first block that begins after `at`.
    fn after(&self, at: u64) -> Result<Option<u64>, Fault>;
}

fn covering(handle: &Handle<impl ReadableDatabase>, at: u64) -> Result<Option<(u64, Bytes)>, Fault> {
    handle.guarded(|db| {
        let table = db.begin_read()?.open_table(BLOCKS)?;
        let found = table.range(..=at)?.next_back().transpose()?;
        Ok(found.map(|(first, block)| (first.value(), Bytes::copy_from_slice(block.value()))))
    })
}

fn after(handle: &Handle<impl ReadableDatabase>, at: u64) -> Result<Option<u64>, Fault> {
    handle.guarded(|db| {
        let Some(from) = at.checked_add(1) else { return Ok(None) };
        let table = db.begin_read()?.open_table(BLOCKS)?;
        let found = table.range(from..)?.next().transpose()?;
        Ok(found.map(|(first, _)| first.value()))
    })
}

impl Lookup for Active {
    fn covering(&self, at: u64) -> Result<Option<(u64, Bytes)>, Fault> {
        covering(&self.handle, at)
    }

    fn after(&self, at: u64) -> Result<Option<u64>, Fault> {
        after(&self.handle, at)
    }
}

impl Lookup for Closed {
    fn covering(&self, at: u64) -> Result<Option<(u64, Bytes)>, Fault> {
        covering(&self.handle, at)
    }

    fn after(&self, at: u64) -> Result<Option<u64>, Fault> {
        after(&self.handle, at)
    }
}
