//! What happens in a run, drawn from its seed before it begins; and how a failing one is made smaller.

use std::fmt;

use causeway_core::Site;

use super::Options;
use super::intake::split;
use super::random::Random;
use super::world::BEGIN;

/// Everything that is done to the two sites from outside.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// The channel's `snapshot`.
    pub(super) snapshot: Snapshot,
    /// Written before the daemon starts.
    pub(super) before: Vec<(Site, String)>,
    /// In the order of their times.
    pub(super) steps: Vec<(u64, Do)>,
    /// Of the stores' clocks and of those that stamp changes.
    pub(super) skews: [[i64; 2]; 2],
    pub(super) backlog_max: Option<usize>,
    pub(super) items_max: usize,
    /// A row of a snapshot may take so many milliseconds more than any other event.
    pub(super) row_max: u64,
    /// The configuration's `limits.memory`.
    pub(super) memory: u64,
    /// The channel's `keep_alive`.
    pub(super) keep_alive: bool,
    pub(super) collide: bool,
    /// The channel's `conflict` is `owner`.
    pub(super) owned: bool,
    pub(super) apart: bool,
    pub(super) trim: bool,
    pub(super) pieces: bool,
    pub(super) intake: bool,
    /// The stores tell when they were written to.
    pub(super) times: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshot {
    Both,
    First,
    None,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Do {
    /// A transaction of an application.
    Write(Site, Vec<String>),
    /// An application hands over instead.
    Hand(Site, Vec<String>),
    /// All connections to the store break.
    Cut(Site),
    /// They break after so many more batches, before the answer.
    CutAfter(Site, u64),
    /// The store dies; it comes back after so many milliseconds with its data and another history.
    Die(Site, u64),
    /// It comes back with the history that it had.
    Stop(Site, u64),
    /// It takes nothing for so long.
    Full(Site, u64),
    /// The daemon dies, and starts again so many milliseconds later.
    Kill(u64),
    /// The daemon stops in an orderly way and starts again.
    Restart,
    /// A replica that had everything takes over from the store.
    Promote(Site),
    /// An operator asks for a snapshot.
    Snapshot,
    /// From now on everything takes another time.
    Paces(u64),
    /// The clock that stamps a site's changes is set.
    Clock(Site, i64),
}

impl fmt::Display for Do {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Do::Write(site, commands) => write!(f, "{} writes {}", site.index(), commands.join("; ")),
            Do::Hand(site, commands) => write!(f, "{} hands over {}", site.index(), commands.join("; ")),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Fault kinds and how often each may happen, drawn for each seed.
fn fault(random: &mut Random, weights: &[u64; 10]) -> Do {
    let site = Site::BOTH[random.below(2) as usize];
    let mut at = random.below(weights.iter().sum());
    let kind = weights.iter().position(|weight| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    });
    match kind.unwrap_or_default() {
        0 => Do::Cut(site),
        1 => Do::CutAfter(site, random.below(4)),
        2 => Do::Die(site, random.scaled(1, 2_000)),
        3 => Do::Stop(site, random.scaled(1, 2_000)),
        4 => Do::Full(site, random.scaled(1, 2_000)),
        5 => Do::Kill(random.scaled(1, 1_500)),
        6 => Do::Restart,
        7 => Do::Snapshot,
        8 => Do::Clock(site, random.below(6_000) as i64 - 3_000),
        _ => Do::Paces(random.next()),
    }
}

impl Plan {
    pub(super) fn draw(
        seed: u64,
        Options { collide, owned, apart, gaps, trim, pieces, rush, intake, .. }: Options,
    ) -> Plan {
        let mut random = Random::new(seed ^ 0x5eed);
        // One that breaks and is repeated tells of writes by what the keys hold, as after a gap.
        let gapless = collide && !gaps;
        let snapshot = random.pick(&[Snapshot::Both, Snapshot::Both, Snapshot::First, Snapshot::None]);
        let snapshot = if gapless { Snapshot::None } else { snapshot };
        let mut before = Vec::new();
        if snapshot != Snapshot::None {
            for i in 0..random.below(12) {
                before.push((Site::First, format!("SET before0-{i} {i}")));
            }
        }
        if snapshot == Snapshot::Both {
            for i in 0..random.below(12) {
                before.push((Site::Second, format!("SET before1-{i} {i}")));
            }
            // Both sites have these: the first one's win.
            for i in 0..if random.chance(250) { random.below(3) } else { 0 } {
                before.push((Site::First, format!("SET common{i} first")));
                before.push((Site::Second, format!("SET common{i} second")));
            }
        }
        let span = random.scaled(300, 15_000);
        let writes = random.scaled(3, 300);
        let mut writer = Writer { first: 0, keys: random.scaled(1, 4), collide, values: u64::MAX, n: 0 };
        let mut steps = Vec::new();
        for _ in 0..writes {
            let at = random.below(span);
            steps.push(at);
        }
        steps.sort_unstable();
        let mut steps: Vec<(u64, Do)> =
            steps.into_iter().map(|at| (at, writer.write(&mut random, at))).collect();
        let mut weights = [(); 10].map(|()| random.pick(&[0, 0, 1, 2, 5]));
        if gapless {
            // A store that loses its history or refuses for the time being, and a repeated snapshot.
            (weights[2], weights[4], weights[7]) = (0, 0, 0);
        }
        if weights.iter().sum::<u64>() > 0 {
            for _ in 0..random.scaled(1, 30) - 1 {
                steps.push((random.below(span), fault(&mut random, &weights)));
            }
        }
        steps.push((0, Do::Paces(random.next())));
        for _ in 0..random.below(6) {
            steps.push((random.below(span), Do::Paces(random.next())));
        }
        steps.sort_by_key(|(at, _)| *at);
        let skewed = random.chance(500);
        let skews =
            [(); 2].map(|()| [(); 2].map(|()| if skewed { random.below(4_000) as i64 - 2_000 } else { 0 }));
        let backlog_max = if random.chance(150) { Some(1 + random.below(40) as usize) } else { None };
        let items_max = random.pick(&[1, 3, 8, 64, 512]);
        let backlog_max = backlog_max.filter(|_| !gapless);
        let row_max = if random.chance(250) { random.scaled(1, 1_000) } else { 0 };
        let memory = if random.chance(250) { random.scaled(1, 64) << 14 } else { 512 << 20 };
        let keep_alive = random.chance(750);
        // Drawn apart, so that the plans of seeds without them are what they were.
        let mut random = Random::new(seed ^ 0x4a4e);
        // What is copied there must not overrun a small backlog again and again; and of a value in pieces nobody can
        // tell whether a gap has changed it.
        let copies = snapshot == Snapshot::Both && backlog_max.is_none() && !pieces;
        if copies && !collide && random.chance(500) {
            let keys = random.scaled(1, 12);
            let mut writer = Writer { first: 4, keys, collide, values: 2, n: 1_000 };
            for _ in 0..random.below(24) {
                if let Do::Write(site, commands) = writer.write(&mut random, 0) {
                    before.extend(commands.into_iter().map(|command| (site, command)));
                }
            }
            for _ in 0..random.below(12) {
                let at = random.below(span);
                steps.push((at, writer.write(&mut random, at)));
            }
            steps.sort_by_key(|(at, _)| *at);
        }
        // The same.
        let mut random = Random::new(seed ^ 0x4e4a);
        if random.chance(300) {
            for _ in 0..random.scaled(1, 40) {
                let at = random.below(span);
                steps.push((at, writer.rename(&mut random)));
                if collide && random.chance(500) {
                    let at = random.below(span);
                    steps.push((at, writer.expire(&mut random, BEGIN + at)));
                }
            }
            steps.sort_by_key(|(at, _)| *at);
        }
        // The same.
        let mut random = Random::new(seed ^ 0x9a0e);
        if random.chance(200) {
            for _ in 0..random.scaled(1, 8) {
                let at = random.below(span);
                steps.push((at, Do::Promote(Site::BOTH[random.below(2) as usize])));
            }
            steps.sort_by_key(|(at, _)| *at);
        }
        if rush {
            let mut random = Random::new(seed ^ 0x4054);
            for _ in 0..random.scaled(300, 4_000) {
                let at = random.below(span);
                let step = match random.below(12) {
                    0 => writer.rename(&mut random),
                    1 if collide => writer.expire(&mut random, BEGIN + at),
                    _ => writer.write(&mut random, at),
                };
                steps.push((at, step));
            }
            for _ in 0..random.scaled(3, 40) {
                steps.push((random.below(span), fault(&mut random, &[2, 2, 0, 1, 0, 6, 1, 0, 0, 2])));
            }
            steps.sort_by_key(|(at, _)| *at);
        }
        if intake {
            steps = steps
                .into_iter()
                .flat_map(|(at, step)| split(step).into_iter().map(move |s| (at, s)))
                .collect();
        }
        Plan {
            seed,
            snapshot,
            before,
            steps,
            skews,
            backlog_max,
            items_max,
            row_max,
            memory,
            keep_alive,
            collide,
            owned,
            apart,
            trim,
            pieces,
            intake,
            times: !seed.is_multiple_of(4),
        }
    }

    /// The smallest part of the plan that is found for which `fails` still holds.
    pub(super) fn shrink(mut self, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
        let simpler: [fn(&mut Plan); 6] = [
            |plan| plan.before.clear(),
            |plan| plan.backlog_max = None,
            |plan| plan.row_max = 0,
            |plan| plan.memory = 512 << 20,
            |plan| plan.skews = Default::default(),
            |plan| plan.before.retain(|(_, write)| write.contains("common")),
        ];
        for make in simpler {
            let mut plan = self.clone();
            make(&mut plan);
            if fails(&plan) {
                self = plan;
            }
        }
        let mut chunk = self.steps.len().div_ceil(2).max(1);
        loop {
            let (mut at, mut smaller) = (0, false);
            while at < self.steps.len() {
                let mut plan = self.clone();
                plan.steps.drain(at..(at + chunk).min(self.steps.len()));
                if fails(&plan) {
                    self = plan;
                    smaller = true;
                } else {
                    at += chunk;
                }
            }
            if chunk > 1 {
                chunk = chunk.div_ceil(2);
            } else if !smaller {
                return self;
            }
        }
    }
}

struct Writer {
    /// Keys have numbers from here on.
    first: u64,
    /// Of each kind at each site.
    keys: u64,
    collide: bool,
    /// How many a key is set to.
    values: u64,
    n: u64,
}

impl Writer {
    fn write(&mut self, random: &mut Random, at: u64) -> Do {
        let site = Site::BOTH[random.below(2) as usize];
        let count = if random.chance(250) { 2 + random.below(2) } else { 1 };
        let mut commands = Vec::new();
        for _ in 0..count {
            self.n += 1;
            match self.collide {
                true => commands.extend(self.colliding(random, BEGIN + at)),
                false => commands.extend(self.own(random, site.index() as u64, BEGIN + at)),
            }
        }
        Do::Write(site, commands)
    }

    /// A key is given the name of another one of its kind.
    fn rename(&self, random: &mut Random) -> Do {
        let site = Site::BOTH[random.below(2) as usize];
        let kinds: &[&str] =
            if self.collide { &["r", "h", "a", "g", "l", "s", "e", "f"] } else { &["d", "h", "t", "s"] };
        let kind = random.pick(kinds);
        let [from, to] = [(); 2].map(|()| match (self.first + random.below(self.keys), self.collide) {
            (key, true) => format!("{kind}{key}"),
            (key, false) => format!("{kind}{}-{key}", site.index()),
        });
        Do::Write(site, vec![format!("RENAME {from} {to}")])
    }

    /// A key that may expire is to expire at another time, or never.
    fn expire(&self, random: &mut Random, now: u64) -> Do {
        let site = Site::BOTH[random.below(2) as usize];
        let key = format!("{}{}", random.pick(&["e", "f", "i"]), random.below(self.keys));
        let command = match random.below(3) {
            0 => format!("PERSIST {key}"),
            1 => format!("PEXPIREAT {key} {}", now + random.scaled(1, 4_000)),
            _ => format!("PEXPIREAT {key} {}", now + 86_400_000 + random.below(1_000)),
        };
        Do::Write(site, vec![command])
    }

    /// On keys that only this site writes.
    fn own(&self, random: &mut Random, site: u64, now: u64) -> Vec<String> {
        let (key, n) = (format!("{site}-{}", self.first + random.below(self.keys)), self.n);
        let value = n % self.values;
        let (field, by) = (random.below(3), 1 + random.below(9));
        let far = now + 86_400_000 + n;
        match random.below(20) {
            0..4 => vec![format!("INCRBY c{key} {by}")],
            4..7 => vec![format!("RPUSH l{key} {n}")],
            7 => vec![match random.below(4) {
                0 => format!("DEL d{key}"),
                _ => format!("RPUSH d{key} {n}"),
            }],
            8 => vec![format!("HINCRBY i{key} f{field} {by}")],
            9..11 => vec![match random.below(8) {
                0 => format!("DEL h{key}"),
                1..3 => format!("HDEL h{key} f{field}"),
                _ => format!("HSET h{key} f{field} {n}"),
            }],
            11..13 => vec![match random.below(4) {
                0 => format!("DEL t{key}"),
                _ => format!("SET t{key} {value}"),
            }],
            13..15 => vec![match random.below(3) {
                0 => format!("SREM s{key} m{field}"),
                _ => format!("SADD s{key} m{field}"),
            }],
            15..17 => match random.below(4) {
                0 => vec![format!("SET x{key} {value}")],
                1 => vec![format!("DEL x{key}")],
                _ => {
                    let at = now + random.scaled(1, 4_000);
                    vec![format!("SET x{key} {value}"), format!("PEXPIREAT x{key} {at}")]
                }
            },
            17 => vec![match random.below(3) {
                0 => format!("PERSIST y{key}"),
                1 => format!("PEXPIREAT y{key} {far}"),
                _ => format!("INCRBY y{key} {by}"),
            }],
            18 => vec![format!("SET z{key} {value}"), format!("PEXPIREAT z{key} {far}")],
            _ => vec![format!("RPUSH m{key} {n}")],
        }
    }

    /// On keys that both sites write: kinds r, h, a, g, l, q and s, and with an expire-at e, f and i.
    fn colliding(&self, random: &mut Random, now: u64) -> Vec<String> {
        let (key, n) = (random.below(self.keys), self.n);
        let (field, by) = (random.below(3), 1 + random.below(9));
        let soon = now + random.scaled(1, 4_000);
        let one = match random.below(10) {
            0 => match random.below(4) {
                0 => format!("DEL r{key}"),
                _ => format!("SET r{key} {n}"),
            },
            1 => match random.below(6) {
                0 => format!("DEL h{key}"),
                1 => format!("HDEL h{key} f{field}"),
                _ => format!("HSET h{key} f{field} {n}"),
            },
            2 => match random.below(5) {
                0 => format!("DEL a{key}"),
                1 => format!("SET a{key} {}", n * 1_000),
                _ => format!("INCRBY a{key} {by}"),
            },
            3 => match random.below(8) {
                0 => format!("DEL g{key}"),
                1 => format!("HDEL g{key} f{field}"),
                2..4 => format!("HSET g{key} f{field} {}", n * 1_000),
                _ => format!("HINCRBY g{key} f{field} {by}"),
            },
            4 => match random.below(6) {
                0 => format!("DEL l{key}"),
                _ => format!("RPUSH l{key} {n}"),
            },
            5 => format!("RPUSH q{key} {n}"),
            6 => match random.below(3) {
                0 => format!("SREM s{key} m{field}"),
                _ => format!("SADD s{key} m{field}"),
            },
            // Values that are replaced, sessions and rate limiters.
            7 => match random.below(5) {
                0 => format!("DEL e{key}"),
                1 => format!("SET e{key} {}", n * 1_000),
                2 => format!("INCRBY e{key} {by}"),
                _ => {
                    return vec![format!("SET e{key} {}", n * 1_000), format!("PEXPIREAT e{key} {soon}")];
                }
            },
            8 => match random.below(6) {
                0 => format!("DEL f{key}"),
                1 => format!("HDEL f{key} f{field}"),
                _ => return vec![format!("HSET f{key} f{field} {n}"), format!("PEXPIREAT f{key} {soon}")],
            },
            _ => return vec![format!("INCRBY i{key} {by}"), format!("PEXPIREAT i{key} {soon}")],
        };
        vec![one]
    }
}
