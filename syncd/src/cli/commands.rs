//! The commands that ask a running daemon.

use std::time::Duration;

use super::args::Common;
use super::client::Client;
use super::table::{Align, Table, Tone, thousands};
use super::{Failure, output, progress};
use crate::config::Config;
use crate::status::{ChannelState, DirectionStatus, GroupStatus, HeldAnswer, IntakeStatus, Phase, Status};

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn status(common: &Common, config: &Config, watch: bool) -> Result<(), Failure> {
    let client = Client::new(common.address(config))?;
    loop {
        let status = only(client.get("/v1/status", &[]).await?, common);
        if watch && output::colour() && !common.json {
            // Home and clear: the table stays in its place.
            print!("\x1b[H\x1b[2J");
        }
        show(&status, common)?;
        if !watch {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

pub(super) async fn pause(common: &Common, config: &Config) -> Result<(), Failure> {
    act(common, config, "pause", &[]).await
}

pub(super) async fn resume(
    common: &Common,
    config: &Config,
    held: Option<HeldAnswer>,
) -> Result<(), Failure> {
    match held {
        None => act(common, config, "resume", &[]).await,
        Some(HeldAnswer::Apply) => act(common, config, "resume", &[("held", "apply")]).await,
        Some(HeldAnswer::Drop) => act(common, config, "resume", &[("held", "drop")]).await,
    }
}

pub(super) async fn snapshot(common: &Common, config: &Config) -> Result<(), Failure> {
    if common.channel.is_none() {
        return Err(Failure::Usage("`syncd snapshot` needs --channel NAME".to_owned()));
    }
    act(common, config, "snapshot", &[]).await
}

async fn act(common: &Common, config: &Config, verb: &str, query: &[(&str, &str)]) -> Result<(), Failure> {
    let path = match &common.channel {
        Some(channel) => format!("/v1/channels/{channel}/{verb}"),
        None => format!("/v1/{verb}"),
    };
    let status: Status = Client::new(common.address(config))?.post(&path, query).await?;
    show(&only(status, common), common)
}

pub(super) fn only(mut status: Status, common: &Common) -> Status {
    if let Some(name) = &common.channel {
        status.channels.retain(|channel| channel.name == *name);
    }
    status
}

fn show(status: &Status, common: &Common) -> Result<(), Failure> {
    if common.json { output::json(status) } else { output::line(&render(status, output::colour())) }
}

fn render(status: &Status, colour: bool) -> String {
    let mut table = Table::new(&[
        ("CHANNEL", Align::Left),
        ("DIRECTION", Align::Left),
        ("PHASE", Align::Left),
        ("LAG", Align::Right),
        ("SECONDS", Align::Right),
        ("APPLIED", Align::Right),
        ("PER S", Align::Right),
        ("CONFLICTS", Align::Right),
        ("DEAD", Align::Right),
        ("GAPS", Align::Right),
    ]);
    for channel in &status.channels {
        for (i, d) in channel.directions.iter().enumerate() {
            let tone = match d.phase {
                Phase::Streaming => Tone::Good,
                Phase::Starting | Phase::Snapshot => Tone::Busy,
                Phase::Paused => Tone::Plain,
                Phase::Gap | Phase::Failed => Tone::Bad,
            };
            let alarm = |count: u64| if count > 0 { Tone::Bad } else { Tone::Plain };
            let name = if i == 0 { channel.name.clone() } else { String::new() };
            let unknown = || "?".to_owned();
            table.row(vec![
                (name, Tone::Plain),
                (format!("{}->{}", d.from, d.to), Tone::Plain),
                (d.phase.as_str().to_owned(), tone),
                (d.lag.changes.map_or_else(unknown, thousands), Tone::Plain),
                (d.lag.seconds.map_or_else(unknown, |seconds| format!("{seconds:.2}")), Tone::Plain),
                (thousands(d.applied), Tone::Plain),
                (thousands(d.applied_per_second as u64), Tone::Plain),
                (thousands(d.conflicts), Tone::Plain),
                (thousands(d.dead_letters), alarm(d.dead_letters)),
                (thousands(d.gaps), alarm(d.gaps)),
            ]);
            if d.phase == Phase::Snapshot {
                table.note(progress::snapshot_text(d), Tone::Busy);
            }
            if let Some(intake) = &d.intake {
                table.note(intake_text(intake, d), if intake.past > 0 { Tone::Bad } else { Tone::Plain });
            }
            if d.left_out > 0 {
                let note = format!(
                    "left out: {} keys or commands that cannot be carried; the log names them",
                    thousands(d.left_out)
                );
                table.note(note, Tone::Bad);
            }
            if let Some(held) = &d.held {
                let note = format!(
                    "held: {held}; answer with `syncd resume --channel {} --held apply|drop`",
                    channel.name
                );
                table.note(note, Tone::Bad);
            }
            if let Some(error) = &d.error {
                table.note(format!("error: {error}"), Tone::Bad);
            }
            if let Some(warning) = &d.warning {
                table.note(format!("warning: {warning}"), Tone::Busy);
            }
        }
        if channel.directions.is_empty() {
            let served = match &channel.member {
                Some(member) => format!("served by the daemon {member}: ask that one"),
                None => "served by no daemon of this site just now".to_owned(),
            };
            let tone = if channel.member.is_some() { Tone::Faint } else { Tone::Bad };
            table.row(vec![(channel.name.clone(), Tone::Plain)]);
            table.note(served, tone);
        } else if channel.state == ChannelState::Paused {
            table.note(format!("paused; go on with `syncd resume --channel {}`", channel.name), Tone::Plain);
        }
    }
    let sites = status.sites.join(" <-> ");
    let group = status.consumer_group.as_ref().map(|group| format!("\n{}", render_group(group, colour)));
    format!(
        "link {}: {sites}, counted since {}\n{}{}",
        status.link,
        status.since,
        table.render(colour),
        group.unwrap_or_default()
    )
}

fn intake_text(intake: &IntakeStatus, d: &DirectionStatus) -> String {
    let mut text = format!("intake: {} wait for the store at {}", thousands(intake.waiting), d.from);
    if let Some(messages) = intake.in_topic {
        text += &format!(", {} messages in the topic", thousands(messages));
    }
    if intake.past > 0 {
        text += &format!("; {} were written past it and are at {} alone", thousands(intake.past), d.from);
    }
    text
}

fn render_group(group: &GroupStatus, colour: bool) -> String {
    let mut table = Table::new(&[("DAEMON", Align::Left), ("FROM", Align::Left), ("CHANNELS", Align::Right)]);
    for member in &group.members {
        let here = if member.here { " (this one)" } else { "" };
        table.row(vec![
            (format!("{}{here}", member.name), Tone::Plain),
            (member.host.clone(), Tone::Plain),
            (thousands(member.channels.len() as u64), Tone::Plain),
        ]);
        let serves = member.channels.join(", ");
        table.note(if serves.is_empty() { "stands by".to_owned() } else { serves }, Tone::Faint);
    }
    if let Some(error) = &group.error {
        table.note(format!("error: {error}"), Tone::Bad);
    }
    format!("group {}\n{}", group.name, table.render(colour))
}

#[cfg(test)]
mod tests {
    use super::super::table::WIDTH;
    use super::*;
    use crate::status::{ChannelStatus, Lag, MemberStatus, Progress};

    fn status() -> Status {
        let direction = DirectionStatus {
            from: "dc".into(),
            to: "cloud".into(),
            phase: Phase::Snapshot,
            snapshot: Progress { done: 250_000, total: Some(1_000_000) },
            snapshot_first: Some(1),
            lag: Lag { changes: Some(1_204), seconds: Some(0.25) },
            applied: 123_456_789,
            conflicts: 3,
            dead_letters: 2,
            gaps: 0,
            left_out: 0,
            captured_per_second: 5_000.0,
            applied_per_second: 100_000.4,
            held: None,
            error: None,
            warning: None,
            intake: Some(IntakeStatus { waiting: 12, past: 7, in_topic: Some(3_000) }),
        };
        let back = DirectionStatus {
            from: "cloud".into(),
            to: "dc".into(),
            phase: Phase::Streaming,
            lag: Lag::default(),
            held: Some("FLUSHALL at cloud, 2026-03-01T02:00:00.000Z".into()),
            warning: Some("cloud: SCAN mode".into()),
            error: Some(
                "write at 127.0.0.1:6402: out of memory; raise maxmemory there or free some, ".repeat(3),
            ),
            ..direction.clone()
        };
        let channel = ChannelStatus {
            name: "tags".into(),
            store: "redis".into(),
            state: ChannelState::Running,
            directions: vec![direction, back],
            member: Some("host-a-1".into()),
        };
        let elsewhere = ChannelStatus {
            name: "orders".into(),
            directions: Vec::new(),
            member: Some("host-b-2".into()),
            ..channel.clone()
        };
        let nowhere = ChannelStatus { name: "users".into(), member: None, ..elsewhere.clone() };
        let member = |name: &str, here, channels: &[&str]| MemberStatus {
            name: name.into(),
            host: "10.0.0.5".into(),
            here,
            channels: channels.iter().map(|name| (*name).to_owned()).collect(),
        };
        let group = GroupStatus {
            name: "causeway.dc-cloud.dc".into(),
            member: "host-a-1".into(),
            error: None,
            members: vec![
                member("host-a-1", true, &["tags"]),
                member("host-b-2", false, &["orders"]),
                member("host-c-3", false, &[]),
            ],
        };
        Status {
            link: "dc-cloud".into(),
            sites: vec!["dc".into(), "cloud".into()],
            since: "2026-03-01T02:00:00.000Z".into(),
            channels: vec![channel, elsewhere, nowhere],
            consumer_group: Some(group),
        }
    }

    #[test]
    fn the_status_table_says_everything_in_a_hundred_columns() {
        let text = render(&status(), false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        for expected in [
            "dc->cloud",
            "snapshot",
            "1,204",
            "25 %",
            "7 s left",
            "?",
            "--held apply|drop",
            "error: write at",
            "warning: cloud: SCAN",
            "since 2026-03-01T02:00:00.000Z",
            "intake: 12 wait for the store at dc, 3,000 messages in the topic; 7 were written past it",
            "served by the daemon host-b-2",
            "served by no daemon",
            "host-a-1 (this one)",
            "stands by",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }
}
