//! Looks at both servers before anything runs, and says what stands in the way.

use std::collections::HashMap;

use causeway_core::{DdlPolicy, Error, Finding, Result, Site};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use crate::config::{MysqlConfig, Server as Endpoint};
use crate::conn::{connect, in_time, make_our_tables, refuse_read_only, run, with_role};
use crate::failover::all;
use crate::names::{self, APPLIED, GONE, SCHEMA, WATERMARK};
use crate::schema::{Column, Table, carried};
use crate::source::look;

/// What was found about one server.
struct Server {
    site: String,
    /// Its changes are carried.
    is_source: bool,
    is_target: bool,
    history: Option<String>,
    tables: Vec<Table>,
    /// Something was applied: a table or a column that it lacks may be on its way.
    begun: bool,
    /// `auto_increment_increment` and `auto_increment_offset`.
    auto_increment: (u64, u64),
    has_auto_increment: bool,
}

/// Looks at the servers of `sites`; see [`Connector::check`](causeway_core::Connector::check).
///
/// # Errors
///
/// `Retry`: one cannot be reached. `Setup`: one doesn't let us in.
pub(crate) async fn check(config: &MysqlConfig, sites: &[Site]) -> Result<Vec<Finding>> {
    let (mut findings, mut servers) = (Vec::new(), Vec::new());
    for site in sites {
        servers.push(one(config, *site, &mut findings).await?);
    }
    let begun = servers.iter().any(|server| server.begun);
    for server in &servers {
        for table in &server.tables {
            let Some(reason) = table.not_carried() else { continue };
            let what = format!("{} cannot be carried: {reason}", table.full_name());
            // What came later must not keep all else from going on: its rows are left out, and named.
            let fatal = !begun || !table.is_keyless();
            findings.push(finding(fatal, &server.site, what, "name it in `exclude`"));
        }
    }
    if let [first, second] = &servers[..] {
        between(first, second, config.ddl != Some(DdlPolicy::Ignore), &mut findings);
    }
    Ok(findings)
}

fn finding(fatal: bool, site: &str, what: String, advice: &str) -> Finding {
    Finding { fatal, site: Some(site.to_owned()), what, advice: advice.to_owned() }
}

