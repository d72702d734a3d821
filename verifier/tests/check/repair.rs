//! `verifier repair` where it may or can not: nothing is changed then. Stories repair for real.

use crate::support::{Answer, Pair, run, verifier};

fn repair(pair: &Pair, top: &str, arguments: &[&str]) -> Answer {
    let path = pair.config(top, "");
    verifier(&[&["repair", "--config", path.to_str().unwrap()], arguments].concat())
}

#[test]
fn a_repair_says_first_what_it_would_do() {
    let Some(mut pair) = Pair::start() else { return };
    pair.both("MSET a 1 b 2 c 3");
    let answer = repair(&pair, "", &["--from", "dc"]);
    assert!(answer.code == 0 && answer.stdout.contains("0 keys to repair"), "{}", answer.stdout);
    run(&mut pair.sites[1], "SET b other");
    run(&mut pair.sites[1], "SET new 1");
    run(&mut pair.sites[1], "DEL c");
    let answer = repair(&pair, "", &["--from", "dc"]);
    for line in [
        "3 keys to repair, as they are at dc",
        "content   db0 b",
        "missing   db0 new",
        "extra     db0 c",
        "say --yes",
    ] {
        assert!(answer.stdout.contains(line), "{line}: {}", answer.stdout);
    }
    assert_eq!(answer.code, 1);
    let json = repair(&pair, "", &["--from", "cloud", "--json"]).json();
    assert_eq!((&json["done"], &json["channels"][0]["keys"]), (&false.into(), &3.into()));
    assert_eq!(json["check"]["different"], 3);
    // Of an earlier report, what still differs.
    let report = pair.folder.path().join("report.json");
    std::fs::write(&report, pair.check(&[]).stdout).unwrap();
    run(&mut pair.sites[1], "SET b 2");
    run(&mut pair.sites[1], "SET later 1");
    let answer = repair(&pair, "", &["--from", "dc", "--report", report.to_str().unwrap()]);
    assert!(
        answer.stdout.contains("2 keys to repair") && !answer.stdout.contains("later"),
        "{}",
        answer.stdout
    );
    let of_another = std::fs::read_to_string(&report).unwrap().replace("\"dc-cloud\"", "\"other\"");
    for (text, told) in [
        (of_another.as_str(), "the report is of the link other"),
        ("{}", "allowed is what"),
        ("", "allowed is what"),
    ] {
        std::fs::write(&report, text).unwrap();
        let answer = repair(&pair, "", &["--from", "dc", "--report", report.to_str().unwrap()]);
        assert!(answer.code == 2 && answer.stderr.contains(told), "{} {}", answer.code, answer.stderr);
    }
    // Nothing was changed.
    assert_eq!(pair.check(&[]).differences().len(), 3);
    assert_eq!(run(&mut pair.sites[1], "EXISTS new later c"), redis::Value::Int(2));
}

#[test]
fn what_may_not_be_repaired_is_told() {
    let Some(mut pair) = Pair::start() else { return };
    pair.both("MSET {0..400:v}");
    run(&mut pair.sites[1], "MSET {0..150:w}");
    for (top, arguments, code, text) in [
        ("", &["--from", "nowhere"][..], 2, "--from nowhere: allowed is dc, cloud, newest or owner"),
        ("", &["--from", "dc", "--yes"], 3, "set `[api]`"),
        (
            "[api]\nlisten = \"127.0.0.1:1\"",
            &["--from", "dc"],
            2,
            "37.5 % of the keys differ, allowed are 5 %",
        ),
        (
            "[api]\nlisten = \"127.0.0.1:1\"",
            &["--from", "dc", "--keys-max", "99"],
            2,
            "150 keys differ, allowed are 99",
        ),
        (
            "[api]\nlisten = \"127.0.0.1:1\"",
            &["--from", "dc", "--share-max", "50", "--yes"],
            3,
            "no daemon takes the repair of channel tags",
        ),
    ] {
        let answer = repair(&pair, top, arguments);
        assert!(
            answer.code == code && answer.stderr.contains(text),
            "{} {} {}",
            answer.code,
            answer.stderr,
            answer.stdout
        );
    }
    assert_eq!(pair.check(&[]).differences().len(), 150);
}
