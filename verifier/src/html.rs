//! A check's result as one page that needs nothing else: no script, no font, no picture from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;

use causeway_core::time::rfc3339;

use crate::compare::{Difference, DifferenceKind};
use crate::report::{Report, digest, grouped, key_text, place, printable, word};
use crate::results::Run;

const KINDS: [Option<DifferenceKind>; 5] = [
    Some(DifferenceKind::Missing),
    Some(DifferenceKind::Extra),
    Some(DifferenceKind::Content),
    Some(DifferenceKind::Expiry),
    None,
];

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5d6878;--line:#dfe3e9;--back:#fff;--card:#f6f7f9;\
--good:#1a7f4b;--bad:#b3261e;--missing:#2f6fde;--extra:#8b5cd6;--content:#d2562b;--expiry:#b98900;\
--undecided:#7a8594}\
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#9aa5b4;--line:#333b47;--back:#14181f;\
--card:#1c222b;--good:#4cc38a;--bad:#ff7b72}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:64rem;\
margin:2.5rem auto;padding:0 1.25rem}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:2.2rem 0 .6rem}\
p.sub{color:var(--soft);margin:.2rem 0 1.6rem}\
.tiles{display:flex;gap:.8rem;flex-wrap:wrap}\
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem 1.1rem;min-width:8rem}\
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.tile span{color:var(--soft)}\
.good b{color:var(--good)}.bad b{color:var(--bad)}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .7rem .35rem 0;\
border-bottom:1px solid var(--line);vertical-align:top}th{color:var(--soft);font-weight:500}\
td.n{text-align:right;font-variant-numeric:tabular-nums}td.k{word-break:break-all}\
code{font:13px ui-monospace,monospace}td small{color:var(--soft);display:block}\
.row{display:grid;grid-template-columns:7.5rem 1fr 5rem;gap:.8rem;align-items:center;margin:.3rem 0}\
.bar{display:flex;height:1.1rem;border-radius:3px;overflow:hidden;background:var(--card)}\
.bar i{display:block;min-width:3px}.key{display:inline-block;width:.75rem;height:.75rem;border-radius:2px;\
margin:0 .35rem 0 1rem}.key:first-child{margin-left:0}.legend{color:var(--soft);margin:.6rem 0 0}\
.missing{background:var(--missing)}.extra{background:var(--extra)}.content{background:var(--content)}\
.expiry{background:var(--expiry)}.undecided{background:var(--undecided)}\
.runs{display:flex;align-items:flex-end;gap:2px;height:7rem;border-bottom:1px solid var(--line)}\
.runs i{flex:1 1 0;border-radius:2px 2px 0 0}.runs .equal{background:var(--good)}\
.runs .unequal{background:var(--content)}.ends{display:flex;justify-content:space-between;margin:.3rem 0 0}";

/// The page of what was found at `time`, milliseconds since 1970; `history`: this run and those before it, the oldest first.
pub(crate) fn page(report: &Report, time: u64, history: &[Run]) -> String {
    let mut out = String::new();
    // Writing to a text cannot fail.
    let _ = write(&mut out, report, time, history);
    out
}

