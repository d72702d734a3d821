//! Which keys a channel carries.

use causeway_core::Pattern;

use crate::args::{Args, swapped};
use crate::names;

/// Why the key with the empty name is left out.
pub(crate) const EMPTY_NAME: &str = "the key with the empty name: the log has no form for it";

/// `keys`, `except` and `dbs` of a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    include: Vec<Pattern>,
    except: Vec<Pattern>,
    dbs: Option<Vec<u32>>,
}

impl Filter {
    /// Carries what one of `include` takes (all, if that is empty) and none of `except`, in `dbs`.
    pub fn new(include: &[String], except: &[String], dbs: Option<Vec<u32>>) -> Filter {
        let patterns = |globs: &[String]| globs.iter().map(|g| Pattern::new(g)).collect();
        Filter { include: patterns(include), except: patterns(except), dbs }
    }

    /// Whether the channel carries this key. Keys of our own are never carried, nor is the one with the empty
    /// name: in the log an empty name means the whole space.
    pub fn carries(&self, db: u32, key: &[u8]) -> bool {
        !key.is_empty() && self.means(db, key)
    }

    /// Whether the key with the empty name is one that has to be left out: it would be carried, had it another.
    pub(crate) fn leaves_out(&self, db: u32, key: &[u8]) -> bool {
        key.is_empty() && self.means(db, key)
    }

    fn means(&self, db: u32, key: &[u8]) -> bool {
        !names::is_ours(key)
            && self.carries_db(db)
            && (self.include.is_empty() || self.include.iter().any(|p| p.matches(key)))
            && !self.except.iter().any(|p| p.matches(key))
    }

    /// Whether any key of this database is carried.
    pub fn carries_db(&self, db: u32) -> bool {
        self.dbs.as_ref().is_none_or(|dbs| dbs.contains(&db))
    }

    /// Whether a change of a whole database or of all, the RESP array `command` in database `db`, touches
    /// nothing but what is carried. What is none that we know may touch anything.
    pub(crate) fn holds_to(&self, db: u32, command: &[u8]) -> bool {
        if self.is_whole() && self.dbs.is_none() {
            return true;
        }
        let name = Args::at(command, 0).and_then(|mut args| command.get(args.next()?)).unwrap_or_default();
        self.is_whole()
            && match swapped(command) {
                Some((a, b)) => self.carries_db(a) && self.carries_db(b),
                None => name.eq_ignore_ascii_case(b"FLUSHDB") && self.carries_db(db),
            }
    }

    /// Whether all keys of a database that it carries are carried.
    pub fn is_whole(&self) -> bool {
        self.include.is_empty() && self.except.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_holds_to_a_filter_that_carries_all_it_empties() {
        let encoded = |line: &str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            crate::resp::Command::of(&words).raw
        };
        let holds = |filter: &Filter, db, line| filter.holds_to(db, &encoded(line));
        let all = Filter::default();
        let dbs = Filter::new(&[], &[], Some(vec![0, 3]));
        let some = Filter::new(&["push:*".into()], &[], None);
        let less = Filter::new(&[], &["tmp:*".into()], None);
        for (line, db, in_dbs) in [
            ("FLUSHALL", 0, false),
            ("flushall async", 0, false),
            ("FLUSHDB", 3, true),
            ("FLUSHDB", 1, false),
            ("SWAPDB 0 3", 1, true),
            ("SWAPDB 0 1", 0, false),
            ("WHAT", 0, false),
        ] {
            assert!(holds(&all, db, line), "{line}");
            assert_eq!(holds(&dbs, db, line), in_dbs, "{line}");
            assert!(!holds(&some, db, line) && !holds(&less, db, line), "{line}");
        }
    }

    #[test]
    fn our_own_keys_are_nobody_s_data() {
        let all = Filter::default();
        assert!(all.carries(0, b"x") && all.carries(7, b"x") && all.is_whole());
        assert!(!all.carries(7, b"") && all.leaves_out(7, b"") && !all.leaves_out(7, b"x"));
        assert!(!all.carries(0, b"causeway:{a.b}:marker"));
        let some = Filter::new(&["push:*".into()], &["push:tmp:*".into()], Some(vec![0, 3]));
        assert!(some.carries(3, b"push:1"));
        assert!(!some.leaves_out(0, b""));
        assert!(!some.carries(1, b"push:1") && !some.carries(0, b"push:tmp:1") && !some.carries(0, b"x"));
    }
}
