//! What the replies to a transaction mean.

use bytes::{Buf, BytesMut};
use causeway_core::{Error, Outcome, Refused, Result};

use super::encode::{Expect, Expected, Hidden, PIECES_GONE};
use crate::conn::{server_error, unavailable};
use crate::resp::Reply;

const QUEUED: &[u8] = b"+QUEUED\r\n";
/// The longest text of a server's that goes into a reason.
const TEXT_MAX: usize = 200;

/// What a reply brought.
#[derive(Debug)]
pub(super) enum Answer {
    /// More has to come.
    More,
    /// That was the last one.
    Outcome(Outcome),
}

/// Takes in the replies of one transaction: one for MULTI, one for each command, one for EXEC.
#[derive(Debug)]
pub(super) struct Collector {
    expected: Expected,
    action: String,
    /// It was sent on a condition: nil is an answer to EXEC.
    conditional: bool,
    /// Replies that came before that of EXEC.
    seen: usize,
    /// Of commands that were not queued: whether it was one of ours, and what the server said. The first,
    /// or the first that says that the server cannot serve just now.
    not_queued: Option<(bool, String)>,
}

impl Collector {
    pub(super) fn new(expected: Expected, action: String, conditional: bool) -> Collector {
        Collector { expected, action, conditional, seen: 0, not_queued: None }
    }

    /// After the answer: takes values of which a piece was refused into `broken`, and those out that were
    /// deleted by this transaction.
    pub(super) fn settle_broken(&self, outcome: &Outcome, broken: &mut Vec<Hidden>) {
        let Outcome::Committed { refused, .. } = outcome else { return };
        broken.retain(|hidden| !self.expected.deleted.contains(hidden));
        for (index, hidden) in &self.expected.pieces {
            if refused.iter().any(|r| r.index == *index as usize) && !broken.contains(hidden) {
                broken.push(hidden.clone());
            }
        }
    }

    /// What is being done, for messages.
    pub(super) fn action(&self) -> &str {
        &self.action
    }

    /// Takes the usual reply to a queued command off the front of `buf` as often as it is there, which is
    /// cheaper than to parse it. Returns whether it was.
    pub(super) fn skip_queued(&mut self, buf: &mut BytesMut) -> bool {
        let before = self.seen;
        // The first one is MULTI's.
        while self.seen > 0 && self.seen <= self.expected.replies.len() && buf.starts_with(QUEUED) {
            buf.advance(QUEUED.len());
            self.seen += 1;
        }
        self.seen > before
    }

    /// Takes the next reply.
    ///
    /// # Errors
    ///
    /// It is one that no transaction of ours gets, or says that this server is the wrong one.
    pub(super) fn take(&mut self, reply: Reply, endpoint: &str) -> Result<Answer> {
        if self.seen <= self.expected.replies.len() {
            if let Some(text) = reply.error() {
                if self.seen == 0 {
                    return Err(server_error("MULTI", endpoint, text));
                }
                let own = self.expected.replies.get(self.seen - 1).is_some_and(|e| e.1 == Expect::Own);
                let said = self.not_queued.as_ref().map(|(_, text)| is_transient(text));
                if said.is_none() || (said == Some(false) && is_transient(text)) {
                    self.not_queued = Some((own, text.to_owned()));
                }
            }
            self.seen += 1;
            return Ok(Answer::More);
        }
        let answer = match reply {
            Reply::Array(Some(items)) if items.len() == self.expected.replies.len() => {
                self.committed(&items, endpoint)?
            }
            Reply::Array(None) | Reply::Bulk(None) if self.conditional => Outcome::Touched,
            Reply::Error(text) => self.rejected(&text, endpoint)?,
            _ => {
                return Err(Error::Garbled {
                    endpoint: endpoint.to_owned(),
                    what: "reply to EXEC",
                    at: 0,
                    reason: format!("{} replies were expected", self.expected.replies.len()),
                });
            }
        };
        Ok(Answer::Outcome(answer))
    }

    fn committed(&mut self, items: &[Reply], endpoint: &str) -> Result<Outcome> {
        let mut refused = std::mem::take(&mut self.expected.refused);
        let mut existing = Vec::new();
        let here = refused.len();
        for (reply, &(index, expect)) in items.iter().zip(&self.expected.replies) {
            // What goes well in most places, first.
            if reply.error().is_none() && !matches!(expect, Expect::RenamedIfAbsent | Expect::Begun) {
                continue;
            }
            let index = index as usize;
            let error = reply.error();
            let reason = match (expect, error) {
                (Expect::Own, Some(text)) => return Err(server_error(&self.action, endpoint, text)),
                (Expect::IfAbsent, Some(text)) if text.starts_with("BUSYKEY") => None,
                (Expect::FunctionIfAbsent, Some(text)) if text.contains("already exists") => None,
                (Expect::RenamedIfAbsent | Expect::RenamedIfThere, Some(text))
                    if text.contains("no such key") =>
                {
                    continue;
                }
                (Expect::RenamedIfAbsent, None) if *reply == Reply::Int(0) => None,
                // -1: the progress is of another piece; 0: there is none.
                (Expect::Begun, None) if reply.int().is_none_or(|length| length < 1) => {
                    Some(PIECES_GONE.to_owned())
                }
                (_, None) => continue,
                (_, Some(text)) => Some(shown(text)),
            };
            match reason {
                None => existing.push(index),
                // Of a change of several commands the first refusal is the cause of the others.
                Some(reason) if refused.get(here..).is_some_and(|r| r.iter().all(|r| r.index != index)) => {
                    refused.push(Refused { index, reason });
                }
                Some(_) => {}
            }
        }
        refused.sort_by_key(|r| r.index);
        Ok(Outcome::Committed { refused, existing })
    }

    fn rejected(&mut self, text: &str, endpoint: &str) -> Result<Outcome> {
        // The server's own words stand behind this where EXEC itself met the obstacle.
        let text = text.strip_prefix("EXECABORT Transaction discarded because of: ").unwrap_or(text);
        let (own, text) = self.not_queued.take().unwrap_or_else(|| (false, text.to_owned()));
        if is_transient(&text) {
            return Ok(Outcome::Rejected { transient: true, reason: shown(&text) });
        }
        match code(&text) {
            // Another server is the master now: to find it, the connection has to be made anew.
            "READONLY" => Err(unavailable(&self.action, endpoint, shown(&text))),
            "NOAUTH" | "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" => {
                Err(server_error(&self.action, endpoint, &text))
            }
            // Without its marker no transaction can be: no change is to blame.
            _ if own => Err(server_error(&self.action, endpoint, &text)),
            _ => Ok(Outcome::Rejected { transient: false, reason: shown(&text) }),
        }
    }
}

fn code(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// Whether an error says that the server cannot serve just now, whatever is asked of it.
pub(super) fn is_transient(text: &str) -> bool {
    matches!(
        code(text),
        "OOM" | "MISCONF" | "NOREPLICAS" | "LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN" | "IOERR"
    )
}

/// A server's error without what it quotes of a command, which can be a value.
pub(super) fn shown(text: &str) -> String {
    let text = text.split(", with args beginning with").next().unwrap_or_default();
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests;
