//! What surrounds the engine in a simulation: time, how long everything takes, and the trace of a run.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use causeway_core::{Change, Site};
use tokio::time::Instant;

use super::plan::Plan;
use super::random::Random;
use crate::engine::Clock;

/// The beginning of every run, in milliseconds since 1970.
pub(super) const BEGIN: u64 = 1_800_000_000_000;

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// An event on its way from the store to capture.
    Stream,
    /// A batch on its way to the store.
    Commit,
    /// Its answer on the way back.
    Answer,
    /// A connection, a question to the store.
    Connect,
    /// Until an append is queued.
    Append,
    /// Until it is durable.
    Durable,
    /// A read of the log.
    Read,
}

const STEPS: usize = 7;

/// How long one kind of step takes: mostly up to `usual`, but so many per mille up to `stall`; milliseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    usual: u64,
    stalls: u64,
    stall: u64,
}

/// One run's surroundings.
pub(super) struct World {
    /// Retention takes what is settled.
    pub(super) trim: bool,
    /// See [`Plan::row_max`].
    pub(super) row_max: u64,
    random: Mutex<Random>,
    begin: Instant,
    /// Of the stores' clocks and of those that stamp changes, in milliseconds.
    skews: [[AtomicI64; 2]; 2],
    paces: Mutex<[[Pace; STEPS]; 2]>,
    /// Counts how often all connections to a store were cut.
    cuts: [AtomicU64; 2],
    trace: Option<Trace>,
    /// Nothing is of interest any more.
    silent: AtomicBool,
    /// Of everything that was noted: equal for two runs of one seed.
    digest: Mutex<xxhash_rust::xxh3::Xxh3>,
    digesting: bool,
}

/// What is printed of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    /// Lines on other keys are left out; empty: none are.
    pub(super) keys: BTreeSet<String>,
}

/// Which of a site's clocks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    Store = 0,
    Capture = 1,
}

impl World {
    pub(super) fn new(plan: &Plan, trace: Option<Trace>, digesting: bool) -> Arc<World> {
        Arc::new(World {
            random: Mutex::new(Random::new(plan.seed)),
            trim: plan.trim,
            row_max: plan.row_max,
            begin: Instant::now(),
            skews: Default::default(),
            paces: Mutex::default(),
            cuts: Default::default(),
            trace,
            silent: AtomicBool::new(false),
            digest: Mutex::default(),
            digesting,
        })
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut lock(&self.random))
    }

    /// Milliseconds since the run began.
    pub(super) fn elapsed(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    pub(super) fn at(&self, ms: u64) -> Instant {
        self.begin + Duration::from_millis(ms)
    }

    pub(super) fn clock(self: &Arc<World>, of: Of, site: Site) -> Clock {
        let world = Arc::clone(self);
        Arc::new(move || {
            let skew = world.skews[of as usize][site.index()].load(Ordering::SeqCst);
            (BEGIN + world.elapsed()).saturating_add_signed(skew)
        })
    }

    pub(super) fn set_skew(&self, of: Of, site: Site, skew: i64) {
        self.skews[of as usize][site.index()].store(skew, Ordering::SeqCst);
    }

    /// Draws anew how long everything takes.
    pub(super) fn redraw_paces(&self, random: &mut Random) {
        let mut paces = [[Pace::default(); STEPS]; 2];
        let calm = random.chance(200);
        for pace in paces.iter_mut().flatten() {
            *pace = Pace {
                usual: random.pick(&[0, 0, 1, 2, 3, 8, 30]),
                stalls: if calm { 0 } else { random.pick(&[0, 0, 0, 5, 30, 150]) },
                stall: random.pick(&[50, 200, 1_000, 3_000]),
            };
        }
        *lock(&self.paces) = paces;
    }

    /// Nothing stalls any more.
    pub(super) fn calm(&self) {
        *lock(&self.paces) = [[Pace { usual: 2, stalls: 0, stall: 0 }; STEPS]; 2];
    }

    /// How long one step takes this time.
    pub(super) fn draw(&self, step: Step, site: Site) -> Duration {
        let pace = lock(&self.paces)[site.index()][step as usize];
        let ms = self.random(|random| match random.chance(pace.stalls) {
            true => random.below(pace.stall + 1),
            false => random.below(pace.usual + 1),
        });
        Duration::from_millis(ms)
    }

    pub(super) async fn take_time(&self, step: Step, site: Site) {
        let time = self.draw(step, site);
        if time.is_zero() { tokio::task::yield_now().await } else { tokio::time::sleep(time).await }
    }

    pub(super) fn cuts(&self, site: Site) -> u64 {
        self.cuts[site.index()].load(Ordering::SeqCst)
    }

    pub(super) fn cut(&self, site: Site) {
        self.cuts[site.index()].fetch_add(1, Ordering::SeqCst);
    }

    /// Whether somebody wants to hear of `keys`.
    fn wants<'a>(&self, mut keys: impl Iterator<Item = &'a str>) -> bool {
        self.digesting
            || self.trace.as_ref().is_some_and(|t| t.keys.is_empty() || keys.any(|key| t.keys.contains(key)))
    }

    /// Notes what concerns the whole run.
    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        if self.trace.is_some() || self.digesting {
            self.say(&text());
        }
    }

    /// Notes what concerns one key.
    pub(super) fn note_key(&self, key: &str, text: impl FnOnce() -> String) {
        if self.wants(std::iter::once(key)) {
            self.say(&text());
        }
    }

    /// Notes those of `changes` that somebody wants to hear of, if any.
    pub(super) fn note_changes(&self, what: impl FnOnce() -> String, changes: &[Change]) {
        if self.trace.is_none() && !self.digesting {
            return;
        }
        let mut text = String::new();
        for change in changes.iter().filter(|c| self.wants(std::iter::once(name(c)))) {
            let _infallible = write!(text, "\n               {}", show(change));
        }
        if !text.is_empty() {
            self.say(&format!("{}{text}", what()));
        }
    }

    fn say(&self, text: &str) {
        let line = format!("{:>9} ms  {text}", self.elapsed());
        if self.digesting {
            lock(&self.digest).update(line.as_bytes());
        }
        if self.trace.is_some() && !self.silent.load(Ordering::SeqCst) {
            println!("{line}");
        }
    }

    /// Prints no more.
    pub(super) fn be_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    pub(super) fn digest(&self) -> u64 {
        lock(&self.digest).digest()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The key's name.
pub(super) fn name(change: &Change) -> &str {
    std::str::from_utf8(&change.key.name).unwrap_or_default()
}

/// A change in one line.
pub(super) fn show(change: &Change) -> String {
    let value = change.value.as_deref().map_or_else(|| "-".into(), String::from_utf8_lossy);
    format!(
        "{} {} [{value}] seq {} seen {} hlc {} pos {} term {}",
        change.op.as_str(),
        name(change),
        change.seq,
        change.seen,
        change.hlc.0,
        change.pos,
        change.term.0
    )
}
