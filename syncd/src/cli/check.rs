//! `syncd check`: what stands in the way, before anything is copied.

use causeway_core::{Connector, Error, ErrorKind, Finding, OnlyAt, Site, Space};
use serde::Serialize;

use super::args::Common;
use super::table::{Tone, WIDTH, paint, thousands, wrap};
use super::{Failure, output};
use crate::config::{Channel, Config};
use crate::registry::Registry;
use crate::status::KeyText;

/// Keys outside of `snapshot` that `--json` names, and that a person is shown.
const NAMED_MAX: usize = 1000;
const SHOWN_MAX: usize = 20;
/// Of a key, in characters.
const KEY_WIDTH: usize = 70;

/// What was found of one channel.
#[derive(Debug, Serialize)]
struct Checked {
    name: String,
    ok: bool,
    findings: Vec<Finding>,
    /// Keys that nobody copies; not looked for where the channel cannot run.
    outside_snapshot: Vec<Outside>,
    /// A server could not be asked.
    error: Option<String>,
    #[serde(skip)]
    unreachable: bool,
}

/// Keys that only one site has, and that `snapshot` leaves where they are.
#[derive(Debug, Serialize)]
struct Outside {
    /// Who has them.
    site: String,
    /// Who lacks them.
    peer: String,
    count: u64,
    /// No key was counted twice.
    exact: bool,
    keys: Vec<OutsideKey>,
}

#[derive(Debug, Serialize)]
struct OutsideKey {
    key: KeyText,
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<u32>,
}