async fn one(config: &MysqlConfig, site: Site, findings: &mut Vec<Finding>) -> Result<Server> {
    let name = config.site(site).to_owned();
    let (is_source, is_target) = (config.carries[site.index()], config.carries[site.peer().index()]);
    let mut conn = connect(config.server(site)).await?;
    let label = config.server(site).label();
    let writable = match refuse_read_only(&mut conn, &label, "check").await {
        Err(Error::Setup { reason, advice, .. }) => {
            findings.push(finding(true, &name, reason, &advice));
            false
        }
        refused => refused.map(|()| true)?,
    };
    let mut history = None;
    if is_source {
        match look(&mut conn, &label).await {
            Ok(found) => history = Some(String::from_utf8_lossy(&found.server).into_owned()),
            Err(Error::Setup { reason, advice, .. }) => findings.push(finding(true, &name, reason, &advice)),
            Err(other) => return Err(other),
        }
        settings(&mut conn, &label, &name, findings).await?;
        replicas(config.server(site), &mut conn, &name, findings).await?;
    }
    let grants = rights(&mut conn, &label, &name, (is_source, writable), findings).await?;
    let begun = format!(
        "SELECT marker <> '' FROM {SCHEMA}.{APPLIED} WHERE name = '{}'",
        names::row(&config.link, &config.channel)
    );
    // Where our tables cannot be made nothing is begun.
    let begun = conn.query_first(begun).await.ok().flatten().unwrap_or(false);
    let tables = carried(&mut conn, &label, &config.tables).await?;
    if tables.is_empty() {
        let what = "no table is there that `tables` names".to_owned();
        findings.push(finding(false, &name, what, "compare the patterns with `SHOW TABLES`"));
    }
    let keyless: Vec<String> = tables
        .iter()
        .filter(|table| table.is_keyless() && table.not_carried().is_none())
        .map(Table::full_name)
        .collect();
    if let Some(first) = keyless.first() {
        let may_lock = |grant: &str| {
            let on_ours = grant.contains(&format!("ON `{}`.", SCHEMA.to_uppercase()));
            grant.contains("LOCK TABLES") || grant.contains("ALL PRIVILEGES") && !on_ours
        };
        if is_source && !grants.lines().any(may_lock) {
            let what = format!("the account may not lock {first} for a moment, which has no primary key");
            findings.push(finding(true, &name, what, "GRANT LOCK TABLES ON its database TO it"));
        }
        if is_target {
            let others = if keyless.len() > 1 { " and others" } else { "" };
            let what = format!(
                "{first}{others} without a primary key: each row that goes at the other site is looked for here, in all \
                 of the table unless an index helps"
            );
            findings.push(finding(false, &name, what, "give it a primary key, or an index, if many rows go"));
        }
    }
    let ask = "look at the tables";
    let cascades: Vec<(String, String)> = in_time(
        ask,
        &label,
        conn.query(
            "SELECT constraint_schema, table_name FROM information_schema.referential_constraints \
             WHERE delete_rule NOT IN ('RESTRICT', 'NO ACTION') OR update_rule NOT IN ('RESTRICT', 'NO ACTION')",
        ),
    )
    .await?;
    for (schema, table) in cascades.into_iter().filter(|(schema, table)| config.tables.carries(schema, table))
    {
        let what = format!(
            "{schema}.{table} has a foreign key that changes its rows by itself: those are not in the binlog"
        );
        findings.push(finding(true, &name, what, "make it RESTRICT, or name the table in `exclude`"));
    }
    if is_target {
        let triggers: Vec<(String, String, String)> = in_time(
            ask,
            &label,
            conn.query("SELECT event_object_schema, event_object_table, trigger_name FROM information_schema.triggers"),
        )
        .await?;
        for (schema, table, trigger) in triggers.into_iter().filter(|(s, t, _)| config.tables.carries(s, t)) {
            let what =
                format!("the trigger {trigger} of {schema}.{table} runs again for each row that is applied");
            findings.push(finding(
                false,
                &name,
                what,
                "drop it here, unless it changes nothing that is carried",
            ));
        }
    }
    let auto: Option<(u64, u64)> =
        in_time(ask, &label, conn.query_first("SELECT @@auto_increment_increment, @@auto_increment_offset"))
            .await?;
    let with_auto: Vec<(String, String)> = in_time(
        ask,
        &label,
        conn.query("SELECT table_schema, table_name FROM information_schema.columns WHERE extra LIKE '%auto_increment%'"),
    )
    .await?;
    let has_auto_increment = with_auto.iter().any(|(schema, table)| config.tables.carries(schema, table));
    let auto_increment = auto.unwrap_or((1, 1));
    Ok(Server {
        site: name,
        is_source,
        is_target,
        history,
        tables,
        begun,
        auto_increment,
        has_auto_increment,
    })
}

async fn settings(conn: &mut Conn, label: &str, site: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let durable: Option<(u64, u64)> = in_time(
        "ask for settings",
        label,
        conn.query_first("SELECT @@sync_binlog, @@innodb_flush_log_at_trx_commit"),
    )
    .await?;
    if durable.is_some_and(|durable| durable != (1, 1)) {
        let what = "sync_binlog or innodb_flush_log_at_trx_commit is not 1: a crash may lose what it had acknowledged";
        findings.push(finding(
            false,
            site,
            what.to_owned(),
            "set both to 1, or know that a crash costs a snapshot",
        ));
    }
    // Settings of MySQL alone, in its order: MariaDB has neither.
    for (setting, good, advice) in [
        ("binlog_row_value_options", "", "empty it: parts of JSON values cannot be carried"),
        (
            "binlog_order_commits",
            "1",
            "set it to ON: else a read may lack what stands before it in the binlog",
        ),
    ] {
        let asked: std::result::Result<Option<String>, _> =
            conn.query_first(format!("SELECT CONCAT(@@{setting})")).await;
        if let Ok(Some(is)) = asked
            && is != good
        {
            findings.push(finding(true, site, format!("{setting} is {is}"), advice));
        }
    }
    Ok(())
}

