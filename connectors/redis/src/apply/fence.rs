//! The start of a reign: finds the master, ends every older connection's hold, and reads the marker.
//!
//! In this order: name ourselves, list the connections, end the others of our name, look again, read the
//! marker. What an ended connection had sent and the server had not begun is never executed. Where we have
//! no right to end connections, each transaction is made conditional instead: see [`claim`].

use bytes::{Bytes, BytesMut};
use causeway_core::{Error, Marker, Outcome, Result, Term};

use super::answer::is_transient;
use super::{Guard, Link};
use crate::conn::{Conn, server_error, unavailable};
use crate::resp::{Reply, decimal, encode};

/// How often the list is looked at again before somebody is taken to reconnect all the time.
const ROUNDS_MAX: usize = 10;

/// The name that an applying connection gives itself, by which a newer one finds and ends it.
///
/// A name has no spaces, no line ends, and nothing outside of printable ASCII: such become `_`.
pub(super) fn connection_name(link: &str, channel: &str) -> String {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    format!("causeway:{{{link}.{channel}}}:apply").chars().map(printable).collect()
}

/// Makes sure that the server takes writes, and transactions at all.
///
/// # Errors
///
/// `Setup`: it is a replica, or MULTI is not allowed: then each command would take effect by itself.
pub(super) async fn require_master(conn: &mut Conn) -> Result<()> {
    let role = conn.call(&[b"ROLE"]).await?;
    let label = conn.endpoint_label().to_owned();
    // Without the right to ask, the first write tells.
    let word = role.items().and_then(|items| items.first()).and_then(Reply::bytes);
    if word.is_some_and(|word| word != "master") {
        return Err(Error::Setup {
            action: "apply".to_owned(),
            endpoint: label,
            reason: "this server is a read-only replica".to_owned(),
            advice: "name its master, or list all of them in `urls`".to_owned(),
        });
    }
    for command in [&b"MULTI"[..], b"EXEC"] {
        let reply = conn.call(&[command]).await?;
        if let Some(text) = reply.error() {
            return Err(server_error(&String::from_utf8_lossy(command), &label, text));
        }
    }
    Ok(())
}

/// Ends all other connections of `name`, and names this one so. Returns whether it had the right to.
///
/// # Errors
///
/// `Retry`: others of the name keep coming.
pub(super) async fn end_others(conn: &mut Conn, name: &str) -> Result<bool> {
    let Some(_) = allowed(conn, &[b"CLIENT", b"SETNAME", name.as_bytes()]).await? else { return Ok(false) };
    let Some(own) = allowed(conn, &[b"CLIENT", b"ID"]).await? else { return Ok(false) };
    let own = own.int().unwrap_or(0);
    // The right to end others has to be known before there are any: a connection that never comes to exist.
    let nobody = [&b"CLIENT"[..], b"KILL", b"ID", &decimal(i64::MAX)];
    if allowed(conn, &nobody).await?.is_none() {
        return Ok(false);
    }
    for _ in 0..ROUNDS_MAX {
        let Some(list) = allowed(conn, &[b"CLIENT", b"LIST"]).await? else { return Ok(false) };
        let list = list.bytes().cloned().unwrap_or_default();
        let others: Vec<i64> = named(&list, name).filter(|id| *id != own).collect();
        if others.is_empty() {
            return Ok(true);
        }
        for id in others {
            // One that has gone meanwhile is an error to the server, and none to us: the list tells.
            let kill = [&b"CLIENT"[..], b"KILL", b"ID", &decimal(id)];
            if allowed(conn, &kill).await?.is_none() {
                return Ok(false);
            }
        }
    }
    let reason =
        format!("connections of the name {name} keep coming: does another daemon apply this channel?");
    Err(unavailable("take over", conn.endpoint_label(), reason))
}

/// The ids in a list of connections of those whose name is `name`.
fn named<'a>(list: &'a [u8], name: &'a str) -> impl Iterator<Item = i64> + 'a {
    list.split(|&b| b == b'\n').filter_map(move |line| {
        let mut id = None;
        let mut is = false;
        for word in line.split(|&b| b == b' ') {
            if let Some(text) = word.strip_prefix(b"id=") {
                id = std::str::from_utf8(text).ok()?.parse().ok();
            } else if let Some(text) = word.strip_prefix(b"name=") {
                is = text == name.as_bytes();
            }
        }
        id.filter(|_| is)
    })
}

/// A reply, or `None` if we have no right to the command (or the server has none of it).
async fn allowed(conn: &mut Conn, args: &[&[u8]]) -> Result<Option<Reply>> {
    let reply = conn.call(args).await?;
    match reply.error() {
        Some(text) if is_transient(text) => {
            Err(unavailable("take over", conn.endpoint_label(), text.to_owned()))
        }
        Some(text) if text.starts_with("NOPERM") || text.contains("unknown") => Ok(None),
        _ => Ok(Some(reply)),
    }
}

