use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::{Hlc, Seq, Term};

/// What the applier leaves in the target store, atomically with the data of each transaction, also when
/// all of it was dropped: the truth about what was applied, read again after every reconnect, and found
/// by the target site's own capture in the store's stream.
///
/// All seqs are the origin's (the peer's of the site that holds the marker), but for `basis`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marker {
    /// The applier's reign.
    pub term: Term,
    /// Every seq below is applied or dropped.
    pub applied: Seq,
    /// Seqs at or above `applied` that are done, too; ascending and disjoint. Empty where a target applies
    /// in the order of the log.
    pub done: Vec<Range<u64>>,
    /// Of every seq below, the store's answer was read when this was sent, and dead letters are durable.
    /// After a crash the keys in `settled..applied` get a `refresh`.
    pub settled: Seq,
    /// The highest hlc among what was applied.
    pub hlc: Hlc,
    /// Every change of the *own* log (of the site that holds the marker) below was known to the decision.
    pub basis: Seq,
    /// This transaction holds the changes from here to `applied`.
    pub from: Seq,
    /// Those of this transaction that the rule for concurrent writes dropped.
    pub dropped: Vec<Seq>,
    /// Numbers of the redos that this transaction carries out: it evaluates their keys again (DESIGN.md §5).
    pub redone: Vec<u64>,
    /// Which log the seqs are of: as its newest position said; 0: none did yet.
    pub log: u64,
    /// Every change of the *own* log below that an application handed over ([`Change::intake`](crate::Change::intake)) is in
    /// this store, or was found to be overwritten.
    pub delivered: Seq,
}

const FORMAT: &str = "1";

/// `1 term applied settled hlc basis from done dropped`: numbers in decimal, lists as `a-b,c-d` and `a,b`
/// with `-` for an empty one; then `redone`, `log` and `delivered`, only as
/// far as there is anything to say.
impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Marker { term, applied, done, settled, hlc, basis, from, dropped, redone, log, delivered } = self;
        write!(f, "{FORMAT} {} {applied} {settled} {} {basis} {from} ", term.0, hlc.0)?;
        write_list(f, done.iter().map(|r| format!("{}-{}", r.start, r.end)))?;
        f.write_str(" ")?;
        write_list(f, dropped.iter().map(Seq::to_string))?;
        if redone.is_empty() && *log == 0 && *delivered == Seq(0) {
            return Ok(());
        }
        f.write_str(" ")?;
        write_list(f, redone.iter().map(u64::to_string))?;
        match (*log, *delivered) {
            (0, Seq(0)) => Ok(()),
            (log, Seq(0)) => write!(f, " {log}"),
            (log, delivered) => write!(f, " {log} {delivered}"),
        }
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: impl ExactSizeIterator<Item = String>) -> fmt::Result {
    if items.len() == 0 {
        return f.write_str("-");
    }
    for (i, item) in items.enumerate() {
        if i > 0 {
            f.write_str(",")?;
        }
        f.write_str(&item)?;
    }
    Ok(())
}

/// Reads what [`Display`](fmt::Display) wrote; `Err` holds the text that is no marker.
impl FromStr for Marker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| text.to_owned())
    }
}

fn parse(text: &str) -> Option<Marker> {
    let mut words = text.split(' ');
    if words.next()? != FORMAT {
        return None;
    }
    let mut number = || words.next()?.parse::<u64>().ok();
    let (term, applied, settled) = (Term(number()?), Seq(number()?), Seq(number()?));
    let (hlc, basis, from) = (Hlc(number()?), Seq(number()?), Seq(number()?));
    let done = list(words.next()?, |item| {
        let (start, end) = item.split_once('-')?;
        Some(start.parse().ok()?..end.parse().ok()?)
    })?;
    let dropped = list(words.next()?, |item| item.parse().ok().map(Seq))?;
    let redone = words.next().map_or(Some(Vec::new()), |word| list(word, |item| item.parse().ok()))?;
    let mut or_none = || words.next().map_or(Some(0), |word| word.parse::<u64>().ok());
    let (log, delivered) = (or_none()?, Seq(or_none()?));
    match words.next() {
        Some(_) => None,
        None => {
            Some(Marker { term, applied, done, settled, hlc, basis, from, dropped, redone, log, delivered })
        }
    }
}

fn list<T>(text: &str, item: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    if text == "-" { Some(Vec::new()) } else { text.split(',').map(item).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_reads_back_from_its_text() {
        let marker = Marker {
            term: Term(3),
            applied: Seq(700),
            done: vec![702..705, 710..711],
            settled: Seq(512),
            hlc: Hlc(99),
            basis: Seq(41),
            from: Seq(600),
            dropped: vec![Seq(601), Seq(650)],
            redone: Vec::new(),
            log: 0,
            delivered: Seq(0),
        };
        assert_eq!(marker.to_string(), "1 3 700 512 99 41 600 702-705,710-711 601,650");
        assert_eq!(marker.to_string().parse(), Ok(marker.clone()));
        let marker = Marker { redone: vec![7, 9], ..marker };
        assert_eq!(marker.to_string(), "1 3 700 512 99 41 600 702-705,710-711 601,650 7,9");
        assert_eq!(marker.to_string().parse(), Ok(marker.clone()));
        let marker = Marker { redone: Vec::new(), log: 17, ..marker };
        assert_eq!(marker.to_string(), "1 3 700 512 99 41 600 702-705,710-711 601,650 - 17");
        assert_eq!(marker.to_string().parse(), Ok(marker.clone()));
        let marker = Marker { log: 0, delivered: Seq(8), ..marker };
        assert_eq!(marker.to_string(), "1 3 700 512 99 41 600 702-705,710-711 601,650 - 0 8");
        assert_eq!(marker.to_string().parse(), Ok(marker));
        assert_eq!("1 0 0 0 0 0 0 - -".parse(), Ok(Marker::default()));
    }

    #[test]
    fn what_is_no_marker_is_refused() {
        for text in [
            "",
            "1",
            "2 0 0 0 0 0 0 - -",
            "1 0 0 0 0 0 x - -",
            "1 0 0 0 0 0 0 - - x",
            "1 0 0 0 0 0 0 - - - -",
            "1 0 0 0 0 0 0 - - - 7 7 7",
            "1 0 0 0 0 0 0 1 -",
        ] {
            assert_eq!(text.parse::<Marker>(), Err(text.to_owned()));
        }
    }
}
