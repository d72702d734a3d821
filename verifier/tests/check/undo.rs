//! `verifier undo`: a repair from the wrong site is taken back, where nobody wrote since.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use redis::{Connection, Value};
use serde_json::Value as Json;

use crate::daemon::Daemon;
use crate::mutations::{fill, fill_streams, plant, plant_streams};
use crate::support::{Answer, Pair, run, verifier};

/// A pair with a daemon that carries keys as a repair asks for.
struct Repaired {
    pair: Pair,
    daemon: Daemon,
}

impl Repaired {
    fn start() -> Option<Repaired> {
        let pair = Pair::start()?;
        let mut sites = [pair.servers[0].connect(), pair.servers[1].connect()];
        let data = pair.folder.path().join("data");
        let daemon = Daemon::start(move |body| {
            let [dc, cloud] = &mut sites;
            let (from, to) = if body["from"] == "dc" { (dc, cloud) } else { (cloud, dc) };
            let kept = kept_in(&data);
            for key in body["keys"].as_array().unwrap() {
                // What is to be overwritten is in the file by now.
                assert!(
                    kept.as_ref().is_none_or(|kept| kept.contains(&format!("\"key\":{},", key["key"]))),
                    "{key}"
                );
                carry(from, to, key);
            }
        });
        Some(Repaired { pair, daemon })
    }

    fn config(&self) -> PathBuf {
        self.pair.config(&self.daemon.config(), "")
    }

    fn verifier(&self, command: &str, arguments: &[&str]) -> Answer {
        let path = self.config();
        verifier(&[&[command, "--config", path.to_str().unwrap()], arguments].concat())
    }

    /// Repairs from `dc`; the undo file.
    fn repair(&self, arguments: &[&str]) -> PathBuf {
        let fixed = ["--from", "dc", "--yes", "--json", "--share-max", "100"];
        let answer = self.verifier("repair", &[&fixed, arguments].concat());
        assert_eq!(answer.code, 0, "{} {}", answer.stdout, answer.stderr);
        answer.json()["undo"].as_str().unwrap().into()
    }

    fn undo(&self, file: &Path, arguments: &[&str]) -> Answer {
        self.verifier("undo", &[&[file.to_str().unwrap()], arguments].concat())
    }

    /// What `check` says of each key that differs, with digests.
    fn differences(&self) -> Json {
        self.pair.check(&[]).json()["differences"].clone()
    }
}

/// What the undo file in `folder` holds, if there is one.
fn kept_in(folder: &Path) -> Option<String> {
    let file = std::fs::read_dir(folder).ok()?.next()?.unwrap();
    Some(std::fs::read_to_string(file.path()).unwrap())
}

fn carry(from: &mut Connection, to: &mut Connection, key: &Json) {
    use base64::Engine;
    let name = match key["key"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => {
            base64::engine::general_purpose::STANDARD.decode(key["key"]["base64"].as_str().unwrap()).unwrap()
        }
    };
    for site in [&mut *from, &mut *to] {
        redis::cmd("SELECT").arg(key["db"].as_u64().unwrap()).exec(site).unwrap();
    }
    let payload: Option<Vec<u8>> = redis::cmd("DUMP").arg(&name).query(from).unwrap();
    let Some(payload) = payload else { return redis::cmd("DEL").arg(&name).exec(to).unwrap() };
    let expire_at: i64 = redis::cmd("PEXPIRETIME").arg(&name).query(from).unwrap();
    let restore = redis::cmd("RESTORE")
        .arg(&name)
        .arg(expire_at.max(0))
        .arg(payload)
        .arg("REPLACE")
        .arg("ABSTTL")
        .take();
    restore.exec(to).unwrap();
}

