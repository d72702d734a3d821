//! The small file beside a partition's segments that says how far it was acknowledged.
//!
//! A store that finds its newest part damaged falls back to an older state, in which acknowledged records
//! are missing without a trace. This file is the trace. It is written after each commit and not fsynced:
//! after a crash of the process it is exact, after one of the machine it may be some seconds behind, never
//! ahead.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const NAME: &str = "acked";
const SLOT: usize = 16;

/// Two slots of `end, checksum`, written in turn, so that a torn write leaves the other one.
#[derive(Debug)]
pub(super) struct Acked {
    file: File,
    turn: u64,
    seed: u64,
}

impl Acked {
    /// Opens or makes it in `dir`, and tells the end that it names; 0 if it names none.
    pub(super) fn open(dir: &Path, seed: u64) -> io::Result<(Acked, u64)> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(dir.join(NAME))?;
        let mut end = 0;
        for slot in 0..2 {
            let mut bytes = [0; SLOT];
            if file.read_exact_at(&mut bytes, slot * SLOT as u64).is_ok() {
                end = end.max(parse(&bytes, seed).unwrap_or(0));
            }
        }
        Ok((Acked { file, turn: 0, seed }, end))
    }

    /// Writes `end`, which never goes down.
    pub(super) fn write(&mut self, end: u64) -> io::Result<()> {
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(&end.to_le_bytes());
        bytes[8..].copy_from_slice(&sum(end, self.seed).to_le_bytes());
        self.turn = 1 - self.turn;
        self.file.write_all_at(&bytes, self.turn * SLOT as u64)
    }

    /// Makes what was written durable: before the segments that say the same are removed.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn sum(end: u64, seed: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&end.to_le_bytes(), seed)
}

fn parse(bytes: &[u8; SLOT], seed: u64) -> Option<u64> {
    let (end, stored) = bytes.split_first_chunk::<8>()?;
    let end = u64::from_le_bytes(*end);
    (stored == sum(end, seed).to_le_bytes()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_survives_a_torn_write() {
        let dir = tempfile::tempdir().unwrap();
        let (mut acked, end) = Acked::open(dir.path(), 5).unwrap();
        assert_eq!(end, 0);
        acked.write(7).unwrap();
        acked.write(9).unwrap();
        assert_eq!(Acked::open(dir.path(), 5).unwrap().1, 9);
        let path = dir.path().join(NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Acked::open(dir.path(), 5).unwrap().1, 7);
        assert_eq!(Acked::open(dir.path(), 6).unwrap().1, 0, "another partition's file says nothing");
    }
}
