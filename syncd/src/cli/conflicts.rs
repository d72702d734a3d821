//! `syncd conflicts`: how many, which, and one of them.

use super::args::{Common, ConflictsListArgs};
use super::client::Client;
use super::commands::only;
use super::table::{Align, Table, Tone, WIDTH, thousands};
use super::{Failure, output};
use crate::config::Config;
use crate::status::{ConflictEntry, ConflictPage, ConflictQuery, Resolution, rfc3339};

/// Columns of the list that could grow are cut to so many characters; the key gets what is left.
const NAME_WIDTH: usize = 12;
const DIRECTION_WIDTH: usize = 15;
const KEY_WIDTH_MIN: usize = 12;

pub(super) async fn count(common: &Common, config: &Config) -> Result<(), Failure> {
    let status = only(Client::new(common.address(config))?.get("/v1/status", &[]).await?, common);
    let directions = status.channels.iter().flat_map(|channel| {
        channel.directions.iter().map(move |direction| (channel.name.as_str(), direction))
    });
    if common.json {
        let counts: Vec<_> = directions
            .map(|(channel, d)| {
                serde_json::json!({ "channel": channel, "from": d.from, "to": d.to, "conflicts": d.conflicts })
            })
            .collect();
        return output::json(&counts);
    }
    let mut table =
        Table::new(&[("CHANNEL", Align::Left), ("DIRECTION", Align::Left), ("CONFLICTS", Align::Right)]);
    for (channel, d) in directions {
        let cells = [channel.to_owned(), format!("{}->{}", d.from, d.to), thousands(d.conflicts)];
        table.row(cells.map(|text| (text, Tone::Plain)).into());
    }
    output::line(&table.render(output::colour()))?;
    output::line("since the daemon started; `syncd conflicts list` shows which")
}

pub(super) async fn list(common: &Common, config: &Config, args: &ConflictsListArgs) -> Result<(), Failure> {
    let client = Client::new(common.address(config))?;
    let (since, mut before) = (args.since.map(rfc3339), None::<String>);
    let (wanted, mut page) = (args.limit as usize, ConflictPage::default());
    loop {
        let limit = (wanted - page.conflicts.len()).min(ConflictQuery::LIMIT_MAX).to_string();
        let query = [
            ("channel", common.channel.as_deref()),
            ("key", args.key.as_deref()),
            ("since", since.as_deref()),
            ("before", before.as_deref()),
            ("limit", Some(&limit)),
        ];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let more: ConflictPage = client.get("/v1/conflicts", &query).await?;
        page.conflicts.extend(more.conflicts);
        page.damaged += more.damaged;
        (page.next, page.left_out) = (more.next, more.left_out);
        let Some(next) = page.next.filter(|_| page.conflicts.len() < wanted) else { break };
        before = Some(next.to_string());
    }
    if common.json { output::json(&page) } else { output::line(&render(&page, output::colour())) }
}

pub(super) async fn show(common: &Common, config: &Config, id: u64) -> Result<(), Failure> {
    let client = Client::new(common.address(config))?;
    let entry: ConflictEntry = match client.get(&format!("/v1/conflicts/{id}"), &[]).await {
        // The number was a good one: the answer is that there is none.
        Err(Failure::Usage(message)) => return Err(Failure::No(Some(message))),
        answer => answer?,
    };
    if common.json { output::json(&entry) } else { output::line(&describe(&entry)) }
}

fn render(page: &ConflictPage, colour: bool) -> String {
    let mut text = match page.conflicts.is_empty() {
        true => "no conflicts".to_owned(),
        false => table(&page.conflicts).render(colour),
    };
    let mut also = |line: String| text.extend(["\n", &line]);
    if page.next.is_some() {
        also("there are more: raise --limit, or narrow by --since, --key, --channel".to_owned());
    }
    if page.left_out > 0 {
        let count = thousands(page.left_out);
        also(format!("{count} more were decided and could not be kept, since the daemon started"));
    }
    if page.damaged > 0 {
        also(format!("{} damaged lines of the conflict log were skipped", thousands(page.damaged)));
    }
    text
}