/// The marker, and its text.
///
/// # Errors
///
/// `Setup`: something else has its name.
pub(super) async fn read_marker(conn: &mut Conn, key: &[u8]) -> Result<(Option<Marker>, Option<Bytes>)> {
    let reply = conn.call(&[b"GET", key]).await?;
    let strange = |reason: String| Error::Setup {
        action: "read the marker".to_owned(),
        endpoint: conn.endpoint_label().to_owned(),
        reason,
        advice: format!(
            "if nothing is to be kept, take it away with `syncd cleanup`, or DEL {}",
            String::from_utf8_lossy(key)
        ),
    };
    match reply {
        Reply::Bulk(None) => Ok((None, None)),
        Reply::Bulk(Some(text)) => match std::str::from_utf8(&text).ok().and_then(|t| t.parse().ok()) {
            Some(marker) => Ok((Some(marker), Some(text))),
            None => Err(strange("what stands in its key is no marker of this version".to_owned())),
        },
        Reply::Error(text) if text.starts_with("WRONGTYPE") => {
            Err(strange("its key holds another type".to_owned()))
        }
        Reply::Error(text) => Err(server_error("read the marker", conn.endpoint_label(), &text)),
        _ => Err(strange("the server's answer is no string".to_owned())),
    }
}

/// # Errors
///
/// `Fenced`: the marker is of a later term than ours.
pub(super) fn require_newest(conn: &Conn, marker: Option<&Marker>, term: Term) -> Result<()> {
    match marker {
        Some(marker) if marker.term > term => Err(Error::Fenced {
            endpoint: conn.endpoint_label().to_owned(),
            reason: format!(
                "its marker is of term {}, ours is {}; if the log was made anew, run `syncd cleanup` first",
                marker.term.0, term.0
            ),
        }),
        _ => Ok(()),
    }
}

/// Writes the marker again with our `term`, so that a transaction on condition of the old one fails.
/// Returns its text.
///
/// It says that it holds no change, so that the site's own capture takes nothing from it twice.
///
/// # Errors
///
/// `Retry`: somebody else wrote it in between.
pub(super) async fn claim(
    conn: &mut Conn,
    key: &[u8],
    found: Option<&Marker>,
    text: Option<Bytes>,
    term: Term,
) -> Result<Bytes> {
    let mut marker = found.cloned().unwrap_or_default();
    marker.term = term;
    marker.from = marker.applied;
    marker.dropped.clear();
    let new = Bytes::from(marker.to_string());
    let label = conn.endpoint_label().to_owned();
    let reply = conn.call(&[b"WATCH", key]).await?;
    if let Some(error) = reply.error() {
        return Err(server_error("WATCH", &label, error));
    }
    let (_, now) = read_marker(conn, key).await?;
    if now != text {
        return Err(unavailable("take over", &label, "an older applier has just written; once more"));
    }
    let mut out = BytesMut::new();
    encode(&mut out, &[b"MULTI"]);
    encode(&mut out, &[b"SET", key, &new]);
    encode(&mut out, &[b"EXEC"]);
    conn.send(&out).await?;
    let (_, queued, done) = (conn.reply().await?, conn.reply().await?, conn.reply().await?);
    match (queued.error(), done) {
        (Some(text), _) => Err(server_error("take over", &label, text)),
        (None, Reply::Array(Some(_))) => Ok(new),
        (None, Reply::Error(text)) => Err(server_error("take over", &label, &text)),
        (None, _) => Err(unavailable("take over", &label, "an older applier has just written; once more")),
    }
}

impl Link {
    /// Makes the next transaction conditional on the marker being ours still. Nothing may be under way.
    ///
    /// # Errors
    ///
    /// `Fenced`: it is not. `Retry`: it is gone.
    pub(super) async fn watch_marker(&mut self, key: &[u8]) -> Result<()> {
        self.command(&[b"WATCH", key]).await?;
        self.require_own_marker(key).await
    }

    async fn require_own_marker(&mut self, key: &[u8]) -> Result<()> {
        let now = self.command(&[b"GET", key]).await?.bytes().cloned();
        let endpoint = self.reader.endpoint_label();
        match (&self.guarded, now) {
            (Some(guard), Some(now)) if guard.marker == now => Ok(()),
            (Some(_), Some(_)) => Err(Error::Fenced {
                endpoint: endpoint.to_owned(),
                reason: "the marker was written by another one".to_owned(),
            }),
            (Some(_), None) => {
                Err(unavailable("apply changes", endpoint, "the marker is gone: was the server flushed?"))
            }
            (None, _) => Ok(()),
        }
    }

    /// Takes note of what became of a conditional transaction that wrote `marker`.
    pub(super) async fn settle_guard(&mut self, key: &[u8], marker: Bytes) -> Result<()> {
        match self.ready.back().map(|(outcome, _)| outcome) {
            Some(Outcome::Committed { .. }) => {
                self.guarded = Some(Guard { marker });
                Ok(())
            }
            // Which condition was it?
            Some(Outcome::Touched) => self.require_own_marker(key).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_of_our_name_are_found_in_a_list_and_no_more() {
        let list = b"id=3 addr=127.0.0.1:1 laddr=x fd=8 name=causeway:{a.b}:apply age=0 db=0\n\
                     id=4 addr=y name=causeway:{a.bc}:apply db=0\n\
                     id=5 addr=z name= db=0\n\
                     id=17 addr=z name=causeway:{a.b}:apply db=3 user=default\n\n";
        let ids: Vec<i64> = named(list, "causeway:{a.b}:apply").collect();
        assert_eq!(ids, [3, 17]);
        assert_eq!(named(b"", "x").count(), 0);
    }

    #[test]
    fn a_connection_name_is_one_that_redis_takes() {
        assert_eq!(connection_name("a", "b c\u{e9}"), "causeway:{a.b_c_}:apply");
    }
}