/// Of the other servers that `urls` names, what would make a failover to them a gap.
async fn replicas(
    server: &Endpoint,
    primary: &mut Conn,
    site: &str,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let Some(chosen) = server.chosen.get().filter(|_| server.addresses.len() > 1) else { return Ok(()) };
    let gap = |what: String, advice: &str| {
        let what = format!("{what}: a failover would be a gap, which copies all again");
        finding(false, site, what, advice)
    };
    let label = server.label();
    let here = Settings::of(primary, &label).await?;
    if !here.has_gtids() {
        let advice = "set gtid_mode=ON and enforce_gtid_consistency=ON at all servers";
        findings.push(gap(format!("gtid_mode is not ON at {label}"), advice));
    }
    for index in (0..server.addresses.len()).filter(|index| *index != chosen) {
        let label = server.label_of(index);
        let mut conn = match with_role(server, index).await {
            Ok((conn, _)) => conn,
            Err(error) => {
                let what = format!("{label} cannot be looked at: {error}");
                findings.push(finding(false, site, what, "see that it could take over, and check again"));
                continue;
            }
        };
        let settings = Settings::of(&mut conn, &label).await?;
        if !settings.is("log_bin", "ON") {
            findings.push(gap(format!("log_bin is OFF at {label}"), "set it to ON there"));
        }
        if !settings.is("log_replica_updates", "ON") && !settings.is("log_slave_updates", "ON") {
            let what = format!("{label} does not write into its binlog what it replicates");
            findings.push(gap(what, "set log_replica_updates=ON there (MariaDB: log_slave_updates)"));
        }
        if here.has_gtids() && !settings.has_gtids() {
            findings.push(gap(format!("gtid_mode is not ON at {label}"), "set it to ON there"));
        }
        for (setting, wanted) in
            [("binlog_format", "ROW"), ("binlog_row_image", "FULL"), ("binlog_row_metadata", "FULL")]
        {
            if !settings.is(setting, wanted) {
                let what = format!("{setting} is not {wanted} at {label}");
                findings.push(gap(what, "set it as at the primary, and let the replica begin a new binlog"));
            }
        }
        let several = ["replica_parallel_workers", "slave_parallel_workers"]
            .iter()
            .any(|name| settings.0.get(*name).is_some_and(|count| !matches!(count.as_str(), "0" | "1")));
        if several
            && ["replica_preserve_commit_order", "slave_preserve_commit_order"]
                .iter()
                .any(|name| settings.is(name, "OFF"))
        {
            let what =
                format!("replica_preserve_commit_order is OFF at {label}, which has several applier threads");
            findings.push(gap(what, "set it to ON there"));
        }
        // In this order: what comes meanwhile is at the primary.
        let is_mariadb = !settings.0.contains_key("gtid_mode");
        let (there, here) =
            (all(&mut conn, &label, is_mariadb).await?, all(primary, &label, is_mariadb).await?);
        if let (Some(there), Some(here)) = (there, here)
            && let Some(beyond) = there.beyond(&here)
        {
            let advice =
                "nothing but the replication may write there: make the replica anew from the primary";
            findings.push(gap(format!("{label} has transactions that the primary lacks ({beyond})"), advice));
        }
    }
    Ok(())
}

/// A server's variables that a failover needs.
struct Settings(HashMap<String, String>);

