use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

/// A change's number in its partition of the change log: gapless, from 0, given by capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub u64);

impl Seq {
    /// The one after this.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which reign of a partition's capture or applier: the place of its own `fence` record in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term(pub u64);

/// A mark written into a store to find, in its own stream, the moment of a read. Never 0; unique within a
/// process's life, and told apart from an earlier process's by the connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// A place in a store's change stream. Only `at` of one `history` compare; what else is needed to resume
/// there is the connector's own affair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// What numbers the stream: Redis's replication id, MySQL's server uuid. Printable, without spaces.
    pub history: Bytes,
    /// Grows along the stream. Everything before `at` is at or before this position.
    pub at: u64,
    /// What a resume needs besides, such as the selected database. Printable, without spaces.
    pub context: Bytes,
}

/// `history@at`, or `history@at/context`: the form of the header `pos`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", String::from_utf8_lossy(&self.history), self.at)?;
        if !self.context.is_empty() {
            write!(f, "/{}", String::from_utf8_lossy(&self.context))?;
        }
        Ok(())
    }
}

/// Reads what [`Display`](fmt::Display) wrote; `Err` holds the text that is no position.
impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (history, rest) = text.split_once('@')?;
            let (at, context) = rest.split_once('/').unwrap_or((rest, ""));
            Some(Position {
                history: Bytes::copy_from_slice(history.as_bytes()),
                at: at.parse().ok()?,
                context: Bytes::copy_from_slice(context.as_bytes()),
            })
        };
        parse().ok_or_else(|| text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_from_its_text() {
        for text in ["8f3a@17/0", "8f3a@17", "@0", "uuid@18446744073709551615/a/b"] {
            assert_eq!(text.parse::<Position>().unwrap().to_string(), text);
        }
        assert_eq!("8f3a".parse::<Position>(), Err("8f3a".to_owned()));
    }
}