fn write(out: &mut String, report: &Report, time: u64, history: &[Run]) -> std::fmt::Result {
    let [first, second] = report.sites.each_ref().map(|site| escaped(site));
    let link = escaped(&report.link);
    let (equal, class) = if report.equal() { ("equal", "good") } else { ("not equal", "bad") };
    write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{link}: {equal}</title><style>{STYLE}</style></head>\
         <body><h1>{first} and {second}: {equal}</h1><p class=\"sub\">Link {link}"
    )?;
    if let Some(tenant) = &report.tenant {
        write!(out, ", tenant {}", escaped(&printable(tenant.as_bytes())))?;
    }
    if let Some((window, _)) = report.window {
        write!(out, ", what was written from {} to {}", rfc3339(window.from), rfc3339(window.to))?;
    }
    write!(out, ", checked {} in {:.1} s</p>", rfc3339(time), report.took.as_secs_f64())?;

    out.push_str("<div class=\"tiles\">");
    let (different, undecided) = (report.sum(|o| o.different), report.sum(|o| o.undecided));
    tile(out, class, equal, "result")?;
    tile(out, "", &grouped(report.sum(|o| o.compared)), "keys compared")?;
    tile(out, if different > 0 { "bad" } else { "" }, &grouped(different), "different")?;
    tile(out, if undecided > 0 { "bad" } else { "" }, &grouped(undecided), "undecided")?;
    out.push_str("</div>");

    out.push_str("<h2>Channels</h2><table><tr><th>Channel<th>Compared<th>Different<th>Undecided</tr>");
    for channel in &report.channels {
        let o = &channel.outcome;
        write!(out, "<tr><td>{}", escaped(&channel.name))?;
        for number in [o.compared, o.different, o.undecided] {
            write!(out, "<td>{}", grouped(number))?;
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
    if history.len() > 1 {
        over_time(out, history)?;
    }
    if different + undecided > 0 {
        chart(out, report)?;
        keys(out, report, different + undecided)?;
    }
    out.push_str(
        "<p class=\"sub\">Digests are over canonical content; no value is on this page.</p></body></html>\n",
    );
    Ok(())
}

fn tile(out: &mut String, class: &str, value: &str, label: &str) -> std::fmt::Result {
    write!(out, "<div class=\"tile {class}\"><b>{value}</b><span>{label}</span></div>")
}

/// One bar a type of value, cut by kind.
fn chart(out: &mut String, report: &Report) -> std::fmt::Result {
    let mut types: BTreeMap<&str, BTreeMap<Option<DifferenceKind>, u64>> = BTreeMap::new();
    for ((what, kind), count) in report.channels.iter().flat_map(|c| &c.outcome.counts) {
        *types.entry(what).or_default().entry(*kind).or_default() += count;
    }
    let most = types.values().map(|kinds| kinds.values().sum()).max().unwrap_or(1u64).max(1);
    out.push_str("<h2>By type and kind</h2>");
    for (what, kinds) in &types {
        let all: u64 = kinds.values().sum();
        let title: Vec<_> =
            kinds.iter().map(|(kind, n)| format!("{} {}", grouped(*n), word(*kind))).collect();
        write!(
            out,
            "<div class=\"row\"><span>{what}</span><div class=\"bar\" role=\"img\" title=\"{0}\" aria-label=\"{0}\">",
            title.join(", ")
        )?;
        for (kind, count) in kinds {
            let width = 100.0 * *count as f64 / most as f64;
            write!(out, "<i class=\"{}\" style=\"width:{width:.2}%\"></i>", word(*kind))?;
        }
        write!(out, "</div><span>{}</span></div>", grouped(all))?;
    }
    out.push_str("<p class=\"legend\">");
    for kind in KINDS {
        write!(out, "<span class=\"key {}\"></span>{}", word(kind), escaped(&report.describe(kind)))?;
    }
    out.push_str("</p>");
    Ok(())
}

/// A column a run: how many keys were not equal, and a low green one where all were.
fn over_time(out: &mut String, history: &[Run]) -> std::fmt::Result {
    let not_equal = |run: &Run| run.different + run.undecided;
    let most = history.iter().map(not_equal).max().unwrap_or(0).max(1);
    out.push_str("<h2>Over time</h2><div class=\"runs\">");
    for run in history {
        let (height, class) = match (run.equal, not_equal(run)) {
            (true, _) => (4.0, "equal"),
            (false, count) => (4.0 + 96.0 * count as f64 / most as f64, "unequal"),
        };
        let of = if run.window.is_some() { "in a window" } else { "of everything" };
        write!(
            out,
            "<i class=\"{class}\" style=\"height:{height:.1}%\" title=\"run {}, {}: {} of {} keys {of} not equal\"></i>",
            run.id,
            rfc3339(run.began),
            grouped(not_equal(run)),
            grouped(run.compared)
        )?;
    }
    let began = |run: Option<&Run>| run.map_or(String::new(), |run| rfc3339(run.began));
    write!(
        out,
        "</div><p class=\"sub ends\"><span>{}</span><span>at most {} keys not equal</span><span>{}</span></p>",
        began(history.first()),
        grouped(history.iter().map(not_equal).max().unwrap_or(0)),
        began(history.last())
    )
}

fn keys(out: &mut String, report: &Report, all: u64) -> std::fmt::Result {
    let [first, second] = report.sites.each_ref().map(|site| escaped(site));
    write!(out, "<h2>Keys</h2><table><tr><th>Kind<th>Channel<th>Key<th>{first}<th>{second}</tr>")?;
    let mut listed = 0;
    for (channel, difference) in report.listed() {
        listed += 1;
        let Difference { space, name, kind, sites, parts } = difference;
        write!(
            out,
            "<tr><td>{}<td>{}<td class=\"k\"><code>{}</code><small>{}</small>",
            word(*kind),
            escaped(channel),
            escaped(&key_text(space, name)),
            escaped([place(space), parts.join(", ")].join(" ").trim_end())
        )?;
        for state in sites {
            match state {
                None => out.push_str("<td>absent"),
                Some(state) => {
                    let digest = digest(state);
                    let short = digest.get(..12).unwrap_or_default();
                    write!(out, "<td>{} <code title=\"{digest}\">{short}</code>", state.what)?;
                    if let Some(at) = state.expire_at {
                        write!(out, "<small>expires {}</small>", rfc3339(at))?;
                    }
                }
            }
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
    if all > listed {
        write!(out, "<p class=\"sub\">and {} more</p>", grouped(all - listed))?;
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_write_into_the_page() {
        assert_eq!(escaped("<b a=\"x\">&'"), "&lt;b a=&quot;x&quot;&gt;&amp;&#39;");
    }
}
