use async_trait::async_trait;

use crate::{Change, Key, Marker, Result, Seq, Term, Token};

/// One transaction for a target.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Committed together with the changes.
    pub marker: Marker,
    /// In the order in which they take effect; may be empty. A group's changes are all of one batch.
    pub changes: Vec<Change>,
    /// Commits only if none of the keys given to [`Target::watch`] before was touched since.
    pub watched: bool,
    /// What the changes come to was worked out with all that is known of their keys: each takes effect on what is there, also
    /// where a store that goes by the changes' [`hlc`](Change::hlc) holds something that counts as newer.
    pub decided: bool,
    /// A `read` takes effect only where the key does not exist; where it does, its seq comes back in
    /// `existing` of [`Outcome::Committed`]. Otherwise it replaces, as a `state` does.
    pub keep_existing: bool,
}

/// A change that the store refused for what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Index into [`Batch::changes`].
    pub index: usize,
    /// What the store said, without values.
    pub reason: String,
}

/// What became of one batch. Batches are answered in the order in which they were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed, marker included.
    Committed {
        /// Changes that had no effect because the store refused them; the rest took effect.
        refused: Vec<Refused>,
        /// Of reads under [`Batch::keep_existing`]: indices of those whose key exists.
        existing: Vec<usize>,
    },
    /// Nothing of it took effect: a watched key was touched.
    Touched,
    /// Nothing of it took effect, and batches sent after it may have: the store refused it as a whole.
    Rejected {
        /// The server cannot serve just now (out of memory, read-only, loading); else one of the changes
        /// is to blame, and halving the batch finds it.
        transient: bool,
        /// What the store said.
        reason: String,
    },
}

/// A page of keys, and from where to go on; `None`: that was the last.
pub type Keys = (Vec<Key>, Option<u64>);

/// One partition of a store, as seen by the one that applies the peer's changes into it.
#[async_trait]
pub trait Target: Send {
    /// Connects, ends every older applier's hold on this partition, and returns the marker found: `None`
    /// if there is none. From here on an older applier's batches, also those under way, have no effect.
    /// Called again after every error.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`.
    async fn take_over(&mut self, term: Term) -> Result<Option<Marker>>;

    /// Sends `batch` without waiting for its outcome. An outcome comes for each, in the same order.
    ///
    /// # Errors
    ///
    /// `Retry` or `Fenced`: of everything without an outcome it is unknown whether it is committed;
    /// [`take_over`](Target::take_over) tells.
    async fn send(&mut self, batch: Batch) -> Result<()>;

    /// Waits for the outcome of the oldest batch that has none yet. May be dropped while it waits,
    /// without loss. Waits forever if nothing is under way.
    ///
    /// # Errors
    ///
    /// As [`send`](Target::send).
    async fn outcome(&mut self) -> Result<Outcome>;

    /// Watches `keys` for the next batch that says so, then writes a token. Once the site's own capture
    /// has seen the token, it knows every local change to these keys made before the watch began.
    /// Nothing may be under way.
    ///
    /// # Errors
    ///
    /// As [`send`](Target::send).
    async fn watch(&mut self, keys: &[Key]) -> Result<Token>;

    /// Of each `read` or `state` whether the store holds just that now, expire-at included, and of what has a
    /// number of its own ([`Connector::renumbered`](crate::Connector::renumbered)) whether it is there; `false` where
    /// it cannot be told cheaply. Nothing may be under way.
    ///
    /// # Errors
    ///
    /// As [`send`](Target::send).
    async fn holds(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        Ok(vec![false; changes.len()])
    }

    /// Lists the keys that the channel carries, from `cursor` (0 at first); each key that exists all the
    /// time is listed at least once. Called with no value in the middle of its pieces: what is left of
    /// one whose last piece never came may be removed here.
    ///
    /// # Errors
    ///
    /// As [`send`](Target::send).
    async fn keys(&mut self, cursor: u64) -> Result<Keys>;

    /// Every seq of the batches whose outcome was returned; for messages only.
    fn settled(&self) -> Seq;
}
