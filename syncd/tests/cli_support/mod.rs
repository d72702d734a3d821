//! An engine that only pretends, and a way to run the built program.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use causeway_core::{Key, Space};
use syncd::api;
use syncd::status::{
    By, ChannelState, ChannelStatus, ConflictEntry, ConflictPage, ConflictQuery, ConflictSide, Control,
    ControlError, DeadLetter, DeadLetterPage, DeadLetterQuery, DirectionStatus, HandOver, HandedOver,
    HeldAnswer, KeyAt, KeyText, Lag, LineError, NotHandedOver, Phase, Progress, Resolution, Status, Whose,
    WrittenLine, rfc3339,
};
use tokio::sync::mpsc;

/// One channel `tags`, which holds a FLUSHALL; writes down what it is asked.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Fake {
    fn known(&self, asked: String, channel: Option<&str>) -> Result<(), ControlError> {
        self.asked.lock().unwrap().push(format!("{asked} {}", channel.unwrap_or("*")));
        match channel {
            None | Some("tags") => Ok(()),
            Some(other) => {
                Err(ControlError::NoSuchChannel { channel: other.to_owned(), known: vec!["tags".to_owned()] })
            }
        }
    }
}

#[async_trait]
impl Control for Fake {
    fn status(&self) -> Status {
        let direction = DirectionStatus {
            from: "dc".into(),
            to: "cloud".into(),
            phase: Phase::Snapshot,
            snapshot: Progress { done: 5, total: Some(10) },
            snapshot_first: Some(1),
            lag: Lag { changes: Some(5), seconds: Some(0.5) },
            applied: 5,
            conflicts: 7,
            dead_letters: 1,
            gaps: 0,
            left_out: 0,
            captured_per_second: 2.0,
            applied_per_second: 1.0,
            held: Some("FLUSHALL at dc".into()),
            error: None,
            warning: Some("dc: SCAN mode".into()),
            intake: None,
        };
        let channel = ChannelStatus {
            name: "tags".into(),
            store: "redis".into(),
            state: ChannelState::Running,
            directions: vec![direction],
            member: None,
        };
        let since = "2026-03-01T02:00:00.000Z".into();
        let sites = vec!["dc".into(), "cloud".into()];
        Status { link: "l".into(), sites, since, channels: vec![channel], consumer_group: None }
    }

    async fn pause(&self, channel: Option<&str>) -> Result<(), ControlError> {
        self.known("pause".to_owned(), channel)
    }

    async fn resume(&self, channel: Option<&str>, held: Option<HeldAnswer>) -> Result<(), ControlError> {
        self.known(format!("resume {held:?}"), channel)?;
        match held {
            Some(_) => Ok(()),
            None => Err(ControlError::Refused("a FLUSHALL is held; say --held apply or --held drop".into())),
        }
    }

    async fn snapshot(&self, channel: &str) -> Result<(), ControlError> {
        self.known("snapshot".to_owned(), Some(channel))?;
        Err(ControlError::Failed("the log is full".into()))
    }

    /// Three of them, 7 to 9, in pages of two at the most.
    fn dead_letters(&self, query: &DeadLetterQuery) -> DeadLetterPage {
        let DeadLetterQuery { channel, before, limit } = query;
        self.asked.lock().unwrap().push(format!("dead_letters {channel:?} {before:?} {limit}"));
        let ids = (7..before.unwrap_or(10)).rev();
        let dead_letters: Vec<_> = ids.take((*limit).min(2)).map(dead_letter).collect();
        let next = dead_letters.last().map(|last| last.id).filter(|last| *last > 7);
        DeadLetterPage { dead_letters, next }
    }

    async fn acknowledge(&self, channel: Option<&str>, id: Option<u64>) -> Result<u64, ControlError> {
        self.known(format!("acknowledge {id:?}"), channel)?;
        match id {
            None => Ok(3),
            Some(7..=9) => Ok(1),
            Some(id) => Err(ControlError::NoSuchDeadLetter { id }),
        }
    }

    async fn hand_over(&self, channel: &str, request: HandOver) -> Result<HandedOver, NotHandedOver> {
        let HandOver { site, key, body } = request;
        self.known(format!("hand_over {site:?} {key:?} {}", body.len()), Some(channel))?;
        match &body[..] {
            b"wrong" => Err(NotHandedOver::Wrong("no line".into())),
            b"lines" => Err(NotHandedOver::Lines(vec![LineError { line: 3, error: "no id".into() }])),
            b"other" => Err(NotHandedOver::OtherBody("another body".into())),
            b"full" => Err(NotHandedOver::Full("the log is full".into())),
            b"later" => Err(NotHandedOver::NotNow("not reached".into())),
            _ => Ok(HandedOver { accepted: 2, repeated: 1 }),
        }
    }

    fn intake_bytes(&self) -> usize {
        1_000
    }

    async fn repair(&self, channel: &str, from: &str, keys: Vec<Key>) -> Result<u64, ControlError> {
        self.known(format!("repair {from} {keys:?}"), Some(channel))?;
        Ok(keys.len() as u64)
    }

