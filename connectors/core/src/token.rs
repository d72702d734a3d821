use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Token;

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

impl Token {
    /// One that this process never gave out before.
    pub fn unique() -> Token {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Token(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// What is written into the store: `<16 hex of this process>:<decimal>`.
    pub fn text(self) -> String {
        format!("{}:{}", nonce(), self.0)
    }

    /// The token, if `text` is one of this process.
    pub fn parse(text: &[u8]) -> Option<Token> {
        let text = std::str::from_utf8(text).ok()?;
        let number = text.strip_prefix(nonce())?.strip_prefix(':')?;
        number.parse().ok().filter(|&n| n > 0).map(Token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_from_its_text_in_this_process_only() {
        let (a, b) = (Token::unique(), Token::unique());
        assert_ne!(a, b);
        assert_eq!(Token::parse(a.text().as_bytes()), Some(a));
        let own = a.text();
        let (of, _) = own.split_once(':').unwrap();
        for text in ["", "7", ":7", "x:7", "0123456789abcdef:1", &format!("{of}:0"), &format!("{of}:x")] {
            assert_eq!(Token::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Token::parse(&[0xff, b':', b'1']), None);
    }
}
