/// A pattern as `KEYS` takes it: `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, `\` before a character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    glob: Vec<u8>,
    /// The glob is a plain prefix and one `*` at the end: the usual case, and a cheap one.
    prefix: Option<usize>,
}

impl Pattern {
    /// Of the form `glob`.
    pub fn new(glob: &str) -> Pattern {
        let glob = glob.as_bytes().to_vec();
        let special = |b: &u8| matches!(b, b'*' | b'?' | b'[' | b'\\');
        let first = glob.iter().position(special);
        let prefix = first.filter(|&i| i + 1 == glob.len() && glob.get(i) == Some(&b'*'));
        Pattern { glob, prefix }
    }

    /// Whether `key` is of that form.
    pub fn matches(&self, key: &[u8]) -> bool {
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
}