/// What a site holds, key by key: as the server packs it, or where it does that in any order as the server sums it up; and the
/// expire-at time.
fn held(site: &mut Connection, keys: &[(String, String)]) -> Vec<Value> {
    let mut all = Vec::new();
    for (key, _) in keys {
        let encoding: Result<String, _> = redis::cmd("OBJECT").arg("ENCODING").arg(key).query(site);
        let is_sorted = !encoding.is_ok_and(|encoding| encoding == "hashtable" || encoding == "skiplist");
        let line = if is_sorted { format!("DUMP {key}") } else { format!("DEBUG DIGEST-VALUE {key}") };
        all.push(run(site, &line));
        all.push(run(site, &format!("PEXPIRETIME {key}")));
    }
    all
}

#[test]
fn what_a_repair_overwrote_is_put_back_of_each_type_and_encoding() {
    let Some(mut it) = Repaired::start() else { return };
    fill(&mut it.pair);
    fill_streams(&mut it.pair);
    let mut keys = plant(&mut it.pair);
    keys.extend(plant_streams(&mut it.pair));
    for site in &mut it.pair.sites {
        redis::cmd("SET").arg(b"\xff\x00").arg("v").exec(site).unwrap();
    }
    redis::cmd("SET").arg(b"\xff\x00").arg("w").exec(&mut it.pair.sites[1]).unwrap();
    run(&mut it.pair.sites[1], "SELECT 5");
    run(&mut it.pair.sites[1], "SET in5 v");
    run(&mut it.pair.sites[1], "SELECT 0");
    let (differed, held_before) = (it.differences(), held(&mut it.pair.sites[1], &keys));
    let count = keys.len() as u64 + 2;
    assert_eq!(differed.as_array().unwrap().len() as u64, count);

    let file = it.repair(&[]);
    assert_eq!(it.differences(), Json::Array(vec![]));
    assert!(file.starts_with(it.pair.folder.path().join("data")), "{}", file.display());
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let plan = it.undo(&file, &["--json"]);
    assert_eq!(plan.code, 1, "{}", plan.stderr);
    let told = &plan.json()["channels"][0];
    assert_eq!((&told["keys"], &told["back"]), (&count.into(), &count.into()), "{told}");
    // Those that only the overwritten site lacked.
    assert_eq!(told["deleted"], 1);
    assert_eq!(it.differences(), Json::Array(vec![]), "a plan changes nothing");

    let done = it.undo(&file, &["--yes", "--json"]);
    let told = done.json();
    assert_eq!(told["channels"][0]["back"], count, "{told} {}", done.stderr);
    assert_eq!(held(&mut it.pair.sites[1], &keys), held_before);
    assert_eq!(it.differences(), differed);
    // Nobody carried it on here.
    assert_eq!((done.code, &told["channels"][0]["different"]), (1, &count.into()));

    // Once more: there is nothing left to do, and nothing is kept again.
    let again = it.undo(&file, &["--yes", "--json"]).json();
    assert_eq!((&again["channels"][0]["as_before"], &again["undo"]), (&count.into(), &Json::Null), "{again}");
    // And the undo is taken back by what it kept itself.
    let back = it.undo(Path::new(told["undo"].as_str().unwrap()), &["--yes", "--json"]);
    assert_eq!((back.code, &back.json()["channels"][0]["back"]), (0, &count.into()), "{}", back.stderr);
    assert_eq!(it.differences(), Json::Array(vec![]));
}