impl Settings {
    async fn of(conn: &mut Conn, label: &str) -> Result<Settings> {
        let sql = "SHOW GLOBAL VARIABLES WHERE variable_name IN ('log_bin', 'log_replica_updates', 'log_slave_updates', \
                   'gtid_mode', 'binlog_format', 'binlog_row_image', 'binlog_row_metadata', 'replica_parallel_workers', \
                   'slave_parallel_workers', 'replica_preserve_commit_order', 'slave_preserve_commit_order')";
        let rows: Vec<(String, String)> = in_time("ask for settings", label, conn.query(sql)).await?;
        Ok(Settings(rows.into_iter().collect()))
    }

    fn is(&self, name: &str, wanted: &str) -> bool {
        self.0.get(name).is_some_and(|is| is.eq_ignore_ascii_case(wanted))
    }

    /// MariaDB has no such variable, and always GTIDs.
    fn has_gtids(&self) -> bool {
        !self.0.contains_key("gtid_mode") || self.is("gtid_mode", "ON")
    }
}

/// What the account may do, in upper case.
async fn rights(
    conn: &mut Conn,
    label: &str,
    site: &str,
    (is_source, writable): (bool, bool),
    findings: &mut Vec<Finding>,
) -> Result<String> {
    let grants: Vec<String> = in_time("ask for rights", label, conn.query("SHOW GRANTS")).await?;
    let grants = grants.join("\n").to_uppercase();
    let all = grants.contains("GRANT ALL PRIVILEGES ON *.*");
    if is_source && !all && !grants.contains("REPLICATION SLAVE") {
        let what = "the account may not read the binlog".to_owned();
        findings.push(finding(true, site, what, "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO it"));
    }
    if !writable {
        return Ok(grants);
    }
    match make_our_tables(conn, label).await {
        Err(Error::Setup { reason, .. }) => {
            let advice = format!("GRANT ALL ON {SCHEMA}.* TO it: markers and tokens are kept there");
            findings.push(finding(true, site, reason, &advice));
        }
        made => made?,
    }
    Ok(grants)
}

/// `makes`: tables that a target lacks are made there.
fn between(first: &Server, second: &Server, makes: bool, findings: &mut Vec<Finding>) {
    if first.history.is_some() && first.history == second.history {
        let what = "both sites are the same server".to_owned();
        let advice = "give one of them another URL".to_owned();
        findings.push(Finding { fatal: true, site: None, what, advice });
        return;
    }
    for (source, target) in [(first, second), (second, first)] {
        if source.is_source && target.is_target {
            source.tables.iter().for_each(|table| fits(table, target, makes, findings));
        }
    }
    let both = first.is_source && second.is_source;
    let spelt = |table: &&Table| {
        table.key_columns().any(|c| c.collation.as_ref().is_some_and(|name| !name.ends_with("_bin")))
    };
    if let Some(table) = first.tables.iter().find(spelt).filter(|_| both) {
        findings.push(Finding {
            fatal: false,
            site: None,
            what: format!(
                "the key of {}, and maybe of others, is text whose collation takes two spellings for one: where both \
                 sites insert it at once, each in a spelling of its own, they differ",
                table.full_name()
            ),
            advice: "give it a collation that ends with _bin, or write each key at one site only".to_owned(),
        });
    }
    let (increment, _) = first.auto_increment;
    let apart = increment > 1
        && increment == second.auto_increment.0
        && first.auto_increment.1 != second.auto_increment.1;
    if both && !apart && (first.has_auto_increment || second.has_auto_increment) {
        findings.push(Finding {
            fatal: false,
            site: None,
            what: "both sites give the same numbers to AUTO_INCREMENT columns: of two rows with one number the newer stays"
                .to_owned(),
            advice: "set auto_increment_increment to 2 at both, and auto_increment_offset to 1 and 2".to_owned(),
        });
    }
}

