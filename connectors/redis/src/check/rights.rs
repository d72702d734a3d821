//! Which commands our user may not run.

use causeway_core::{Finding, Result};

use crate::conn::Conn;

/// How much a command is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// For the change stream: without it keys are scanned, where the channel goes one way.
    Stream,
    /// A channel cannot run without it.
    Always,
    /// There is another, slower way.
    Faster,
}

/// A command with arguments as it is used; `KEY` stands for the marker's key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Right {
    words: &'static [&'static str],
    need: Need,
    /// What is missing without it.
    without: &'static str,
}

const fn right(words: &'static [&'static str], need: Need, without: &'static str) -> Right {
    Right { words, need, without }
}

const PSYNC: Right = right(&["PSYNC", "?", "-1"], Need::Stream, "");
const REPLCONF: Right = right(&["REPLCONF", "ACK", "0"], Need::Stream, "");
const APPLIES: &str = "changes cannot be applied together with their marker";

static RIGHTS: [Right; 10] = [
    PSYNC,
    REPLCONF,
    right(&["SET", "KEY", "x"], Need::Always, "the marker cannot be written"),
    right(&["GET", "KEY"], Need::Always, "the marker cannot be read"),
    right(&["MULTI"], Need::Always, APPLIES),
    right(&["EXEC"], Need::Always, APPLIES),
    right(&["DUMP", "KEY"], Need::Always, "a key cannot be read again"),
    right(
        &["RESTORE", "KEY", "0", "x"],
        Need::Faster,
        "values are written by their type instead, which is slower",
    ),
    right(&["WATCH", "KEY"], Need::Always, "keys that both sites write cannot be watched"),
    right(
        &["CLIENT", "KILL", "ID", "1"],
        Need::Faster,
        "every transaction is made conditional on the marker instead of ending older appliers, which is slower",
    ),
];

impl Right {
    fn command(&self) -> &'static str {
        self.words.first().copied().unwrap_or_default()
    }
}

/// Asks the server which of [`RIGHTS`] our user lacks, or the server itself. Where it cannot tell (before 7.0)
/// or may not, only the one that may be tried is: REPLCONF, which those without the rights of an
/// administrator lack together with PSYNC.
pub(super) async fn denied(conn: &mut Conn, marker: &str) -> Result<Vec<&'static Right>> {
    let user = conn.call(&[b"ACL", b"WHOAMI"]).await?;
    let Some(user) = user.bytes().cloned() else { return tried(conn).await };
    let mut denied = Vec::new();
    for right in &RIGHTS {
        let mut args = vec![&b"ACL"[..], b"DRYRUN", &user];
        let word = |word: &&'static str| if *word == "KEY" { marker.as_bytes() } else { word.as_bytes() };
        args.extend(right.words.iter().map(word));
        // Not an error reply, but a text that says why: it would be refused.
        let reply = conn.call(&args).await?;
        match reply.error() {
            Some(text) if text.starts_with("ERR Command ") && text.ends_with(" not found") => {
                denied.push(right);
            }
            Some(_) => return tried(conn).await,
            None if reply.is_simple(b"OK") => {}
            None => denied.push(right),
        }
    }
    Ok(denied)
}

async fn tried(conn: &mut Conn) -> Result<Vec<&'static Right>> {
    // Says something of this connection alone, and nothing comes of it.
    let reply = conn.call(&[b"REPLCONF", b"capa", b"eof"]).await?;
    let refused = |text: &str| text.starts_with("NOPERM") || text.starts_with("ERR unknown command");
    let lacks = reply.error().is_some_and(refused);
    Ok(RIGHTS.iter().filter(|right| lacks && **right == REPLCONF).collect())
}

/// What a site's server is to the channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Roles {
    /// Its changes are carried to the peer.
    pub(super) source: bool,
    /// The peer's are applied into it.
    pub(super) target: bool,
}

/// What the lack of rights means. `endpoint`: host:port.
pub(super) fn findings(denied: &[&Right], site: &str, endpoint: &str, roles: Roles) -> Vec<Finding> {
    let finding = |fatal, what, advice: String| Finding { fatal, site: Some(site.to_owned()), what, advice };
    let mut findings = Vec::new();
    let stream: Vec<_> = denied.iter().filter(|r| r.need == Need::Stream).map(|r| r.command()).collect();
    let stream = stream.join(" and ");
    match (stream.is_empty(), roles) {
        (true, _) | (_, Roles { source: false, .. }) => {}
        (false, Roles { target: true, .. }) => findings.push(finding(
            true,
            format!(
                "no right to {stream}: the change stream cannot be read, and without it a channel that goes \
                 both ways would carry the peer's changes back"
            ),
            format!(
                "give the user +psync +replconf at {endpoint} (ACL SETUSER), or let the channel go one way"
            ),
        )),
        (false, Roles { target: false, .. }) => findings.push(finding(
            false,
            format!(
                "no right to {stream}: keys are scanned, and read again at each keyspace event, which is weaker"
            ),
            format!("give the user +psync +replconf at {endpoint} (ACL SETUSER)"),
        )),
    }
    for right in denied.iter().filter(|right| right.need != Need::Stream) {
        findings.push(finding(
            right.need == Need::Always,
            format!("no right to {}: {}", right.command(), right.without),
            "give the user the rights that connectors/redis/README.md lists, with ACL SETUSER".to_owned(),
        ));
    }
    findings
}