#[test]
fn what_somebody_wrote_since_the_repair_stays() {
    let Some(mut it) = Repaired::start() else { return };
    it.pair.both("MSET a right b right c right d right e right");
    run(&mut it.pair.sites[1], "MSET a old b old c old d old f old g old");
    run(&mut it.pair.sites[1], "DEL e");
    run(&mut it.pair.sites[0], "SET d right PX 900");
    let file = it.repair(&[]);
    let cloud = &mut it.pair.sites[1];
    // Written, of the same content with another expire-at, made again; and one that nobody wrote expires.
    run(cloud, "SET b newer");
    run(cloud, "EXPIRE c 1000");
    run(cloud, "SET g newer");
    run(cloud, "APPEND e more");
    std::thread::sleep(std::time::Duration::from_millis(1000));
    let plan = it.undo(&file, &[]);
    for line in [
        "channel tags: 3 keys at cloud to put back: they will hold again what they held",
        "before the repair from dc of 2",
        "4 were changed since, and stay as they are",
        "written at cloud like by any client: goes on to dc, and replaces what that holds",
        "put back  db0 a",
        "changed   db0 b",
        "put back  db0 d",
        "say --yes to do it",
    ] {
        assert!(plan.stdout.contains(line), "{line}: {}", plan.stdout);
    }
    assert!(!plan.stdout.contains("right") && !plan.stdout.contains("newer"), "{}", plan.stdout);
    let done = it.undo(&file, &["--yes"]);
    assert!(
        done.stdout.contains("3 keys at cloud hold again") && done.code == 1,
        "{} {}",
        done.stdout,
        done.stderr
    );
    assert!(done.stdout.contains("to take it back: verifier undo --config"), "{}", done.stdout);
    let all: Vec<Option<String>> =
        redis::cmd("MGET").arg(&["a", "b", "c", "d", "e", "f", "g"]).query(&mut it.pair.sites[1]).unwrap();
    let all: Vec<&str> = all.iter().map(|one| one.as_deref().unwrap_or("-")).collect();
    assert_eq!(all, ["old", "newer", "right", "old", "rightmore", "old", "newer"]);
}

/// As a repair from the newest leaves it.
#[test]
fn one_file_may_have_keys_of_both_sites() {
    let Some(mut it) = Repaired::start() else { return };
    run(&mut it.pair.sites[0], "MSET a of-dc b of-dc");
    run(&mut it.pair.sites[1], "MSET a of-cloud b of-cloud");
    let differed = it.differences();
    let file = it.repair(&[]);
    let repaired = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = repaired.lines().collect();
    // `b` goes the other way, as if that had been one repair.
    it.undo(&file, &["--yes", "--no-undo"]);
    assert_eq!(it.differences(), differed);
    let other = it.pair.folder.path().join("other.jsonl");
    let report = it.pair.folder.path().join("report.json");
    let mut listed = it.pair.check(&[]).json();
    listed["differences"].as_array_mut().unwrap().retain(|one| one["key"] == "b");
    std::fs::write(&report, listed.to_string()).unwrap();
    let arguments = [
        "--from",
        "cloud",
        "--yes",
        "--share-max",
        "100",
        "--report",
        report.to_str().unwrap(),
        "--undo",
        other.to_str().unwrap(),
    ];
    assert_eq!(it.verifier("repair", &arguments).code, 0);
    run(&mut it.pair.sites[1], "SET a of-dc");
    let both = it.pair.folder.path().join("both.jsonl");
    let of_b = std::fs::read_to_string(&other).unwrap();
    std::fs::write(&both, format!("{}\n{}\n{}\n", lines[0], lines[1], of_b.lines().nth(1).unwrap())).unwrap();
    assert_eq!(it.differences(), Json::Array(vec![]));
    let told = it.undo(&both, &["--yes"]);
    assert!(told.stdout.contains("2 keys at cloud and dc hold again"), "{} {}", told.stdout, told.stderr);
    assert_eq!(it.differences(), differed);
}

