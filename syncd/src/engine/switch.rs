//! Switches off a part of the rule for concurrent writes, so that the simulation can show that it is needed. Only
//! the simulation's builds can do that.

/// A part of the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(any(test, feature = "simulate")), allow(dead_code, unreachable_pub))]
pub enum Part {
    /// Our newer changes are done again on top of the peer's older absolute one.
    Reapply,
    /// A decision says how much of the own log it knew.
    Basis,
    /// A key in which a race left something wrong is evaluated again.
    Redo,
    /// And once more, if it was written while that was under way.
    RedoRace,
    /// The authority's state decides the order of operations.
    Ship,
    /// And waits until nothing is wrong in it.
    ShipWaits,
    /// The state's version is that of the newest write of the whole key, not that of the clock.
    StateVersion,
    /// A change says what of the peer's log its key had seen.
    Seen,
    /// The restart point stays behind what is open.
    RestartPoint,
    /// The clock moves with what was applied.
    Clock,
    /// Races with deletes are looked for.
    DeleteRace,
    /// The log of a key's owner orders its changes.
    Owner,
    /// What was handed over is evaluated with what the peer changed meanwhile.
    Delivered,
}

#[cfg(any(test, feature = "simulate"))]
mod on {
    use std::cell::Cell;

    use super::Part;

    thread_local! {
        static OFF: Cell<Option<Part>> = const { Cell::new(None) };
    }

    impl Part {
        /// All of them.
        pub const ALL: [Part; 13] = [
            Part::Reapply,
            Part::Basis,
            Part::Redo,
            Part::RedoRace,
            Part::Ship,
            Part::ShipWaits,
            Part::StateVersion,
            Part::Seen,
            Part::RestartPoint,
            Part::Clock,
            Part::DeleteRace,
            Part::Owner,
            Part::Delivered,
        ];
    }

    /// Switches a part off on this thread; `None`: all are on.
    pub(crate) fn switch_off(part: Option<Part>) {
        OFF.set(part);
    }

    pub(crate) fn is_off(part: Part) -> bool {
        OFF.get() == Some(part)
    }
}

#[cfg(any(test, feature = "simulate"))]
pub(crate) use on::{is_off, switch_off};

/// No part is ever switched off.
#[cfg(not(any(test, feature = "simulate")))]
pub(crate) const fn is_off(_: Part) -> bool {
    false
}
