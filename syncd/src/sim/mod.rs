//! Deterministic simulation: the real engine between two stores in memory, with a log in memory and a clock
//! that stands still while anything is to do. One seed gives one run.
//!
//! `plan.rs` draws what happens from the seed, `driver.rs` carries it out, `intake.rs` hands over, `line.rs` and `log.rs` make
//! everything take time and break, `check.rs` says what has to be true in the end.

mod check;
mod driver;
mod intake;
mod line;
mod log;
mod plan;
mod random;
#[cfg(test)]
mod tests;
mod world;

use plan::Plan;
use world::Trace;

pub use crate::engine::switch::Part;
use crate::engine::switch::switch_off;

/// What kind of runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Both sites write the same keys; else each has its own.
    pub collide: bool,
    /// Where they do, sites own some of the keys: `conflict` is `owner`.
    pub owned: bool,
    /// Where they do, streams are lost, too, snapshots repeated, and stores out of memory.
    pub gaps: bool,
    /// Each site has a process of its own, and they know of each other what the logs say.
    pub apart: bool,
    /// This part of the rule for concurrent writes is switched off.
    pub off: Option<Part>,
    /// Retention takes records that are settled. Where a site then has a gap, the logs no longer tell what
    /// its keys held, and a write or a delete in the gap may lose against an older one of the peer's.
    pub trim: bool,
    /// Rows and states of more than a few bytes come in pieces.
    pub pieces: bool,
    /// Far more is written, and the daemon dies before it has caught up.
    pub rush: bool,
    /// Some of the keys are not written but handed over.
    pub intake: bool,
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// What was wrong in the end; empty if nothing was.
    pub failures: Vec<String>,
    /// Everything was right in the end, but only after the status had said that all was carried.
    pub late: bool,
}

/// Runs `seed`.
pub fn run(seed: u64, options: Options) -> Verdict {
    switch_off(options.off);
    let run = driver::run(&Plan::draw(seed, options), None, false);
    Verdict { failures: run.failures, late: run.late }
}

/// A number that is the same for two runs of `seed`, whatever else is different.
pub fn digest(seed: u64, options: Options) -> u64 {
    driver::run(&Plan::draw(seed, options), None, true).digest
}

/// Runs `seed` again and prints what happens: of the keys that differ in the end, or of `keys`. With
/// `shrink`, first looks for a smaller plan that fails, too.
pub fn trace(seed: u64, options: Options, shrink: bool, keys: Vec<String>) -> Verdict {
    switch_off(options.off);
    let mut plan = Plan::draw(seed, options);
    let mut found = driver::run(&plan, None, false);
    if shrink && !found.failures.is_empty() {
        plan = plan.shrink(|plan| !driver::run(plan, None, false).failures.is_empty());
        found = driver::run(&plan, None, false);
    }
    println!(
        "snapshot {:?}, backlog {:?}, batches of {}, memory {}, skews {:?}",
        plan.snapshot, plan.backlog_max, plan.items_max, plan.memory, plan.skews
    );
    plan.before.iter().for_each(|(site, write)| println!("before: {} {write}", site.index()));
    plan.steps.iter().for_each(|(at, step)| println!("plan: {at:>6} ms {step}"));
    let keys = if keys.is_empty() { found.keys } else { keys };
    let run = driver::run(&plan, Some(Trace { keys: keys.into_iter().collect() }), false);
    Verdict { failures: run.failures, late: run.late }
}
