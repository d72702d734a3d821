//! The change log in Kafka, a broker for each site: brokers, stores and the daemon die, and a daemon that slept while
//! another one took over wakes up.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_stories::proxy::Proxy;
use causeway_stories::{
    DRAIN, Link, Setup, durable, kafkas_own, log_in_kafka, program, seed, servers, story_seconds,
};
use causeway_testkit::kafka::{self, KafkaServer, kafka_home};
use causeway_testkit::servers::free_port;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::{DirectionStatus, Phase, Status};

/// Brokers of this story alone, and a link over them.
fn link() -> Result<Option<([KafkaServer; 2], Link)>> {
    link_with(Default::default())
}

/// The same, with brokers that are set up so.
fn link_with(options: [kafka::Options; 2]) -> Result<Option<([KafkaServer; 2], Link)>> {
    if !servers() || kafka_home().is_none() {
        return Ok(None);
    }
    let brokers = KafkaServer::start_both(options)?;
    let tables = log_in_kafka(&brokers[0], &brokers[1]);
    let link = Link::new([durable(), durable()], &Setup { tables, ..Setup::default() })?;
    Ok(Some((brokers, link)))
}

/// FF24, FF44: whatever dies and whenever, no increment and no element is lost or there twice.
#[test]
fn every_write_arrives_once_while_brokers_stores_and_the_daemon_die() -> Result<()> {
    let Some((brokers, link)) = link()? else { return Ok(()) };
    whatever_dies(brokers, link)
}

/// The same with a daemon for each site, of which one dies at a time: they know of each other what the logs say.
#[test]
fn every_write_arrives_once_with_a_daemon_for_each_site() -> Result<()> {
    let Some((brokers, mut link)) = link()? else { return Ok(()) };
    link.part()?;
    whatever_dies(brokers, link)
}

fn whatever_dies(mut brokers: [KafkaServer; 2], mut link: Link) -> Result<()> {
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let lasts = story_seconds(25);
    link.start()?;
    let writers = link.traffic(seed, 700);
    let end = Instant::now() + lasts;
    let mut deaths = [0; 6];
    // Each of them dies at least once.
    let mut first: Vec<usize> = (0..6).collect();
    while Instant::now() < end || !first.is_empty() {
        std::thread::sleep(Duration::from_millis(random.random_range(300..3_000)));
        let who = first.pop().unwrap_or_else(|| random.random_range(0..6_usize));
        deaths[who] += 1;
        let down = Duration::from_millis(random.random_range(0..2_000));
        match who {
            0 | 1 => {
                brokers[who].kill();
                std::thread::sleep(down);
                brokers[who].restart()?;
            }
            2 | 3 => {
                link.stores[who - 2].kill9();
                std::thread::sleep(down);
                link.stores[who - 2].restart()?;
            }
            4 => {
                let site = if link.is_apart() { random.random_range(0..2) } else { 0 };
                link.kill_at(site)?;
                std::thread::sleep(down);
                link.start_at(site)?;
            }
            _ => {
                // Longer than a broker waits for its own session.
                brokers[0].suspend();
                std::thread::sleep(down + Duration::from_secs(4));
                brokers[0].resume();
            }
        }
    }
    println!(
        "died: brokers {:?}, stores {:?}, syncd {}, froze {}",
        &deaths[..2],
        &deaths[2..4],
        deaths[4],
        deaths[5]
    );
    link.prove(writers, DRAIN)
}

/// Each daemon says that the other one is away, and for how long; the other site's writes are there when it is back.
#[test]
fn a_site_whose_daemon_is_away_is_told_of_by_the_other() -> Result<()> {
    let Some((_brokers, mut link)) = link()? else { return Ok(()) };
    link.part()?;
    link.start()?;
    let writers = link.traffic(seed(), 300);
    link.wait_until_applied(100, DRAIN)?;
    link.kill_at(1)?;
    let away = |d: &DirectionStatus| {
        let error = d.error.as_deref().unwrap_or_default();
        d.phase != Phase::Streaming && error.contains("cloud: its log has said nothing for")
    };
    link.wait_until_told(0, "away", DRAIN, |s| s.channels[0].directions.iter().all(away))?;
    link.start_at(1)?;
    link.wait_until("heard again", DRAIN, |s| {
        s.channels[0].directions.iter().all(|d| d.phase == Phase::Streaming && d.error.is_none())
    })?;
    // What it has of a snapshot is its own affair.
    let asked = link.syncd(&["snapshot", "--channel", "push"])?;
    ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    link.prove(writers, DRAIN)
}

