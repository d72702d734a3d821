//! `syncd dead-letters`: what the targets refused, and taking it off the list.

use super::args::{AckArgs, Common, DeadLettersListArgs};
use super::client::Client;
use super::table::{Align, Table, Tone, thousands};
use super::{Failure, output};
use crate::config::Config;
use crate::status::{Acknowledged, DeadLetterPage, DeadLetterQuery, KeyAt};

pub(super) async fn list(
    common: &Common,
    config: &Config,
    args: &DeadLettersListArgs,
) -> Result<(), Failure> {
    let client = Client::new(common.address(config))?;
    let (wanted, mut page) = (args.limit as usize, DeadLetterPage::default());
    let mut before = None::<String>;
    loop {
        let limit = (wanted - page.dead_letters.len()).min(DeadLetterQuery::LIMIT_MAX).to_string();
        let query =
            [("channel", common.channel.as_deref()), ("before", before.as_deref()), ("limit", Some(&limit))];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let more: DeadLetterPage = client.get("/v1/dead-letters", &query).await?;
        page.dead_letters.extend(more.dead_letters);
        page.next = more.next;
        let Some(next) = page.next.filter(|_| page.dead_letters.len() < wanted) else { break };
        before = Some(next.to_string());
    }
    if common.json { output::json(&page) } else { output::line(&render(&page, output::colour())) }
}

pub(super) async fn ack(common: &Common, config: &Config, args: &AckArgs) -> Result<(), Failure> {
    let client = Client::new(common.address(config))?;
    let mut done = Acknowledged::default();
    if args.all {
        let channel: Vec<_> = common.channel.iter().map(|channel| ("channel", channel.as_str())).collect();
        done = client.post("/v1/dead-letters/ack", &channel).await?;
    }
    for id in &args.ids {
        let one: Acknowledged = match client.post(&format!("/v1/dead-letters/{id}/ack"), &[]).await {
            // The number was a good one: the answer is that there is none.
            Err(Failure::Usage(message)) => return Err(Failure::No(Some(message))),
            answer => answer?,
        };
        done.acknowledged += one.acknowledged;
    }
    if common.json {
        return output::json(&done);
    }
    output::line(&format!("{} acknowledged", thousands(done.acknowledged)))
}

fn render(page: &DeadLetterPage, colour: bool) -> String {
    if page.dead_letters.is_empty() {
        return "no dead letters".to_owned();
    }
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("CHANNEL", Align::Left),
        ("DIRECTION", Align::Left),
        ("SEQ", Align::Right),
        ("OP", Align::Left),
        ("TIME", Align::Left),
        ("KEY", Align::Left),
    ]);
    for letter in &page.dead_letters {
        let KeyAt { key, db, table: of_table, index, routing } = &letter.at;
        let db = db.map(|db| format!("db {db}: "));
        let named = || Some(format!("{}: ", of_table.as_ref().or(index.as_ref())?));
        let place = db.or_else(named).unwrap_or_default();
        let routing = routing.as_ref().map(|routing| format!(", routing {}", routing.escape_debug()));
        let routing = routing.unwrap_or_default();
        let cells = [
            letter.id.to_string(),
            letter.channel.clone(),
            format!("{}->{}", letter.from, letter.to),
            letter.seq.to_string(),
            letter.op.clone(),
            letter.time.clone(),
            format!("{place}{key}{routing}"),
        ];
        table.row(cells.map(|text| (text, Tone::Plain)).into());
        table.note(&letter.reason, Tone::Bad);
    }
    let more =
        if page.next.is_some() { "\nthere are more: raise --limit, or narrow by --channel" } else { "" };
    format!("{}{more}", table.render(colour))
}
