//! Several daemons of a site share its channels as members of a group in its Kafka: they die, sleep, leave and come, and
//! every channel goes on.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use causeway_stories::{DRAIN, Seat, durable, log_in_kafka, seed, servers, story_seconds};
use causeway_testkit::data::{Traffic, TrafficOptions, judge};
use causeway_testkit::kafka::{KafkaServer, kafka_home};
use causeway_testkit::servers::RedisServer;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::{ChannelState, ChannelStatus, Phase, Status};

const SITES: [&str; 2] = ["dc", "cloud"];
/// As short as a broker allows; whoever is silent for longer is replaced.
const SESSION: Duration = Duration::from_secs(6);

/// Two sites with a broker each, some channels between them, and the daemons of each site.
struct Sites {
    brokers: [KafkaServer; 2],
    stores: Vec<[RedisServer; 2]>,
    daemons: [Vec<Seat>; 2],
}

impl Sites {
    /// `None`: what it needs is not here.
    fn start(channels: usize, daemons: [usize; 2]) -> Result<Option<Sites>> {
        if !servers() || kafka_home().is_none() {
            return Ok(None);
        }
        let brokers = KafkaServer::start_both(Default::default())?;
        let pair = |_| -> Result<_> { Ok([RedisServer::start(durable())?, RedisServer::start(durable())?]) };
        let stores: Vec<_> = (0..channels).map(pair).collect::<Result<_>>()?;
        let mut tables = format!(
            "[link]\nname = \"story\"\nsites = [\"dc\", \"cloud\"]\n{}\nclient = {{ \"session.timeout.ms\" = {} }}\n",
            log_in_kafka(&brokers[0], &brokers[1]),
            SESSION.as_millis(),
        );
        for (channel, [dc, cloud]) in stores.iter().enumerate() {
            writeln!(
                tables,
                "[[channel]]\nname = \"{}\"\nstore = \"redis\"\ndirection = \"both\"",
                name(channel)
            )?;
            writeln!(tables, "snapshot = \"both\"\nexisting = \"dc\"")?;
            writeln!(tables, "dc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}", dc.url(), cloud.url())?;
        }
        let mut sites = Sites { brokers, stores, daemons: [Vec::new(), Vec::new()] };
        for (site, count) in daemons.into_iter().enumerate() {
            for _ in 0..count {
                sites.daemons[site].push(Seat::with(&tables)?);
                sites.daemons[site].last_mut().map_or(Ok(()), |seat| seat.start(Some(SITES[site])))?;
            }
        }
        Ok(Some(sites))
    }

    /// A writer at each site of each channel.
    fn traffic(&self, seed: u64, rate: u64) -> Vec<[Traffic; 2]> {
        let start = |(channel, pair): (usize, &[RedisServer; 2])| {
            [0, 1].map(|site| {
                Traffic::start(TrafficOptions {
                    url: pair[site].url(),
                    site: SITES[site].to_owned(),
                    seed: seed + (channel * 2 + site) as u64,
                    rate,
                    filled: None,
                })
            })
        };
        self.stores.iter().enumerate().map(start).collect()
    }

    /// Of one site, every channel as the daemon tells that serves it.
    fn told(&self, site: usize) -> Vec<ChannelStatus> {
        let all = self.daemons[site].iter().filter_map(|seat| seat.status().ok());
        all.flat_map(|status| status.channels).filter(|channel| !channel.directions.is_empty()).collect()
    }

