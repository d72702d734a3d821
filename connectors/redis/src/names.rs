//! The names of what is ours in a store: the one place that knows them.
//!
//! All begin with `causeway:{LINK.CHANNEL}:`, so that a cluster would keep one channel's together. What
//! begins with [`OURS`] is nobody's data: never captured, copied, compared or counted.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_documented_ones() {
        let names = Names::new("dc-cloud", "tags");
        assert_eq!(names.marker, b"causeway:{dc-cloud.tags}:marker");
        assert_eq!(names.token, b"causeway:{dc-cloud.tags}:token");
        assert_eq!(names.part, b"causeway:{dc-cloud.tags}:part:");
        assert!(is_ours(&names.marker) && !is_ours(b"causeway:x"));
    }
}
