//! Which keys a channel carries.

use crate::args::{Args, swapped};
use crate::names;

/// A pattern as `KEYS` takes it: `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, `\` before a character.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    glob: Vec<u8>,
    /// The glob is a plain prefix and one `*` at the end: the usual case, and a cheap one.
    prefix: Option<usize>,
}

impl Pattern {
    fn new(glob: &str) -> Pattern {
        let glob = glob.as_bytes().to_vec();
        let special = |b: &u8| matches!(b, b'*' | b'?' | b'[' | b'\\');
        let first = glob.iter().position(special);
        let prefix = first.filter(|&i| i + 1 == glob.len() && glob.get(i) == Some(&b'*'));
        Pattern { glob, prefix }
    }

    fn matches(&self, key: &[u8]) -> bool {
        match self.prefix {
            Some(n) => self.glob.get(..n).is_some_and(|prefix| key.starts_with(prefix)),
            None => glob_matches(&self.glob, key),
        }
    }
}

/// Whether `text` is of the form `glob`. Time grows with the product of both lengths at worst.
fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    // Where to try again, one byte of text further, once what follows the last `*` did not fit.
    let mut again: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(t) {
        if glob.get(g) == Some(&b'*') {
            again = Some((g + 1, t));
            g += 1;
            continue;
        }
        match one(glob, g, byte) {
            Some(next) => {
                g = next;
                t += 1;
            }
            None => match again {
                Some((star, from)) => {
                    again = Some((star, from + 1));
                    g = star;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob.get(g..).unwrap_or_default().iter().all(|&b| b == b'*')
}

/// Where the glob goes on if its element at `g`, no `*`, takes `byte`.
fn one(glob: &[u8], g: usize, byte: u8) -> Option<usize> {
    match *glob.get(g)? {
        b'?' => Some(g + 1),
        b'[' => {
            let mut i = g + 1;
            let not = glob.get(i) == Some(&b'^');
            if not {
                i += 1;
            }
            let mut found = false;
            loop {
                match (glob.get(i), glob.get(i + 1), glob.get(i + 2)) {
                    // An unclosed class ends with the pattern, as in Redis itself.
                    (None, ..) => break,
                    (Some(b']'), ..) => {
                        i += 1;
                        break;
                    }
                    (Some(b'\\'), Some(&c), _) => {
                        found |= c == byte;
                        i += 2;
                    }
                    (Some(&a), Some(b'-'), Some(&b)) => {
                        found |= (a.min(b)..=a.max(b)).contains(&byte);
                        i += 3;
                    }
                    (Some(&c), ..) => {
                        found |= c == byte;
                        i += 1;
                    }
                }
            }
            (found != not).then_some(i)
        }
        b'\\' if g + 1 < glob.len() => (glob.get(g + 1) == Some(&byte)).then_some(g + 2),
        c => (c == byte).then_some(g + 1),
    }
}

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
    fn globs_match_as_the_server_s_own() {
        let cases: [(&str, &str, bool); 20] = [
            ("push:*", "push:1", true),
            ("push:*", "pus:1", false),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a[bx]c", "axc", true),
            ("a[^bx]c", "axc", false),
            ("a[^bx]c", "ayc", true),
            ("a[a-f]c", "aec", true),
            ("a[f-a]c", "aec", true),
            ("a\\*c", "a*c", true),
            ("a\\*c", "abc", false),
            ("*:tmp:*", "x:tmp:y", true),
            ("*:tmp:*", "x:tm:y", false),
            ("*a*b*c", "xaxbxbxc", true),
            ("*a*b*c", "xaxbxbxcx", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("a**", "a", true),
            ("[a", "a", true),
        ];
        for (glob, text, expected) in cases {
            assert_eq!(Pattern::new(glob).matches(text.as_bytes()), expected, "{glob} on {text}");
        }
    }

    #[test]
    fn a_hostile_pattern_ends_in_time() {
        let glob = "*a".repeat(50);
        assert!(!glob_matches(glob.as_bytes(), "a".repeat(40).as_bytes()));
        assert!(glob_matches(glob.as_bytes(), "a".repeat(5000).as_bytes()));
    }

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