/// One cluster of three brokers for both sites, every record at two of them at least. Brokers that lead are killed, and
/// one ends by itself as its disk is full: others lead, and writes go on.
#[test]
fn a_leader_that_dies_and_a_full_disk_of_one_broker_cost_time_only() -> Result<()> {
    if !servers() || kafka_home().is_none() {
        return Ok(());
    }
    let options = |file_kib_max| {
        let properties = vec![("offsets.topic.replication.factor".to_owned(), "3".to_owned())];
        kafka::Options { properties, file_kib_max }
    };
    // An index of the metadata takes 10 MiB at once.
    const DISK_KIB: u64 = 12 << 10;
    // The one with the controller stays: who leads is for it to say.
    let first = KafkaServer::start(options(None))?;
    let mut others = [first.join(2, options(None))?, first.join(3, options(Some(DISK_KIB)))?];
    let brokers = format!("{},{},{}", first.brokers(), others[0].brokers(), others[1].brokers());
    let tables = format!(
        "[log]\nkind = \"kafka\"\nreplication = 3\nmin_insync = 2\nbrokers = {{ dc = \"{brokers}\", cloud = \"{brokers}\" }}"
    );
    let mut link = Link::new([durable(), durable()], &Setup { tables, ..Setup::default() })?;
    link.part()?;
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    link.start()?;
    let writers = link.traffic(seed, 500);
    link.wait_until_applied(100, DRAIN)?;
    let mut filling = link.stores[0].connect()?;
    for n in 0..DISK_KIB / 64 {
        // What cannot be compressed.
        let bytes: Vec<u8> = (0..64 << 10).map(|_| random.random()).collect();
        filling.must(&[b"SET", format!("filling:{n}").as_bytes(), &bytes])?;
    }
    let full = Instant::now() + DRAIN;
    while !others[1].has_ended() {
        ensure!(Instant::now() < full, "its disk is not full: {}", others[1].log_end());
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("full: {}", others[1].log_end());
    let applied = |s: &Status| s.channels[0].directions.iter().map(|d| d.applied).sum::<u64>();
    let before = applied(&link.status()?);
    link.wait_until("goes on without it", DRAIN, |s| applied(s) > before + 1_000)?;
    others[1].free_disk();
    others[1].restart()?;
    for dies in &mut others {
        // Else there may be one copy of what was written last.
        std::thread::sleep(Duration::from_secs(4));
        dies.kill();
        std::thread::sleep(Duration::from_millis(random.random_range(0..4_000)));
        dies.restart()?;
    }
    // With one copy left nothing is taken, and nobody says that nothing waits.
    std::thread::sleep(Duration::from_secs(4));
    others.iter_mut().for_each(KafkaServer::kill);
    let waits = |d: &DirectionStatus| {
        d.phase == Phase::Paused && d.error.as_ref().is_some_and(|e| e.contains("the log has not taken"))
    };
    link.wait_until("waits for its log", DRAIN, |s| s.channels[0].directions.iter().any(waits))?;
    for other in &mut others {
        other.restart()?;
    }
    link.prove(writers, DRAIN)
}

/// FF44: each daemon reaches the other site's brokers over a line that takes 3 and 300 ms there and back, loses pieces,
/// stalls both ways and one way, for longer than a connection waits, and breaks. Its own brokers are near.
#[test]
fn a_line_to_brokers_that_delays_stalls_and_breaks_costs_time_only() -> Result<()> {
    let far = [free_port()?, free_port()?];
    let lines = [Proxy::plain(far[0])?, Proxy::plain(far[1])?];
    let options = [0, 1].map(|site| {
        let (listens, told) = (far[site], lines[site].port());
        let near = "PLAINTEXT://127.0.0.1:@PORT@";
        let controller = "CONTROLLER://127.0.0.1:@CONTROLLER_PORT@";
        let property = |name: &str, value: String| (name.to_owned(), value);
        let properties = vec![
            property("listeners", format!("{near},{controller},LINE://127.0.0.1:{listens}")),
            property("advertised.listeners", format!("{near},LINE://127.0.0.1:{told}")),
            property(
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LINE:PLAINTEXT".to_owned(),
            ),
        ];
        kafka::Options { properties, ..kafka::Options::default() }
    });
    let Some((brokers, mut link)) = link_with(options)? else { return Ok(()) };
    link.part()?;
    for site in [0, 1] {
        let other = 1 - site;
        let of_other = |address: &str| format!("{} = \"{address}\"", ["dc", "cloud"][other]);
        let line = format!("127.0.0.1:{}", lines[other].port());
        link.edit_at(site, &of_other(&brokers[other].brokers()), &of_other(&line))?;
    }
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let lasts = story_seconds(25);
    lines.iter().for_each(|line| line.slow(Duration::from_millis(1), 0));
    link.start()?;
    let writers = link.traffic(seed, 300);
    link.wait_until_applied(100, DRAIN)?;
    let end = Instant::now() + lasts;
    let mut first: Vec<u32> = (0..4).collect();
    while Instant::now() < end || !first.is_empty() {
        let delay = Duration::from_millis([1, 150][random.random_range(0..2_usize)]);
        lines.iter().for_each(|line| line.slow(delay, 5));
        std::thread::sleep(Duration::from_millis(random.random_range(500..3_000)));
        let pause = Duration::from_millis(random.random_range(500..7_000));
        match first.pop().unwrap_or_else(|| random.random_range(0..4)) {
            0 => lines.iter().for_each(Proxy::cut),
            1 => {
                lines.iter().for_each(|line| line.stall(true));
                std::thread::sleep(pause);
            }
            to_server @ (2 | 3) => {
                // Of both lines at once: what goes from one site to the other.
                lines[0].stall_one_way(to_server == 2, true);
                lines[1].stall_one_way(to_server == 3, true);
                std::thread::sleep(pause);
            }
            _ => {}
        }
        lines.iter().for_each(|line| line.stall(false));
    }
    lines.iter().for_each(|line| line.slow(Duration::from_millis(1), 0));
    link.prove(writers, DRAIN)
}

/// FF40: a site was away for so long that what the other one wrote is deleted in Kafka: that is a gap, which a snapshot
/// closes, and nothing is passed over.
#[test]
fn what_was_deleted_while_a_site_was_away_is_a_gap() -> Result<()> {
    let Some((brokers, mut link)) = link()? else { return Ok(()) };
    link.part()?;
    link.start()?;
    let writers = link.traffic(seed(), 300);
    link.wait_until_applied(100, DRAIN)?;
    link.kill_at(1)?;
    let gaps = || link.metric("causeway_gaps_total", "dc");
    ensure!(gaps()? == 0.0, "there was a gap before");
    std::thread::sleep(Duration::from_secs(3));
    // All that is there.
    let all = r#"{"version":1,"partitions":[{"topic":"causeway.story.push.dc","partition":0,"offset":-1}]}"#;
    let file = link.dir().join("delete.json");
    std::fs::write(&file, all)?;
    let mut delete = kafkas_own("DeleteRecordsCommand", &brokers[0].brokers())?;
    let deleted = delete.arg("--offset-json-file").arg(&file).output()?;
    ensure!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stdout));
    link.start_at(1)?;
    let end = Instant::now() + DRAIN;
    while link.metric("causeway_gaps_total", "dc")? == 0.0 {
        ensure!(Instant::now() < end, "no gap is counted\n{}", link.log_end());
        std::thread::sleep(Duration::from_millis(100));
    }
    link.prove(writers, DRAIN)
}

