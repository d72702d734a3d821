//! The names of what is ours in a store, and the texts of tokens: the one place that knows them.
//!
//! All begin with `causeway:{LINK.CHANNEL}:`, so that a cluster would keep one channel's together. What
//! begins with [`OURS`] is nobody's data: never captured, copied, compared or counted.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use causeway_core::Token;

/// What every key of ours begins with, whatever the channel.
pub const OURS: &[u8] = b"causeway:{";

/// Whether a key is ours, of this channel or another.
pub fn is_ours(key: &[u8]) -> bool {
    key.starts_with(OURS)
}

/// One channel's names. Marker and token live in database 0, parts beside the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// `causeway:{LINK.CHANNEL}:`.
    pub prefix: Vec<u8>,
    /// Holds the [`Marker`](causeway_core::Marker)'s text.
    pub marker: Vec<u8>,
    /// Holds a token's text.
    pub token: Vec<u8>,
    /// `…:part:`; what follows tells the key whose pieces it holds.
    pub part: Vec<u8>,
}

impl Names {
    /// Those of `channel` of `link`.
    pub fn new(link: &str, channel: &str) -> Names {
        let prefix = format!("causeway:{{{link}.{channel}}}:").into_bytes();
        let with = |end: &str| [prefix.as_slice(), end.as_bytes()].concat();
        Names { marker: with("marker"), token: with("token"), part: with("part:"), prefix }
    }
}

/// Tells this process's tokens from an earlier one's that are still in the stream.
fn nonce() -> &'static str {
    static NONCE: OnceLock<String> = OnceLock::new();
    NONCE.get_or_init(|| {
        // RandomState is seeded by the system; the rest is for one whose randomness is poor at boot.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let drawn = RandomState::new().hash_one((std::process::id(), now.as_nanos()));
        format!("{drawn:016x}")
    })
}

/// A token that this process never gave out before.
pub fn next_token() -> Token {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Token(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What is written into the token key: `<16 hex of this process>:<decimal>`.
pub fn token_text(token: Token) -> String {
    format!("{}:{}", nonce(), token.0)
}

/// The token, if `text` is one of this process.
pub fn parse_token(text: &[u8]) -> Option<Token> {
    let text = std::str::from_utf8(text).ok()?;
    let number = text.strip_prefix(nonce())?.strip_prefix(':')?;
    number.parse().ok().filter(|&n| n > 0).map(Token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_from_its_text_in_this_process_only() {
        let (a, b) = (next_token(), next_token());
        assert_ne!(a, b);
        assert_eq!(parse_token(token_text(a).as_bytes()), Some(a));
        let own = token_text(a);
        let (of, _) = own.split_once(':').unwrap();
        for text in ["", "7", ":7", "x:7", "0123456789abcdef:1", &format!("{of}:0"), &format!("{of}:x")] {
            assert_eq!(parse_token(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_token(&[0xff, b':', b'1']), None);
    }

    #[test]
    fn names_are_the_documented_ones() {
        let names = Names::new("dc-cloud", "tags");
        assert_eq!(names.marker, b"causeway:{dc-cloud.tags}:marker");
        assert_eq!(names.token, b"causeway:{dc-cloud.tags}:token");
        assert_eq!(names.part, b"causeway:{dc-cloud.tags}:part:");
        assert!(is_ours(&names.marker) && !is_ours(b"causeway:x"));
    }
}
