//! Up to when what was written to a store, or deleted, has been told.

use std::collections::HashMap;

use crate::documents::Shard;
use crate::place::ShardId;

/// Times are milliseconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Current {
    /// When a look began, and up to which number each shard had operations then: what one of them had not made known to all
    /// of its copies may be told by a later look.
    open: Option<(u64, HashMap<ShardId, i64>)>,
    /// What was written before is told.
    written: Option<u64>,
    /// What was deleted before is told.
    deleted: Option<u64>,
}

impl Current {
    /// A look that began at `time` found these shards.
    pub(crate) fn look(&mut self, time: u64, shards: &[Shard]) {
        if self.open.is_none() {
            self.open = Some((time, shards.iter().map(|shard| (shard.id.clone(), shard.last)).collect()));
        }
    }

    /// Each shard is told up to where `place` says; one without is gone.
    pub(crate) fn told(&mut self, place: impl Fn(&ShardId) -> Option<i64>) {
        let is_told = |(id, last): (&ShardId, &i64)| place(id).is_none_or(|place| place >= *last);
        if let Some((time, _)) = self.open.take_if(|(_, shards)| shards.iter().all(is_told)) {
            self.written = Some(time);
        }
    }

    /// What a listing that began at `time` did not meet is told.
    pub(crate) fn listed(&mut self, time: u64) {
        self.deleted = Some(time);
    }

    /// Before which time all is told; `None`: that is not known.
    pub(crate) fn time(&self) -> Option<u64> {
        self.written.zip(self.deleted).map(|(written, deleted)| written.min(deleted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_all_copies_yet_is_waited_for() {
        let shard = |last| Shard { id: ShardId::new("u", 0, "h"), index: "i".into(), checkpoint: 3, last };
        let mut current = Current::default();
        current.listed(1_000);
        current.look(100, &[shard(5)]);
        current.told(|_| Some(3));
        assert_eq!(current.time(), None);
        current.look(200, &[shard(9)]);
        current.told(|_| Some(7));
        assert_eq!(current.time(), Some(100), "of the first look, and nothing is known of the second");
        current.look(300, &[shard(9)]);
        current.told(|_| None);
        assert_eq!(current.time(), Some(300));
    }

    #[test]
    fn no_time_is_told_before_deletes_are() {
        let mut current = Current::default();
        current.look(100, &[]);
        current.told(|_| None);
        assert_eq!(current.time(), None);
        current.listed(50);
        assert_eq!(current.time(), Some(50));
    }
}