/// Each of two daemons sees one server only, and the other's log tells that it is the same: nothing is done twice.
#[test]
fn the_same_server_at_both_sites_is_found_by_a_daemon_for_each() -> Result<()> {
    let Some((_brokers, mut link)) = link()? else { return Ok(()) };
    link.part()?;
    let road = Proxy::plain(link.stores[0].port())?;
    link.move_to(1, &road.url())?;
    link.start_at(0)?;
    let mut connection = link.stores[0].connect()?;
    let mut count = |times: u64| -> Result<()> {
        for _ in 0..times {
            connection.must(&["INCR", "counter"])?;
        }
        Ok(())
    };
    count(100)?;
    link.wait_until_told(0, "captured", DRAIN, |s| {
        s.channels[0].directions.iter().any(|d| d.snapshot.done > 0 || d.captured_per_second > 0.0)
    })?;
    link.start_at(1)?;
    count(100)?;
    for site in [0, 1] {
        link.wait_until_told(site, "found", DRAIN, |s| {
            let told = |d: &DirectionStatus| {
                d.error.as_deref().is_some_and(|error| error.contains("the same server"))
            };
            s.channels.iter().flat_map(|channel| &channel.directions).any(told)
        })?;
    }
    count(100)?;
    std::thread::sleep(Duration::from_secs(3));
    let counted = connection.must(&["GET", "counter"])?.text().unwrap_or_default();
    ensure!(counted == "300", "300 times one is {counted}\n{}", link.log_end());
    Ok(())
}