    /// Waits until each channel is served at both sites and is as `wanted` says.
    fn wait(&self, what: &str, wanted: impl Fn(&ChannelStatus) -> bool) -> Result<()> {
        let end = Instant::now() + DRAIN;
        loop {
            let told = [self.told(0), self.told(1)];
            let is_so = |channels: &Vec<ChannelStatus>| {
                let mut names: Vec<_> = channels.iter().filter(|c| wanted(c)).map(|c| &c.name).collect();
                names.sort();
                names.dedup();
                names.len() == self.stores.len()
            };
            if told.iter().all(is_so) {
                return Ok(());
            }
            if Instant::now() > end {
                let logs = self.daemons.iter().flatten().map(Seat::log_end).collect::<Vec<_>>().join("\n\n");
                bail!("{what}: not within {DRAIN:?}: {told:?}\n{logs}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends the writers, waits until all has arrived, counts every write and compares every key.
    fn prove(&self, writers: Vec<[Traffic; 2]>) -> Result<()> {
        let histories: Vec<_> = writers.into_iter().map(|pair| pair.map(Traffic::stop)).collect();
        for _ in 0..3 {
            self.wait("drained", |c| {
                c.directions.iter().all(|d| d.phase == Phase::Streaming && d.lag.changes == Some(0))
            })?;
            std::thread::sleep(Duration::from_millis(700));
        }
        for (channel, (histories, pair)) in histories.iter().zip(&self.stores).enumerate() {
            let verdict = judge(histories, &pair.iter().map(RedisServer::url).collect::<Vec<_>>())?;
            let (increments, elements) = (verdict.increments, verdict.elements);
            println!(
                "{}: {} keys, {increments} increments, {elements} elements",
                name(channel),
                verdict.keys
            );
            ensure!(increments > 0 && elements > 0, "nothing was written");
            ensure!(verdict.wrong.is_empty(), "{}: {}", name(channel), verdict.wrong.join("\n"));
        }
        self.daemons[0][0].verify()
    }
}

fn name(channel: usize) -> String {
    format!("push{channel}")
}

fn streams(channel: &ChannelStatus) -> bool {
    channel.directions.iter().all(|d| d.phase == Phase::Streaming)
}

/// FF24, FF38: members of both groups are killed, sleep until others took over, and are stopped; brokers are killed.
/// Each channel is always taken up by somebody, and no write is lost or there twice.
#[test]
fn channels_go_on_while_the_daemons_that_share_them_die_and_sleep() -> Result<()> {
    let Some(mut sites) = Sites::start(3, [3, 2])? else { return Ok(()) };
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let lasts = story_seconds(25);
    let writers = sites.traffic(seed, 150);
    sites.wait("begun", streams)?;
    // All of them have something to do.
    let idle = |status: &Status| status.channels.iter().all(|channel| channel.directions.is_empty());
    let spread = Instant::now() + DRAIN;
    while sites.daemons.iter().flatten().any(|seat| seat.status().is_ok_and(|status| idle(&status))) {
        ensure!(Instant::now() < spread, "a daemon has nothing to do: {:?}", sites.daemons[0][0].status());
        std::thread::sleep(Duration::from_millis(200));
    }
    let end = Instant::now() + lasts;
    let mut first: Vec<usize> = (0..5).collect();
    while Instant::now() < end || !first.is_empty() {
        let what = first.pop().unwrap_or_else(|| random.random_range(0..5));
        let site = random.random_range(0..2);
        let who = random.random_range(0..sites.daemons[site].len());
        let seat = &mut sites.daemons[site][who];
        println!(
            "{}: daemon {who}: {}",
            SITES[site],
            ["killed", "replaced", "slept", "stopped", "broker"][what]
        );
        match what {
            // Back before the group misses it.
            0 => {
                seat.kill()?;
                std::thread::sleep(Duration::from_millis(random.random_range(0..1_500)));
                seat.start(Some(SITES[site]))?;
            }
            // Never back: another one, with nothing on its disk.
            1 => {
                seat.kill()?;
                let mut new = seat.another()?;
                new.start(Some(SITES[site]))?;
                *seat = new;
            }
            // Others have its channels when it wakes up.
            2 => {
                seat.signal("STOP")?;
                std::thread::sleep(SESSION + Duration::from_secs(3));
                seat.signal("CONT")?;
            }
            3 => {
                let code = seat.terminate()?;
                ensure!(code == Some(0), "exit {code:?}\n{}", seat.log_end());
                seat.start(Some(SITES[site]))?;
            }
            _ => {
                sites.brokers[site].kill();
                std::thread::sleep(Duration::from_millis(random.random_range(0..2_000)));
                sites.brokers[site].restart()?;
            }
        }
        std::thread::sleep(Duration::from_millis(random.random_range(500..3_000)));
    }
    sites.wait("served again", streams)?;
    sites.prove(writers)
}

/// The status names who serves what; what an operator said of a channel is known to the daemon that takes it over.
#[test]
fn a_paused_channel_stays_paused_with_the_daemon_that_takes_it_over() -> Result<()> {
    let Some(mut sites) = Sites::start(1, [2, 1])? else { return Ok(()) };
    let writers = sites.traffic(seed(), 200);
    sites.wait("begun", streams)?;
    let serves = |seat: &Seat| seat.status().is_ok_and(|status| !status.channels[0].directions.is_empty());
    if serves(&sites.daemons[0][1]) {
        sites.daemons[0].swap(0, 1);
    }
    let [serving, standing] = &sites.daemons[0][..] else { bail!("there are two") };
    let both_known = Instant::now() + DRAIN;
    let group = loop {
        let group = standing.status()?.consumer_group.unwrap_or_default();
        if group.members.len() == 2 && group.members.iter().any(|member| member.channels == ["push0"]) {
            break group;
        }
        ensure!(Instant::now() < both_known, "{group:?}");
        std::thread::sleep(Duration::from_millis(200));
    };
    ensure!(group.name == "causeway.story.dc" && group.error.is_none(), "{group:?}");
    let server = serving.status()?.consumer_group.unwrap_or_default().member;
    ensure!(server != group.member, "two daemons have one name: {server}");
    let of = |name: &str| group.members.iter().find(|member| member.name == name);
    ensure!(of(&server).is_some_and(|m| !m.here && m.channels == ["push0"]), "{group:?}");
    ensure!(of(&group.member).is_some_and(|m| m.here && m.channels.is_empty()), "{group:?}");

    // Whoever does not serve it says who does.
    let refused = standing.syncd(&["pause", "--channel", "push0"])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && why.contains(&server), "{why}");
    let shown = standing.syncd(&["status"])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(
        shown.contains(&format!("served by the daemon {server}")) && shown.contains("stands by"),
        "{shown}"
    );

    let paused = serving.syncd(&["pause", "--channel", "push0"])?;
    ensure!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    sites.daemons[0][0].kill()?;
    let end = Instant::now() + DRAIN;
    let taken_over = loop {
        if let Some(channel) =
            sites.daemons[0][1].status()?.channels.pop().filter(|c| !c.directions.is_empty())
            && channel.directions.iter().any(|d| d.from == "dc" && d.captured_per_second > 0.0)
        {
            break channel;
        }
        ensure!(Instant::now() < end, "not taken over\n{}", sites.daemons[0][1].log_end());
        std::thread::sleep(Duration::from_millis(200));
    };
    ensure!(taken_over.state == ChannelState::Paused, "{taken_over:?}");
    let resumed = sites.daemons[0][1].syncd(&["resume", "--channel", "push0"])?;
    ensure!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    sites.daemons[0].remove(0);
    sites.wait("goes on", streams)?;
    sites.prove(writers)
}
