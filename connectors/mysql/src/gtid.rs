//! GTIDs: which transactions a server has. No I/O.

use std::collections::BTreeMap;
use std::fmt;

/// A transaction's own name: `UUID:N` or `UUID:TAG:N` of MySQL, `DOMAIN-SERVER-N` of MariaDB. It keeps it at every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gtid<'t> {
    /// Who counts: all but the number.
    pub(crate) origin: &'t str,
    pub(crate) n: u64,
}

impl<'t> Gtid<'t> {
    pub(crate) fn parse(text: &'t str) -> Option<Gtid<'t>> {
        let (origin, n) = text.rsplit_once(':').or_else(|| text.rsplit_once('-'))?;
        Some(Gtid { origin, n: n.parse().ok()? })
    }

    /// MariaDB's domain.
    fn domain(origin: &str) -> &str {
        origin.split('-').next().unwrap_or_default()
    }
}

/// The transactions that a server has up to a place: of each origin, which numbers. Of MariaDB, which tells the last one
/// only, all up to that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Executed(BTreeMap<String, Vec<(u64, u64)>>);

impl Executed {
    /// Reads a set as MySQL writes it, or as [`Display`](fmt::Display) does.
    pub(crate) fn parse(text: &str) -> Option<Executed> {
        let mut all = Executed::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let mut parts = item.split(':');
            let server = parts.next()?;
            let mut origin = server.to_owned();
            for part in parts {
                if part.starts_with(|c: char| c.is_ascii_digit()) {
                    let (from, to) = part.split_once('-').unwrap_or((part, part));
                    let range = (from.parse().ok()?, to.parse().ok()?);
                    all.0.entry(origin.clone()).or_default().push(range);
                } else {
                    origin = format!("{server}:{part}");
                }
            }
        }
        Some(all)
    }

    /// Reads MariaDB's list of the last ones: of each domain and server, or of each domain.
    pub(crate) fn of_last(text: &str) -> Option<Executed> {
        let mut all = Executed::default();
        let text = text.trim().trim_start_matches('[').trim_end_matches(']');
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            all.add(Gtid::parse(item)?);
        }
        Some(all)
    }

    pub(crate) fn contains(&self, gtid: Gtid<'_>) -> bool {
        let ranges = self.0.get(gtid.origin);
        ranges.is_some_and(|ranges| ranges.iter().any(|(from, to)| (*from..=*to).contains(&gtid.n)))
    }

    /// With one more. Of MariaDB, with all before it: there numbers only grow.
    pub(crate) fn add(&mut self, gtid: Gtid<'_>) {
        let is_last_only = !gtid.origin.contains(':') && gtid.origin.matches('-').count() == 1;
        if is_last_only {
            self.set_to(gtid);
            return;
        }
        if self.contains(gtid) {
            return;
        }
        let ranges = match self.0.get_mut(gtid.origin) {
            Some(ranges) => ranges,
            None => self.0.entry(gtid.origin.to_owned()).or_default(),
        };
        ranges.push((gtid.n, gtid.n));
        ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges.drain(..) {
            match joined.last_mut().filter(|(_, last)| last.saturating_add(1) >= from) {
                Some((_, last)) => *last = to.max(*last),
                None => joined.push((from, to)),
            }
        }
        *ranges = joined;
    }

    /// With all of the origin up to `gtid` and none behind it: what its own server, which counts without gaps, had
    /// when it wrote that one.
    pub(crate) fn set_to(&mut self, gtid: Gtid<'_>) {
        let ranges = self.0.entry(gtid.origin.to_owned()).or_default();
        ranges.retain(|(from, _)| *from <= gtid.n);
        match ranges.last_mut() {
            Some((_, to)) => *to = gtid.n,
            None => ranges.push((1, gtid.n)),
        }
    }

    /// The numbers of one origin, as text.
    fn numbers(&self, origin: &str) -> Option<String> {
        let ranges = self.0.get(origin)?;
        let all: Vec<String> = ranges
            .iter()
            .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
            .collect();
        Some(all.join(":"))
    }

    /// What `self`, found at a server, has otherwise than `expected`: at most one origin, with the numbers of both.
    /// `known` is what a MariaDB has besides its binlog: of other domains it may have come with a backup. What its binlog
    /// lacks of the domain `own` came before what it has, or with a backup.
    pub(crate) fn differs_from(
        &self,
        expected: &Executed,
        own: Gtid<'_>,
        known: Option<&Executed>,
    ) -> Option<String> {
        let came_otherwise = |origin: &str| {
            let Some(known) = known else { return false };
            let wanted = expected.0.get(origin).and_then(|ranges| ranges.last()).map_or(0, |(_, to)| *to);
            let domain = Gtid::domain(origin);
            let reached = known.0.iter().filter(|(other, _)| Gtid::domain(other) == domain);
            domain == Gtid::domain(own.origin)
                || reached.flat_map(|(_, ranges)| ranges).any(|(_, to)| *to >= wanted)
        };
        let origins = self.0.keys().chain(expected.0.keys());
        let mut differing = origins.filter(|origin| {
            let (here, wanted) = (self.0.get(*origin), expected.0.get(*origin));
            here != wanted && !(here.is_none() && came_otherwise(origin))
        });
        let origin = differing.next()?;
        let shown = |all: &Executed| all.numbers(origin).unwrap_or_else(|| "none".to_owned());
        Some(format!("of {origin} it has {}, and the old one had {}", shown(self), shown(expected)))
    }

    /// What `self` has and `other` lacks: an origin, with all its numbers here.
    pub(crate) fn beyond(&self, other: &Executed) -> Option<String> {
        let is_in = |origin: &str, (from, to): &(u64, u64)| {
            let ranges = other.0.get(origin);
            ranges.is_some_and(|ranges| ranges.iter().any(|(first, last)| first <= from && to <= last))
        };
        let (origin, _) =
            self.0.iter().find(|(origin, ranges)| !ranges.iter().all(|range| is_in(origin, range)))?;
        Some(format!("{origin}:{}", self.numbers(origin).unwrap_or_default()))
    }

    /// The origins that have other numbers in `later`.
    pub(crate) fn moved<'l>(&self, later: &'l Executed) -> Vec<&'l str> {
        let moved = later.0.iter().filter(|(origin, ranges)| self.0.get(*origin) != Some(ranges));
        moved.map(|(origin, _)| origin.as_str()).collect()
    }

    /// Of a list of the last ones of each domain, which one is the last of the origin's.
    pub(crate) fn last_of_domain(&self, origin: &str) -> Option<(&str, u64)> {
        let domain = Gtid::domain(origin);
        let (origin, ranges) = self.0.iter().find(|(other, _)| Gtid::domain(other) == domain)?;
        Some((origin, ranges.last()?.1))
    }
}