    async fn written(
        &self,
        channel: &str,
        window: Range<u64>,
    ) -> Result<mpsc::Receiver<Vec<WrittenLine>>, ControlError> {
        self.known(format!("written {window:?}"), Some(channel))?;
        let (lines, told) = mpsc::channel(3);
        let at = |name: &'static [u8]| KeyAt::of(&Key { space: Space::Db(0), name: name.into() });
        let key = |site: &str, name| WrittenLine::Key { site: site.into(), at: at(name) };
        let end = ["dc", "cloud"].map(|site| (site.to_owned(), Some("2026-03-01T03:00:00.000Z".to_owned())));
        for some in [
            vec![key("dc", b"a"), key("dc", b"\xff")],
            vec![key("cloud", b"a"), WrittenLine::Whole { site: "cloud".into(), whole: true, table: None }],
            vec![WrittenLine::End { end: end.into() }],
        ] {
            lines.try_send(some).unwrap();
        }
        Ok(told)
    }

    async fn whose(&self, channel: &str, by: By, keys: Vec<Key>) -> Result<Whose, ControlError> {
        self.known(format!("whose {by:?} {keys:?}"), Some(channel))?;
        Ok(Whose { whose: keys.iter().map(|key| (key.name != "a").then(|| "dc".to_owned())).collect() })
    }

    /// Ten of them, 1 to 10, in pages of four at the most.
    fn conflicts(&self, query: &ConflictQuery) -> Result<ConflictPage, ControlError> {
        let ConflictQuery { channel, key, since, before, limit } = query;
        let since = since.map(rfc3339);
        self.asked
            .lock()
            .unwrap()
            .push(format!("conflicts {channel:?} {key:?} {since:?} {before:?} {limit}"));
        let ids = (1..before.unwrap_or(11)).rev();
        let conflicts: Vec<_> = ids.take((*limit).min(4)).map(conflict).collect();
        let next = conflicts.last().map(|last| last.id).filter(|last| *last > 1);
        Ok(ConflictPage { conflicts, next, left_out: 3, damaged: 0 })
    }

    fn conflict(&self, id: u64) -> Result<Option<ConflictEntry>, ControlError> {
        Ok((1..=10).contains(&id).then(|| conflict(id)))
    }

    fn ready(&self) -> bool {
        false
    }

    fn metrics(&self) -> String {
        "causeway_gaps_total 0\n".to_owned()
    }
}

fn dead_letter(id: u64) -> DeadLetter {
    DeadLetter {
        id,
        channel: "tags".into(),
        from: "dc".into(),
        to: "cloud".into(),
        seq: 4_711,
        op: "command".into(),
        at: KeyAt::of(&Key { space: Space::Db(3), name: b"push:\xff"[..].into() }),
        reason: "WRONGTYPE Operation against a key holding the wrong kind of value".into(),
        time: "2026-03-01T02:00:00.000Z".into(),
    }
}

fn conflict(id: u64) -> ConflictEntry {
    let side = |site: &str, op: &str, digest: Option<&str>| ConflictSide {
        site: site.into(),
        seq: 100 + id,
        hlc: "3717123456789012992".into(),
        op: op.into(),
        time: "2026-03-01T02:00:00.000Z".into(),
        digest: digest.map(str::to_owned),
        bytes: digest.map_or(0, |_| 12),
        value: None,
    };
    ConflictEntry {
        id,
        time: "2026-03-01T02:00:01.250Z".into(),
        channel: "tags".into(),
        from: "dc".into(),
        to: "cloud".into(),
        key: KeyText::from(&b"push:\xff"[..]),
        db: Some(3),
        element: None,
        resolution: Resolution::Kept,
        winner: Some("cloud".into()),
        uncertain: false,
        sides: [
            side("dc", "delete", None),
            side("cloud", "command", Some("0123456789abcdef0123456789abcdef")),
        ],
    }
}

/// Serves `fake` on a free port until the runtime ends.
pub(crate) async fn serve(fake: Arc<Fake>) -> SocketAddr {
    let listener = api::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(api::serve(listener, fake, std::future::pending()));
    address
}

/// A good file in `folder` for two servers on ports that nobody listens at.
pub(crate) fn config(folder: &Path) {
    let text = "[link]\nname = \"l\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"tags\"\nstore = \"redis\"\n\
                direction = \"both\"\nsnapshot = \"dc\"\ndc = { url = \"redis://127.0.0.1:1\" }\n\
                cloud = { url = \"redis://127.0.0.1:2\" }\n";
    std::fs::write(folder.join("syncd.toml"), text).unwrap();
}

/// `syncd`, with `folder` as its working directory.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
    command.current_dir(folder).args(args).env_remove("SYNCD_CONFIG").env_remove("RUST_LOG");
    command
}

/// Its exit code, stdout and stderr.
pub(crate) fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(folder, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// Asks this machine, whatever proxy is set.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}
