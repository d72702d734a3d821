use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use causeway_core::{Batch, Change, Error, Key, Keys, Marker, Outcome, Result, Seq, Target, Term, Token};

use crate::command::key;
use crate::source::unavailable;
use crate::store::{Fault, State, Store};

/// How many keys a page of [`Target::keys`] has, about.
const PAGE: usize = 100;

pub(crate) struct MemoryTarget {
    store: Arc<Store>,
    endpoint: String,
    id: u64,
    epoch: Option<u64>,
    watched: Vec<(String, u64)>,
    /// Batches under way: what became of it, or, where the store is slow, the batch itself.
    under_way: VecDeque<(Seq, UnderWay)>,
    settled: Seq,
}

enum UnderWay {
    Done(Outcome),
    Waits(Duration, Box<Batch>),
    /// It took effect, and the link broke before that was told.
    Cut,
}

impl MemoryTarget {
    pub(crate) fn new(store: Arc<Store>, endpoint: String) -> Self {
        let under_way = VecDeque::new();
        MemoryTarget {
            id: store.unique(),
            store,
            endpoint,
            epoch: None,
            watched: Vec::new(),
            under_way,
            settled: Seq(0),
        }
    }

    fn check(&self, state: &State, action: &str) -> Result<()> {
        if state.down || self.epoch != Some(state.epoch) {
            return Err(unavailable(action, &self.endpoint, "the connection is cut"));
        }
        if state.holder != self.id {
            let reason = format!("its term is {}", state.term.0);
            return Err(Error::Fenced { endpoint: self.endpoint.clone(), reason });
        }
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> Result<UnderWay> {
        let mut state = self.store.lock();
        self.check(&state, "apply a batch")?;
        if state.cuts_at(&batch.changes) {
            return Err(unavailable("apply a batch", &self.endpoint, "the connection is cut"));
        }
        if batch.watched && state.is_touched(&std::mem::take(&mut self.watched)) {
            return Ok(UnderWay::Done(Outcome::Touched));
        }
        let outcome = state.apply(batch);
        let mut cut = false;
        for fault in &mut state.faults {
            if let Fault::CutAfter(left) = fault {
                *left = left.saturating_sub(1);
                cut |= *left == 0;
            }
        }
        if cut {
            state.faults.retain(|f| !matches!(f, Fault::CutAfter(_)));
            state.cut();
        }
        drop(state);
        self.store.changed.notify_waiters();
        Ok(if cut { UnderWay::Cut } else { UnderWay::Done(outcome) })
    }
}

/// Where a key stands in the order of [`Target::keys`]: never 0, which is the start.
fn place(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    hasher.finish().max(1)
}

#[async_trait]
impl Target for MemoryTarget {
    async fn take_over(&mut self, term: Term) -> Result<Option<Marker>> {
        let mut state = self.store.lock();
        state.reigns += 1;
        if state.down {
            return Err(unavailable("take over", &self.endpoint, "the store is down"));
        }
        if term < state.term {
            let reason = format!("its term is {}, ours {}", state.term.0, term.0);
            return Err(Error::Fenced { endpoint: self.endpoint.clone(), reason });
        }
        (state.term, state.holder) = (term, self.id);
        self.epoch = Some(state.epoch);
        self.under_way.clear();
        self.watched.clear();
        Ok(state.marker.clone())
    }

    async fn send(&mut self, batch: Batch) -> Result<()> {
        let slow = {
            let state = self.store.lock();
            self.check(&state, "apply a batch")?;
            state.faults.iter().find_map(|f| if let Fault::Slow(d) = f { Some(*d) } else { None })
        };
        let applied = batch.marker.applied;
        // Behind one that waits, the next one waits, too: batches take effect in their order.
        let behind = matches!(self.under_way.back(), Some((_, UnderWay::Waits(..))));
        let sent = match slow {
            Some(delay) => UnderWay::Waits(delay, Box::new(batch)),
            None if behind => UnderWay::Waits(Duration::ZERO, Box::new(batch)),
            None => self.commit(&batch)?,
        };
        self.under_way.push_back((applied, sent));
        Ok(())
    }

    async fn outcome(&mut self) -> Result<Outcome> {
        let delay = match self.under_way.front() {
            None => std::future::pending().await,
            Some((_, UnderWay::Waits(delay, _))) => *delay,
            Some(_) => Duration::ZERO,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // From here on nothing waits, so that a dropped call has taken nothing.
        let Some((applied, sent)) = self.under_way.pop_front() else {
            return Err(unavailable("apply a batch", &self.endpoint, "nothing is under way"));
        };
        let sent = match sent {
            UnderWay::Waits(_, batch) => self.commit(&batch)?,
            sent => sent,
        };
        match sent {
            UnderWay::Done(outcome) => {
                self.check(&self.store.lock(), "read an outcome")?;
                self.settled = self.settled.max(applied);
                Ok(outcome)
            }
            _ => Err(unavailable("read an outcome", &self.endpoint, "the connection is cut")),
        }
    }

    async fn watch(&mut self, keys: &[Key]) -> Result<Token> {
        let token = Token(self.store.unique());
        {
            let mut state = self.store.lock();
            self.check(&state, "watch keys")?;
            self.watched = state.touches(keys.iter().map(|k| String::from_utf8_lossy(&k.name).into_owned()));
            state.write_token(token);
        }
        self.store.changed.notify_waiters();
        Ok(token)
    }

    async fn holds(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        let state = self.store.lock();
        self.check(&state, "compare keys")?;
        Ok(changes.iter().map(|change| state.holds(change)).collect())
    }

    async fn keys(&mut self, cursor: u64) -> Result<Keys> {
        let state = self.store.lock();
        self.check(&state, "list keys")?;
        let mut places: Vec<(u64, &String)> =
            state.data.keys().map(|name| (place(name), name)).filter(|(at, _)| *at >= cursor).collect();
        places.sort_unstable();
        // A page ends between two places, never between two keys of one place.
        let mut end = places.len().min(PAGE);
        while end > 0 && end < places.len() && places[end].0 == places[end - 1].0 {
            end += 1;
        }
        let next = places.get(end).map(|(at, _)| *at);
        Ok((places.iter().take(end).map(|(_, name)| key(name)).collect(), next))
    }

    fn settled(&self) -> Seq {
        self.settled
    }
}