/// `ORIGIN:1-5:7,ORIGIN:1-3`, without spaces.
impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, origin) in self.0.keys().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            write!(f, "{comma}{origin}:{}", self.numbers(origin).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// Which transactions a stream has told up to each of its places, as far as a restart may ask.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// From which place on, and what was told up to there. One more each time another origin has its turn: between two of
    /// them one alone counts up. Empty: it is not known.
    sets: std::collections::VecDeque<(u64, Executed)>,
    /// Whose turn it is.
    origin: String,
}

/// Turns that are kept. Servers that write in turns, as where each replicates the other, leave a set unknown.
const TURNS_MAX: usize = 1000;

impl Told {
    /// All of `executed` stands up to the place `at`.
    pub(crate) fn new(at: u64, executed: Option<Executed>) -> Told {
        Told { sets: executed.map(|executed| (at, executed)).into_iter().collect(), origin: String::new() }
    }

    /// The transaction `next` follows at the place `at`, where the one before it was `last`.
    pub(crate) fn follows(&mut self, at: u64, last: &str, next: &str) {
        let Some((_, newest)) = self.sets.back() else { return };
        let Some(next) = Gtid::parse(next) else {
            // Without one nobody knows any more.
            self.sets.clear();
            return;
        };
        if next.origin == self.origin {
            return;
        }
        next.origin.clone_into(&mut self.origin);
        let mut newest = newest.clone();
        Gtid::parse(last).into_iter().for_each(|last| newest.set_to(last));
        self.sets.push_back((at, newest));
        if self.sets.len() > TURNS_MAX {
            self.sets.clear();
        }
    }

    /// What was told up to the place `at`, where the last transaction was `last`.
    pub(crate) fn at(&self, at: u64, last: &str) -> Option<Executed> {
        let before = self.sets.iter().rev().find(|(from, _)| *from < at).or_else(|| self.sets.front());
        let mut set = before?.1.clone();
        set.set_to(Gtid::parse(last)?);
        Some(set)
    }

