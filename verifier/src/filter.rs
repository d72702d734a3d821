//! Which keys a check is about.

/// What is ours begins with this, and is nobody's data.
const OURS: &[u8] = b"causeway:{";

/// Which keys and databases a channel carries, narrowed to a tenant if one was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Patterns of which a key matches at least one; empty: every key.
    pub(crate) keys: Vec<Vec<u8>>,
    /// Patterns of which a key matches none.
    pub(crate) except: Vec<Vec<u8>>,
    /// The databases carried; empty: all.
    pub(crate) dbs: Vec<u32>,
    /// The tenant's patterns, of which a key matches at least one.
    pub(crate) tenant: Option<Vec<Vec<u8>>>,
}

impl Scope {
    /// Whether the channel carries the key `name`.
    pub(crate) fn carries(&self, name: &[u8]) -> bool {
        let any = |patterns: &[Vec<u8>]| patterns.iter().any(|p| matches(p, name));
        !name.starts_with(OURS)
            && (self.keys.is_empty() || any(&self.keys))
            && !any(&self.except)
            && self.tenant.as_deref().is_none_or(any)
    }

    /// Whether the channel carries the database `db`.
    pub(crate) fn carries_db(&self, db: u32) -> bool {
        self.dbs.is_empty() || self.dbs.contains(&db)
    }

    /// A pattern that every key carried matches, for the server to leave the others out.
    pub(crate) fn server_pattern(&self) -> Option<&[u8]> {
        match (self.tenant.as_deref(), self.keys.as_slice()) {
            (Some([one]), _) | (None, [one]) => Some(one),
            _ => None,
        }
    }
}

/// `text` as a pattern that matches nothing but itself.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Redis's own pattern language: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before a character that means itself.
///
/// Goes back to the last `*` only, so the time is at most pattern times text.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(_) => one(&pattern[p..], text[t]),
            None => None,
        };
        match (step, star) {
            (Some(used), _) => {
                p += used;
                t += 1;
            }
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                p = after;
                t = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

/// How many bytes of `pattern` (not empty, not beginning with `*`) match `byte`; `None` if they do not.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => class(rest, byte).map(|used| used + 1),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// What follows a `[`: the bytes used up to and with the `]`, if the class holds `byte`. A class that is not
/// closed ends with the pattern, as Redis has it.
fn class(rest: &[u8], byte: u8) -> Option<usize> {
    let negated = rest.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match rest.get(at..) {
            None | Some([]) => break,
            Some([b']', ..]) => {
                at += 1;
                break;
            }
            Some([b'\\', escaped, ..]) => {
                found |= *escaped == byte;
                at += 2;
            }
            Some([from, b'-', to, ..]) => {
                let (low, high) = (from.min(to), from.max(to));
                found |= (*low..=*high).contains(&byte);
                at += 3;
            }
            Some([literal, ..]) => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_redis() {
        for (pattern, text, expected) in [
            ("push:*", "push:1", true),
            ("push:*", "pull:1", false),
            ("*:a:*", "x:b:a:c", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2b3", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^ae]llo", "hallo", false),
            ("h[^ae]llo", "hbllo", true),
            ("h[z-a]llo", "hqllo", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("[\\]]", "]", true),
            ("", "", true),
            ("**", "", true),
            ("?", "", false),
            ("[a", "a", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_tenant_named_like_a_pattern_is_that_tenant_only() {
        let pattern = format!("push:{}:*", escape("a*[b]\\"));
        assert!(matches(pattern.as_bytes(), b"push:a*[b]\\:1"));
        assert!(!matches(pattern.as_bytes(), b"push:axb:1"));
    }

    #[test]
    fn what_is_ours_is_nobodys_data() {
        let scope = Scope { except: vec![b"tmp:*".to_vec()], dbs: vec![0, 3], ..Scope::default() };
        assert!(scope.carries(b"causeway:x") && !scope.carries(b"causeway:{dc-cloud.tags}:marker"));
        assert!(!scope.carries(b"tmp:1") && scope.carries(b"push:1"));
        assert!(scope.carries_db(3) && !scope.carries_db(1));
    }
}