/// Whether what `table` holds fits into the target.
fn fits(table: &Table, target: &Server, makes: bool, findings: &mut Vec<Finding>) {
    let mut add = |fatal: bool, what: String, advice: &str| {
        findings.push(finding(fatal, &target.site, what, advice));
    };
    let fatal = !target.begun;
    let there = target.tables.iter().find(|there| there.schema == table.schema && there.name == table.name);
    let Some(there) = there else {
        let advice = match (target.begun, makes) {
            (true, _) => "if it does not come by itself, make it: its rows wait, and all behind them",
            (false, true) => {
                "a snapshot of the other site makes it; else make it: its rows wait, and all behind them"
            }
            (false, false) => {
                "make it: `mysqldump --no-data --routines=0 SCHEMA TABLE` at the other site writes the statement"
            }
        };
        return add(fatal && !makes, format!("the table {} is missing", table.full_name()), advice);
    };
    for column in table.columns.iter().filter(|column| !column.generated) {
        if there.column(&column.name).is_none() {
            add(
                fatal,
                format!("{} lacks the column {}", table.full_name(), column.name),
                "add it, as the other site has it",
            );
        }
    }
    if table.is_keyless() && there.is_keyless() {
        if contents(table) != contents(there) {
            let what = format!(
                "{} has other columns here, or such of other types or charsets: without a primary key they tell its rows",
                table.full_name()
            );
            add(fatal, what, "make them the same at both sites, or give it a primary key");
        }
        return;
    }
    if table.is_keyless() != there.is_keyless() {
        let (here, other) = if there.is_keyless() { ("no", "one") } else { ("a", "none") };
        let what =
            format!("{} has {here} primary key here, and {other} at the other site", table.full_name());
        return add(fatal, what, "make it the same at both sites");
    }
    let names = |table: &Table| -> Vec<_> {
        table
            .key_columns()
            .map(|c| (c.name.to_lowercase(), c.data_type.clone(), c.collation.clone()))
            .collect()
    };
    if names(table) != names(there) {
        let what = format!(
            "{} has another primary key here, or one of another type or collation",
            table.full_name()
        );
        add(fatal, what, "make it the same at both sites");
    }
}

/// What tells the rows of a table without a primary key.
fn contents(table: &Table) -> Vec<(&str, &str, Option<&str>, bool)> {
    fn of(column: &Column) -> (&str, &str, Option<&str>, bool) {
        let charset = match column.charset.as_deref() {
            // An older word for it.
            Some("utf8") => Some("utf8mb3"),
            other => other,
        };
        (&column.name, &column.data_type, charset, column.generated)
    }
    let mut all: Vec<_> = table.columns.iter().map(of).collect();
    all.sort_unstable();
    all
}

/// Takes what is ours out of the server; see [`Connector::cleanup`](causeway_core::Connector::cleanup).
///
/// # Errors
///
/// `Retry` and `Setup`.
pub(crate) async fn cleanup(config: &MysqlConfig, site: Site) -> Result<u64> {
    let (action, label) = ("clean up", config.server(site).label());
    let mut conn = connect(config.server(site)).await?;
    refuse_read_only(&mut conn, &label, action).await?;
    let name = names::row(&config.link, &config.channel);
    let sql = format!("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '{SCHEMA}'");
    let ours: Option<u64> = in_time(action, &label, conn.query_first(sql)).await?;
    if ours == Some(0) {
        return Ok(0);
    }
    let (mut removed, mut left) = (0, 0);
    for table in [APPLIED, WATERMARK, GONE] {
        run(&mut conn, &label, action, format!("DELETE FROM {SCHEMA}.{table} WHERE name = '{name}'")).await?;
        removed += conn.affected_rows();
        let count: Option<u64> =
            in_time(action, &label, conn.query_first(format!("SELECT COUNT(*) FROM {SCHEMA}.{table}")))
                .await?;
        left += count.unwrap_or(0);
    }
    if left == 0 {
        run(&mut conn, &label, action, format!("DROP DATABASE {SCHEMA}")).await?;
    }
    Ok(removed)
}