    /// Nobody asks for a place before `at` any more.
    pub(crate) fn forget_below(&mut self, at: u64) {
        while self.sets.get(1).is_some_and(|(from, _)| *from < at) {
            self.sets.pop_front();
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        !self.sets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "4e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn gtid(text: &str) -> Gtid<'_> {
        Gtid::parse(text).unwrap()
    }

    #[test]
    fn a_set_reads_back() {
        let text = format!("{A}:1-5:7,\n{B}:1:tag:2-3");
        let set = Executed::parse(&text).unwrap();
        assert_eq!(set.to_string(), format!("{A}:1-5:7,{B}:1,{B}:tag:2-3"));
        assert_eq!(Executed::parse(&set.to_string()), Some(set.clone()));
        for (one, held) in [(":5", true), (":6", false), (":7", true), (":tag:1", false)]
            .map(|(n, held)| (format!("{A}{n}"), held))
        {
            assert_eq!(set.contains(gtid(&one)), held, "{one}");
        }
        assert!(set.contains(gtid(&format!("{B}:tag:3"))));
        assert_eq!(Executed::parse(""), Some(Executed::default()));
        assert_eq!(Executed::parse(&format!("{A}:x")), Some(Executed::default()));
        assert_eq!(Executed::parse(&format!("{A}:1-x")), None);
        let maria = Executed::of_last("[1-1-5,3-3-2]").unwrap();
        assert_eq!(maria.to_string(), "1-1:1-5,3-3:1-2");
        assert_eq!(Executed::parse(&maria.to_string()), Some(maria));
        assert_eq!(Executed::of_last("[]"), Some(Executed::default()));
    }

    #[test]
    fn what_is_added_joins() {
        let mut set = Executed::default();
        for n in [1, 2, 5, 3, 4, 9] {
            set.add(gtid(&format!("{A}:{n}")));
        }
        assert_eq!(set.to_string(), format!("{A}:1-5:9"));
        set.set_to(gtid(&format!("{A}:7")));
        assert_eq!(set.to_string(), format!("{A}:1-7"));
        set.set_to(gtid(&format!("{B}:2")));
        assert_eq!(set.to_string(), format!("{A}:1-7,{B}:1-2"));
        let mut maria = Executed::of_last("0-1-7").unwrap();
        maria.add(gtid("0-1-12"));
        maria.add(gtid("0-2-13"));
        assert_eq!(maria.to_string(), "0-1:1-12,0-2:1-13");
    }

    /// A transaction too many or too few is a difference; what a MariaDB got with a backup is none.
    #[test]
    fn a_server_that_has_others_is_told() {
        let set = |text: &str| Executed::parse(text).unwrap();
        let own = format!("{A}:9");
        let differs = |here: &str, wanted: &str| set(here).differs_from(&set(wanted), gtid(&own), None);
        assert_eq!(differs(&format!("{A}:1-9"), &format!("{A}:1-9")), None);
        for (here, wanted) in [
            (format!("{A}:1-8"), format!("{A}:1-9")),
            (format!("{A}:1-7:9"), format!("{A}:1-9")),
            (format!("{A}:1-9,{B}:1"), format!("{A}:1-9")),
            (format!("{A}:1-9"), format!("{A}:1-9,{B}:1")),
        ] {
            assert!(differs(&here, &wanted).is_some(), "{here} {wanted}");
        }
        let last = |text: &str| Executed::of_last(text).unwrap();
        let maria = |here: &str, wanted: &str, known: &str| {
            last(here).differs_from(&last(wanted), gtid("0-1-9"), Some(&last(known)))
        };
        assert_eq!(maria("0-1-9", "0-1-9,0-7-3,5-5-8", "0-1-9,5-5-8"), None);
        assert!(maria("0-1-9", "0-1-9,5-5-8", "0-1-9,5-5-7").is_some());
        assert!(maria("0-1-9,0-2-10", "0-1-9", "0-1-9").is_some());
        assert_eq!(set(&format!("{A}:1-9")).beyond(&set(&format!("{A}:1-10,{B}:1"))), None);
        let beyond = set(&format!("{A}:1-9:11")).beyond(&set(&format!("{A}:1-10")));
        assert_eq!(beyond, Some(format!("{A}:1-9:11")));
    }

    #[test]
    fn what_a_stream_told_is_known_at_each_place() {
        let mut told = Told::new(100, Executed::of_last("0-1-5"));
        told.follows(100, "0-1-5", "0-1-6");
        told.follows(200, "0-1-6", "0-1-7");
        told.follows(300, "0-1-7", "0-2-8");
        told.follows(400, "0-2-8", "0-2-9");
        let at = |told: &Told, at, last| told.at(at, last).map(|set| set.to_string());
        assert_eq!(at(&told, 100, "0-1-5").as_deref(), Some("0-1:1-5"));
        assert_eq!(at(&told, 300, "0-1-7").as_deref(), Some("0-1:1-7"));
        assert_eq!(at(&told, 400, "0-2-8").as_deref(), Some("0-1:1-7,0-2:1-8"));
        told.forget_below(400);
        assert_eq!(at(&told, 500, "0-2-9").as_deref(), Some("0-1:1-7,0-2:1-9"));
        told.follows(500, "0-2-9", "");
        assert!(!told.is_known() && told.at(600, "0-2-9").is_none());
    }
}
