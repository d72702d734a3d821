//! Up to where the stream was read, against how much of it the server keeps for a slow reader, and against when that
//! was written.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::info::ServerInfo;

/// Of one link. Offsets are those of the stream; told by the link and by the connection beside it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The last byte that was read.
    read: AtomicU64,
    /// The last byte that the server has, when it was asked.
    end: AtomicU64,
    /// `repl_backlog_size`: by so much a reader may be behind and go on after a break.
    backlog: AtomicU64,
    /// A reader that is behind by more is cut off; 0: never.
    buffer: AtomicU64,
    /// The snapshot is behind us.
    streaming: AtomicBool,
    /// Keys that are being read again.
    rereads: AtomicU64,
    /// An end of the stream that was not handed out when the server was asked for it, and when it was asked.
    ahead: Mutex<Option<(u64, u64)>>,
    /// All that was written before is handed out; 0: not known. Milliseconds since 1970.
    current: AtomicU64,
}

impl Progress {
    pub(crate) fn at(read: u64) -> Progress {
        Progress { read: AtomicU64::new(read), ..Progress::default() }
    }

    pub(crate) fn read_to(&self, at: u64) {
        self.read.store(at, Ordering::Relaxed);
    }

    pub(crate) fn snapshot_ended(&self) {
        self.streaming.store(true, Ordering::Relaxed);
    }

    pub(crate) fn buffer_max(&self, bytes: u64) {
        self.buffer.store(bytes, Ordering::Relaxed);
    }

    /// So many keys are being read again.
    pub(crate) fn is_reading_again(&self, keys: usize) {
        self.rereads.store(keys as u64, Ordering::Relaxed);
    }

    pub(crate) fn rereads(&self) -> u64 {
        self.rereads.load(Ordering::Relaxed)
    }

    /// Everything up to `at` was handed out.
    pub(crate) fn handed_out(&self, at: u64) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, asked)) = ahead.take_if(|(end, _)| *end <= at) {
            self.current.store(asked, Ordering::Relaxed);
        }
    }

    /// All that was written before this time was handed out.
    pub(crate) fn current(&self) -> Option<u64> {
        Some(self.current.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// `asked`: when it was asked, in milliseconds since 1970.
    pub(crate) fn server_says(&self, info: &ServerInfo, asked: u64) {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((info.offset, asked));
        self.end.store(info.offset, Ordering::Relaxed);
        self.backlog.store(info.backlog_bytes, Ordering::Relaxed);
    }

    /// What is not read yet, as a share of what may be. In the stream that is the smaller of backlog and
    /// output buffer: over the one a break becomes a gap, over the other the server hangs up. In a snapshot
    /// it is the output buffer alone, in which the stream waits: a break begins it anew, whatever the
    /// backlog has.
    pub(crate) fn behind(&self) -> Option<f64> {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let buffer = Some(load(&self.buffer)).filter(|bytes| *bytes > 0);
        let bound = match (self.streaming.load(Ordering::Relaxed), load(&self.backlog)) {
            (true, 0) => None,
            (true, backlog) => Some(buffer.map_or(backlog, |buffer| buffer.min(backlog))),
            (false, _) => buffer,
        }?;
        Some(load(&self.end).saturating_sub(load(&self.read)) as f64 / bound as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_counts_against_what_the_server_keeps() {
        let progress = Progress::at(1_000);
        assert_eq!(progress.behind(), None, "nothing cuts a snapshot off");
        progress.buffer_max(400);
        progress.server_says(&ServerInfo { offset: 1_100, backlog_bytes: 200, ..ServerInfo::default() }, 0);
        assert_eq!(progress.behind(), Some(0.25), "in a snapshot the backlog does not count");
        progress.snapshot_ended();
        assert_eq!(progress.behind(), Some(0.5));
        progress.buffer_max(50);
        assert_eq!(progress.behind(), Some(2.0));
        progress.read_to(1_200);
        assert_eq!(progress.behind(), Some(0.0), "what the server said is older than what was read");
        progress.server_says(&ServerInfo::default(), 0);
        assert_eq!(progress.behind(), None, "no backlog was told");
    }

    #[test]
    fn what_was_written_before_the_server_was_asked_is_current_once_it_is_handed_out() {
        let progress = Progress::at(1_000);
        let end = |offset| ServerInfo { offset, ..ServerInfo::default() };
        progress.server_says(&end(1_100), 7_000);
        progress.handed_out(1_099);
        assert_eq!(progress.current(), None);
        progress.server_says(&end(1_500), 8_000);
        progress.handed_out(1_100);
        assert_eq!(progress.current(), Some(7_000), "of what was asked first");
        progress.server_says(&end(1_600), 9_000);
        progress.handed_out(1_700);
        assert_eq!(progress.current(), Some(9_000));
    }
}