#[test]
fn what_cannot_be_kept_is_not_overwritten() {
    let Some(mut it) = Repaired::start() else { return };
    it.pair.both("MSET small right large right");
    run(&mut it.pair.sites[1], "SET small old");
    run(&mut it.pair.sites[1], "SET large {20M}");
    let chosen = it.pair.folder.path().join("chosen.jsonl");
    let arguments = [
        "--from",
        "dc",
        "--yes",
        "--share-max",
        "100",
        "--undo-value-max",
        "1MiB",
        "--undo",
        chosen.to_str().unwrap(),
    ];
    let answer = it.verifier("repair", &arguments);
    assert!(
        answer.code == 1 && answer.stdout.contains("1 of them too large to be kept"),
        "{} {}",
        answer.stdout,
        answer.stderr
    );
    assert!(answer.stderr.contains("is kept in") && chosen.exists(), "{}", answer.stderr);
    assert_eq!(it.pair.check(&[]).differences(), [("large".to_owned(), "content".to_owned())]);
    // An undo file is never overwritten, and where none can be written nothing is.
    run(&mut it.pair.sites[1], "SET small older");
    let answer = it.verifier("repair", &arguments);
    assert!(
        answer.code == 2 && answer.stderr.contains("exists already"),
        "{} {}",
        answer.code,
        answer.stderr
    );
    let nowhere = chosen.join("below/a/file.jsonl");
    let answer = it.verifier("repair", &["--from", "dc", "--yes", "--undo", nowhere.to_str().unwrap()]);
    assert!(
        answer.code == 3 && answer.stderr.contains("make the undo file"),
        "{} {}",
        answer.code,
        answer.stderr
    );
    assert_eq!(run(&mut it.pair.sites[1], "GET small"), Value::BulkString(b"older".to_vec()));
    // Whoever wants none gets none.
    let answer = it.verifier("repair", &["--from", "dc", "--yes", "--json", "--no-undo"]);
    assert_eq!((answer.code, &answer.json()["undo"]), (0, &Json::Null), "{}", answer.stderr);
    assert!(!it.pair.folder.path().join("data").exists());
}

#[test]
fn a_file_that_is_none_of_this_link_s_is_refused() {
    let Some(mut it) = Repaired::start() else { return };
    it.pair.both("MSET a right b right");
    run(&mut it.pair.sites[1], "MSET a old b old");
    let file = it.repair(&[]);
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let path = it.pair.folder.path().join("file.jsonl");
    let undo = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let answer = it.undo(&path, &["--yes"]);
        (answer.code, answer.stderr)
    };
    for (text, told) in [
        (whole.replace("\"dc-cloud\"", "\"other\""), "undo file of another link: it is of other"),
        (
            whole.replace("\"cloud\"", "\"moon\""),
            "keys of the site moon, the configuration's are dc and cloud",
        ),
        (whole.replace("\"tags\"", "\"gone\""), "no channel `gone`"),
        (format!("{}\ngarbage\n{}\n", lines[0], lines[1]), "file.jsonl:2: no line of an undo file"),
        (String::new(), "line 1 is no header"),
        (lines[0][..20].to_owned(), "line 1 is no header"),
        (lines[1].to_owned(), "line 1 is no header"),
    ] {
        let (code, stderr) = undo(&text);
        assert!(code == 2 && stderr.contains(told), "{code} {stderr}");
    }
    let missing = it.undo(Path::new("no/such/file"), &[]);
    assert!(missing.code == 2 && missing.stderr.contains("no/such/file"), "{}", missing.stderr);
    // One that a crash has cut is as good as its whole lines.
    let (code, stderr) = undo(&whole[..whole.len() - 10]);
    assert!(code == 1 && stderr.contains("the last line of") && stderr.contains("is cut"), "{code} {stderr}");
    let all: Vec<String> = redis::cmd("MGET").arg(&["a", "b"]).query(&mut it.pair.sites[1]).unwrap();
    assert_eq!(all, ["old", "right"]);
    // A server that is away.
    let config = it.pair.config_at(
        "",
        "",
        &format!("{{ url = \"redis://127.0.0.1:{}\" }}", it.pair.servers[0].port),
        "{ url = \"redis://127.0.0.1:1\" }",
    );
    let away = verifier(&["undo", "--config", config.to_str().unwrap(), file.to_str().unwrap(), "--yes"]);
    assert!(away.code == 3 && away.stderr.contains("cloud (127.0.0.1:1)"), "{} {}", away.code, away.stderr);
}
