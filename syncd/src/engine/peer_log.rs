//! What a daemon of one site knows of the other site's daemon: what that one's log tells.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use causeway_core::Op;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::restart::{Terms, restart_point};
use super::shared::{DirectionStats, SiteShared, Trouble, lock};
use crate::log::{Error as LogError, Log, Offset, PartitionId};

/// How often the end of the peer's log is looked at, where that costs little.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// And where it costs more.
const LOOK_AT_LEAST: Duration = Duration::from_secs(1);
/// So many records at the end of the log tell how far its site is: there is hardly another one than data among them.
const LOOKED_AT: u64 = 16;
/// A site's capture writes at least each second. Silent for longer than this, something is wrong with it.
const SILENT: Duration = Duration::from_secs(10);

/// The log of the peer of the site that is served here.
pub(crate) struct PeerLog {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) partition: PartitionId,
    /// Of the peer's site, as far as it is known here.
    pub(crate) peer: Arc<SiteShared>,
    /// From the peer to us.
    pub(crate) theirs: Arc<DirectionStats>,
    /// From us to the peer.
    pub(crate) ours: Arc<DirectionStats>,
}

impl PeerLog {
    /// Keeps both directions' figures true, for ever.
    pub(crate) async fn watch(self) {
        let (mut end, mut heard, mut is_silent) = (None, Instant::now(), false);
        loop {
            let began = Instant::now();
            match self.look().await {
                // What stands there at the start may be old.
                Ok(now) if end.is_none() => end = Some(now),
                Ok(now) if Some(now) > end => {
                    (end, heard) = (Some(now), Instant::now());
                    if std::mem::take(&mut is_silent) {
                        info!(partition = %self.partition, "the other site is heard again");
                    }
                    self.hear();
                }
                Ok(_) => {}
                Err(error) => debug!(partition = %self.partition, %error, "the end of the peer's log"),
            }
            if heard.elapsed() > SILENT {
                let seconds = heard.elapsed().as_secs();
                if !std::mem::replace(&mut is_silent, true) {
                    warn!(partition = %self.partition, seconds, "nothing comes from the other site");
                }
                self.miss(seconds);
            }
            // Where the brokers have to be asked, that costs them something.
            tokio::time::sleep((began.elapsed() * 10).clamp(LOOK_EVERY, LOOK_AT_LEAST)).await;
        }
    }

    fn hear(&self) {
        self.peer.capture_ready.raise();
        self.theirs.capture_connected.store(true, Ordering::SeqCst);
        self.ours.apply_connected.store(true, Ordering::SeqCst);
        *lock(&self.theirs.capture_error) = None;
        *lock(&self.ours.apply_error) = None;
    }

    fn miss(&self, seconds: u64) {
        self.theirs.capture_connected.store(false, Ordering::SeqCst);
        self.ours.apply_connected.store(false, Ordering::SeqCst);
        let text = format!(
            "its log has said nothing for {seconds} s: see that a daemon runs for this site and reaches its store, and \
             that its Kafka is reached from here"
        );
        let trouble = Trouble { text, setup: false };
        *lock(&self.theirs.capture_error) = Some(trouble.clone());
        *lock(&self.ours.apply_error) = Some(trouble);
    }

    /// Takes over what the last records say: how far the peer captured, and applied of ours. Returns where they end.
    async fn look(&self) -> Result<Offset, LogError> {
        let before = self.theirs.data_end.load(Ordering::SeqCst);
        let (mut data_end, mut low, mut first) = (before, None, None);
        let mut terms = Terms::default();
        let newest = self.log.newest(&self.partition, LOOKED_AT).await?;
        let end = newest.last().map_or(Offset(0), |(last, _)| Offset(last.0 + 1));
        for (_, change) in newest {
            if !terms.admits(&change) || change.op == Op::Fence {
                continue;
            }
            low = Some(change.low);
            if change.op.is_data() && change.seq.0 >= before {
                data_end = data_end.max(change.seq.next().0);
                first = first.or(Some((change.seq, change.time)));
            } else if let Some(point) = restart_point(&change).filter(|_| change.op == Op::Position) {
                data_end = data_end.max(point.data_end);
            }
        }
        if let Some((seq, time)) = first {
            lock(&self.theirs.waiting).note(seq, time);
        }
        self.theirs.data_end.store(data_end, Ordering::SeqCst);
        if let Some(low) = low {
            self.ours.applied_to(low);
        }
        Ok(end)
    }
}