pub(super) async fn check(common: &Common, config: &Config) -> Result<(), Failure> {
    let connectors = config.open(&Registry::built_in())?;
    let sites = common.sites(config);
    let mut all = Vec::with_capacity(connectors.len());
    for (channel, connector) in config.channels.iter().zip(connectors) {
        if common.channel.as_ref().is_some_and(|only| *only != channel.name) {
            continue;
        }
        let (mut findings, mut error) = match connector.check(&sites).await {
            Ok(findings) => (findings, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let can_run = error.is_none() && !findings.iter().any(|finding| finding.fatal);
        let mut outside_snapshot = Vec::new();
        // Whether only one of the two has a key takes both.
        let counts = can_run && sites.len() == 2;
        for site in Site::BOTH.into_iter().filter(|site| counts && !channel.snapshot.names(*site)) {
            match outside(connector.as_ref(), channel, site).await {
                Ok(found) => outside_snapshot.extend(found),
                Err(failed) if failed.kind() == ErrorKind::Setup => {
                    findings.push(uncounted(channel, site, &failed));
                }
                Err(failed) => error = Some(failed),
            }
        }
        all.push(Checked {
            name: channel.name.clone(),
            ok: can_run && error.is_none(),
            findings,
            outside_snapshot,
            unreachable: error.as_ref().is_some_and(|error| error.kind() != ErrorKind::Setup),
            error: error.map(|error| error.to_string()),
        });
    }
    let ok = all.iter().all(|checked| checked.ok);
    if common.json {
        output::json(&serde_json::json!({ "ok": ok, "channels": all }))?;
    } else {
        output::line(&render(&all, output::colour()))?;
    }
    if all.iter().any(|checked| checked.unreachable) {
        Err(Failure::Failed("a server could not be reached".to_owned()))
    } else if ok {
        Ok(())
    } else {
        Err(Failure::No(None))
    }
}

/// What only `site` has; `None`: nothing, or nobody can tell.
async fn outside(connector: &dyn Connector, channel: &Channel, site: Site) -> Result<Option<Outside>, Error> {
    let Some(OnlyAt { count, exact, keys }) = connector.only_at(site, NAMED_MAX).await? else {
        return Ok(None);
    };
    let name = |site: Site| channel.spec.sites[site.index()].clone();
    let keys = keys.into_iter().map(|key| OutsideKey {
        key: KeyText::from(key.name.as_ref()),
        db: match key.space {
            Space::Db(db) => Some(db),
            _ => None,
        },
    });
    let outside = Outside { site: name(site), peer: name(site.peer()), count, exact, keys: keys.collect() };
    Ok((count > 0).then_some(outside))
}

/// The copy doesn't need what the counting does.
fn uncounted(channel: &Channel, site: Site, error: &Error) -> Finding {
    let [site, peer] = [site, site.peer()].map(|site| channel.spec.sites[site.index()].clone());
    Finding {
        fatal: false,
        what: format!("keys that {peer} lacks could not be counted: {error}"),
        advice: "snapshot leaves them where they are; to have them counted, let the users at both sites run \
                 SELECT, SCAN and EXISTS"
            .to_owned(),
        site: Some(site),
    }
}

fn render(all: &[Checked], colour: bool) -> String {
    let mut lines = Vec::new();
    let mut add = |tone: Tone, label: &str, text: &str| {
        for (i, line) in wrap(text, WIDTH - 12).iter().enumerate() {
            let label = format!("{:<8}", if i == 0 { label } else { "" });
            lines.push(format!("  {}  {line}", paint(&label, tone, colour)));
        }
    };
    for checked in all {
        let name = format!("channel {}", checked.name);
        match (checked.ok, checked.findings.is_empty() && checked.outside_snapshot.is_empty()) {
            (true, true) => add(Tone::Good, "ok", &format!("{name}: nothing stands in the way")),
            (true, false) => add(Tone::Good, "ok", &format!("{name}: it can run; to be known:")),
            (false, _) => add(Tone::Bad, "no", &format!("{name}: cannot run like this:")),
        }
        if let Some(error) = &checked.error {
            add(Tone::Bad, "error", error);
        }
        for finding in &checked.findings {
            let (tone, label) = if finding.fatal { (Tone::Bad, "error") } else { (Tone::Busy, "note") };
            let site = finding.site.as_ref().map(|site| format!("{site}: ")).unwrap_or_default();
            add(tone, label, &format!("{site}{}", finding.what));
            add(Tone::Plain, "", &finding.advice);
        }
        for outside in &checked.outside_snapshot {
            let about = if outside.exact { "" } else { "about " };
            let keys = if outside.count == 1 { "key" } else { "keys" };
            let Outside { site, peer, .. } = outside;
            let count = thousands(outside.count);
            let what = format!("{site}: {about}{count} {keys} that {peer} lacks; snapshot leaves them there");
            add(Tone::Busy, "note", &what);
            for OutsideKey { key, db } in outside.keys.iter().take(SHOWN_MAX) {
                let db = db.map(|db| format!("db {db}: ")).unwrap_or_default();
                add(Tone::Plain, "", &format!("{db}{}", shortened(key)));
            }
            let rest = outside.count.saturating_sub(outside.keys.len().min(SHOWN_MAX) as u64);
            if rest > 0 {
                let rest = thousands(rest);
                add(Tone::Faint, "", &format!("and {rest} more; --json names up to {NAMED_MAX}"));
            }
        }
    }
    lines.join("\n")
}

/// On one line.
fn shortened(key: &KeyText) -> String {
    let text = key.to_string();
    match text.char_indices().nth(KEY_WIDTH) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_stands_under_its_channel_in_a_hundred_columns() {
        let finding = Finding {
            fatal: true,
            site: Some("cloud".into()),
            what: "maxmemory-policy is allkeys-lru: the server deletes keys by itself, ".repeat(2),
            advice: "set it to noeviction, or say evictions = \"carry\"".into(),
        };
        let checked = Checked {
            name: "tags".into(),
            ok: false,
            findings: vec![finding],
            outside_snapshot: Vec::new(),
            error: None,
            unreachable: false,
        };
        let text = render(&[checked], false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(
            text.starts_with("  no        channel tags: cannot run like this:\n  error     cloud: maxmem"),
            "{text}"
        );
        assert!(text.ends_with("\n            set it to noeviction, or say evictions = \"carry\""), "{text}");
    }

    #[test]
    fn keys_outside_the_snapshot_are_no_hindrance_and_a_few_are_shown() {
        let key = |n: u32| OutsideKey { key: KeyText::from(format!("k{n}").as_bytes()), db: Some(n % 2) };
        let mut keys: Vec<OutsideKey> = (0..1000).map(key).collect();
        keys[0].key = KeyText::from("a\nb ".repeat(100).as_bytes());
        let (site, peer) = ("cloud".to_owned(), "dc".to_owned());
        let checked = Checked {
            name: "tags".into(),
            ok: true,
            findings: Vec::new(),
            outside_snapshot: vec![Outside { site, peer, count: 12_345, exact: true, keys }],
            error: None,
            unreachable: false,
        };
        let text = render(&[checked], false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.starts_with("  ok        channel tags: it can run; to be known:\n"), "{text}");
        assert!(text.contains("note      cloud: 12,345 keys that dc lacks"), "{text}");
        assert!(text.contains("            db 0: a\\nb a\\nb") && text.contains("db 1: k19\n"), "{text}");
        assert!(!text.contains("k20"), "{text}");
        assert!(text.ends_with("            and 12,325 more; --json names up to 1000"), "{text}");
    }
}
