//! The blocks of a partition that were written last, in memory, and where its readers stand in a block:
//! a reader at the tail never touches the disk, and one that reads a block in pieces decodes it once.

use std::collections::VecDeque;

use super::block::{Reader, Sealed};

/// How many readers that stand within a block are remembered: a partition has two or three.
const READERS_MAX: usize = 4;

/// Blocks that follow each other without holes, up to the partition's end.
#[derive(Debug, Default)]
pub(super) struct Tail {
    blocks: VecDeque<Sealed>,
    bytes: usize,
    readers: VecDeque<Reader>,
}

impl Tail {
    /// Appends a block, and forgets the oldest ones so that at most `bytes_max` are kept.
    pub(super) fn push(&mut self, block: Sealed, bytes_max: usize) {
        if self.blocks.back().is_some_and(|last| last.end() != block.first()) {
            self.blocks.clear();
            self.bytes = 0;
        }
        self.bytes += block.bytes().len();
        self.blocks.push_back(block);
        while self.bytes > bytes_max {
            let Some(oldest) = self.blocks.pop_front() else { break };
            self.bytes -= oldest.bytes().len();
        }
    }

    /// The block that holds `at`, if it is kept.
    pub(super) fn block(&self, at: u64) -> Option<&Sealed> {
        let after = self.blocks.partition_point(|block| block.first() <= at);
        self.blocks.get(after.checked_sub(1)?).filter(|block| block.end() > at)
    }

    /// A reader that was left at `at`.
    pub(super) fn resume(&mut self, at: u64) -> Option<Reader> {
        let index = self.readers.iter().position(|reader| reader.next() == at)?;
        self.readers.remove(index)
    }

    /// Leaves a reader within its block for the next read.
    pub(super) fn leave(&mut self, reader: Reader) {
        if reader.next() < reader.end() {
            if self.readers.len() == READERS_MAX {
                self.readers.pop_front();
            }
            self.readers.push_back(reader);
        }
    }
}