fn table(entries: &[ConflictEntry]) -> Table {
    let head = [
        ("ID", Align::Right),
        ("TIME", Align::Left),
        ("CHANNEL", Align::Left),
        ("DIRECTION", Align::Left),
        ("RESOLUTION", Align::Left),
        ("WINNER", Align::Left),
    ];
    let mut rows: Vec<_> = entries.iter().map(|entry| (cells(entry), key(entry))).collect();
    // All but the key, and two spaces behind each.
    let taken = |i: usize, title: &str| {
        let cells = rows.iter().map(|(cells, _)| cells[i].chars().count());
        cells.max().unwrap_or(0).max(title.len()) + 2
    };
    let taken: usize = head.iter().enumerate().map(|(i, (title, _))| taken(i, title)).sum();
    let width = WIDTH.saturating_sub(taken).max(KEY_WIDTH_MIN);
    let mut table = Table::new(&[&head[..], &[("KEY", Align::Left)]].concat());
    for (cells, key) in rows.drain(..) {
        let cells = cells.into_iter().chain([cut(key, width)]);
        table.row(cells.map(|text| (text, Tone::Plain)).collect());
    }
    table
}

fn cells(entry: &ConflictEntry) -> [String; 6] {
    // Whole seconds are enough to find it by.
    let time = entry.time.split_once('.').map_or(entry.time.clone(), |(time, _)| format!("{time}Z"));
    [
        entry.id.to_string(),
        time,
        cut(entry.channel.clone(), NAME_WIDTH),
        cut(format!("{}->{}", entry.from, entry.to), DIRECTION_WIDTH),
        entry.resolution.as_str().to_owned(),
        cut(entry.winner.clone().unwrap_or_else(|| "both".to_owned()), NAME_WIDTH),
    ]
}

fn key(entry: &ConflictEntry) -> String {
    let db = entry.db.map(|db| format!("db {db}: ")).unwrap_or_default();
    let element = entry.element.as_ref().map(|element| format!(" [{element}]")).unwrap_or_default();
    format!("{db}{}{element}", entry.key)
}

fn cut(text: String, width: usize) -> String {
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

fn describe(entry: &ConflictEntry) -> String {
    let (from, to) = (&entry.from, &entry.to);
    let resolution = match entry.resolution {
        Resolution::Kept => format!("kept: the write of {to} stands, that of {from} was dropped"),
        Resolution::Replaced => format!("replaced: the write of {from} stands, that of {to} was overwritten"),
        Resolution::Merged => format!("merged: both took effect, that of {to} on top"),
    };
    let mut lines = vec![
        format!("conflict    {}", entry.id),
        format!("decided     {} at {to}", entry.time),
        format!("channel     {} ({from}->{to})", entry.channel),
        format!("key         {}", key(entry)),
        format!("resolution  {resolution}"),
    ];
    if entry.uncertain {
        lines.push("uncertain   one of the two was read after an outage: its hlc is a guess".to_owned());
    }
    for side in &entry.sides {
        lines.push(String::new());
        lines.push(format!("{}: {} at {}", side.site, side.op, side.time));
        lines.push(format!("  seq       {}", side.seq));
        lines.push(format!("  hlc       {}", side.hlc));
        let digest = side.digest.as_deref().unwrap_or("none, the key is absent");
        lines.push(format!("  digest    {digest} ({} bytes)", thousands(side.bytes)));
        if let Some(value) = &side.value {
            lines.push(format!("  value     {value}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ConflictSide, KeyText};

    fn entry() -> ConflictEntry {
        let side = |site: &str| ConflictSide {
            site: site.into(),
            seq: 4_711,
            hlc: "3717123456789012992".into(),
            op: "command".into(),
            time: "2026-03-01T02:00:00.000Z".into(),
            digest: Some("0123456789abcdef0123456789abcdef".into()),
            bytes: 12,
            value: None,
        };
        ConflictEntry {
            id: 1_234_567,
            time: "2026-03-01T02:00:00.250Z".into(),
            channel: "a-channel-with-a-long-name".into(),
            from: "a-site-with-a-long-name".into(),
            to: "another-site-with-a-long-name".into(),
            key: KeyText::Text("push:".repeat(60)),
            db: Some(3),
            element: Some(KeyText::Text("f".into())),
            resolution: Resolution::Replaced,
            winner: Some("a-site-with-a-long-name".into()),
            uncertain: true,
            sides: [side("a"), side("b")],
        }
    }

    #[test]
    fn the_list_fits_a_hundred_columns() {
        let long = entry();
        let short = ConflictEntry {
            channel: "tags".into(),
            key: KeyText::Text("k".into()),
            resolution: Resolution::Merged,
            winner: None,
            ..entry()
        };
        let page = ConflictPage { conflicts: vec![long, short], next: Some(7), left_out: 1_000, damaged: 2 };
        let text = render(&page, false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        for expected in [
            "1234567  2026-03-01T02:00:00Z",
            "replaced",
            "db 3: push:",
            "db 3: k [f]",
            "both",
            "there are more",
            "1,000 more were decided",
            "2 damaged lines",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }

    #[test]
    fn no_conflicts_are_said() {
        assert_eq!(render(&ConflictPage::default(), false), "no conflicts");
    }
}