/// FF38: a daemon that sleeps is taken for dead and another one takes over. When it wakes it harms nobody, and says
/// what happened.
#[test]
fn a_daemon_that_wakes_up_after_another_took_over_harms_nothing() -> Result<()> {
    let Some((_brokers, mut link)) = link()? else { return Ok(()) };
    let seed = seed();
    let streams = |s: &Status| s.channels[0].directions.iter().all(|d| d.phase == Phase::Streaming);
    link.start()?;
    let writers = link.traffic(seed, 700);
    link.wait_until_applied(500, DRAIN)?;
    for _ in 0..2 {
        link.signal("STOP")?;
        let asleep = link.take_another_seat()?;
        link.start()?;
        link.wait_until("taken over", DRAIN, streams)?;
        std::thread::sleep(Duration::from_secs(3));
        let awake = link.sit(asleep);
        link.signal("CONT")?;
        link.wait_until("overtaken", DRAIN, |s| {
            let told =
                |error: &Option<String>| error.as_ref().is_some_and(|e| e.contains("another daemon writes"));
            s.channels[0].directions.iter().any(|d| told(&d.error))
        })?;
        // From here on it does nothing more, and the other one is left alone.
        let overtaken = link.sit(awake);
        std::thread::sleep(Duration::from_secs(3));
        let applied = |s: &Status| s.channels[0].directions.iter().map(|d| d.applied).sum::<u64>();
        let before = applied(&link.status()?);
        link.wait_until("undisturbed", DRAIN, |s| {
            let sound = s.channels[0].directions.iter().all(|d| d.error.is_none());
            streams(s) && sound && applied(s) > before + 500
        })?;
        let awake = link.sit(overtaken);
        link.stop_in_order()?;
        link.sit(awake);
    }
    link.prove(writers, DRAIN)
}

/// What is in Kafka is for other readers, too: the documented one finds every change in order, and Kafka's own console
/// consumer shows their headers.
#[test]
fn an_application_reads_the_changes_from_kafka() -> Result<()> {
    const CHANGES: u64 = 50;
    let Some((brokers, mut link)) = link()? else { return Ok(()) };
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let mut store = link.stores[0].connect()?;
    for n in 0..CHANGES {
        store.must(&["SET", "device:1", &format!("token {n}")])?;
        store.must(&["HSET", "user:1", "seen", &n.to_string()])?;
        // A daemon that takes over on the way.
        if n == CHANGES / 2 {
            link.kill()?;
            link.start()?;
        }
    }
    // Larger than a record may be.
    store.must(&["SET", "large", &"x".repeat(3 << 20)])?;
    store.must(&["DEL", "device:1"])?;
    link.wait_until_drained(DRAIN)?;

    let (broker, topic) = (brokers[0].brokers(), "causeway.story.push.dc");
    let mut reader = Command::new(program("examples/read_changes")?);
    reader.args([&broker, topic]).stdout(Stdio::piped());
    let lines = read_until(reader, |line| line.contains("delete device:1"))?;
    let seqs: Vec<u64> = lines.iter().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    ensure!(seqs.len() == lines.len() && seqs.is_sorted_by(|one, next| one < next), "not in order: {seqs:?}");
    let tokens = lines.iter().filter(|line| line.contains("device:1") && line.contains("token "));
    for (n, line) in (0..CHANGES).zip(tokens.clone()) {
        ensure!(line.contains(&format!("token {n}")), "{line} stands where {n} was written");
    }
    ensure!(tokens.count() as u64 == CHANGES, "not each change once");
    let longest = lines.iter().map(String::len).max().unwrap_or(0);
    ensure!(longest > 3 << 20, "what was cut in pieces is not put together: {longest} bytes");

    let mut console = kafkas_own("consumer.ConsoleConsumer", &broker)?;
    console.args(["--topic", topic]);
    console.args([
        "--from-beginning",
        "--formatter-property",
        "print.headers=true",
        "--formatter-property",
        "print.key=true",
    ]);
    console.stdout(Stdio::piped()).stderr(Stdio::null());
    let lines = read_until(console, |line| line.contains("op:delete") && line.contains("device:1"))?;
    let sets = lines.iter().filter(|line| line.contains("op:command") && line.contains("\tuser:1\t")).count();
    ensure!(sets as u64 == CHANGES, "the console consumer shows {sets} changes of user:1");
    Ok(())
}

/// The lines of what `command` prints, up to the `last`; then it is killed.
fn read_until(mut command: Command, last: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let (lines, read) = std::sync::mpsc::channel();
    let output = child.stdout.take().context("no output")?;
    std::thread::spawn(move || {
        let lines_of = BufReader::new(output).split(b'\n');
        lines_of
            .map_while(Result::ok)
            .all(|line| lines.send(String::from_utf8_lossy(&line).into_owned()).is_ok())
    });
    let until = Instant::now() + DRAIN;
    let mut found: Vec<String> = Vec::new();
    while found.last().is_none_or(|line| !last(line)) {
        match read.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => found.push(line),
            Err(error) => {
                let _killed = child.kill();
                bail!("{command:?}: {error} after {} lines, the last {:.200?}", found.len(), found.last());
            }
        }
    }
    child.kill()?;
    child.wait()?;
    Ok(found)
}
