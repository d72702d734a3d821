//! The built program: exit codes, what goes to stdout and what to stderr.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod cli_support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cli_support::{Fake, command, config, run, serve};
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    config(folder.path());
    folder
}

#[track_caller]
fn refused(folder: &Path, args: &[&str], code: i32, holds: &str) {
    let (found, out, err) = run(folder, args);
    assert_eq!(found, code, "{args:?}: {out}{err}");
    assert!(err.contains(holds), "{args:?}: {err}");
    assert_eq!(out, "", "{args:?}");
}

#[test]
fn help_is_an_answer_and_bad_use_is_not() {
    let folder = folder();
    let (code, out, _) = run(folder.path(), &["--help"]);
    assert_eq!(code, 0);
    assert!(out.contains("Examples:") && out.contains("dead-letters") && out.contains("Exit codes"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    refused(folder.path(), &[], 2, "Usage");
    refused(folder.path(), &["status", "--colour"], 2, "--colour");
    refused(folder.path(), &["snapshot"], 2, "needs --channel");
    refused(folder.path(), &["pause", "--channel", "x"], 2, "there is tags");
    refused(folder.path(), &["cleanup", "--site", "x"], 2, "there is dc, cloud");
    refused(folder.path(), &["status", "--tenant", "x"], 2, "not in this release");
}

#[test]
fn what_a_later_release_does_is_said() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["tenant", "move", "7", "--to", "cloud"][..], &["doctor"]] {
        refused(folder.path(), args, 2, "is not in this release");
    }
}

#[test]
fn a_bad_configuration_is_answered_with_its_place() {
    let folder = folder();
    let path = folder.path().join("syncd.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    for command in ["run", "check", "status", "cleanup"] {
        std::fs::write(&path, good.replace("direction", "directon")).unwrap();
        refused(folder.path(), &[command], 2, "syncd: syncd.toml:7:1: unknown field `directon`");
    }
    std::fs::write(&path, good.replace("[[channel]]", "[log]\nkind = \"kafka\"\n[[channel]]")).unwrap();
    refused(folder.path(), &["run"], 2, "log.brokers has no brokers of `dc`");
    refused(folder.path(), &["run", "--config", "none.toml"], 2, "none.toml: cannot be read");
}

#[test]
fn one_site_needs_another_log() {
    refused(folder().path(), &["run", "--site", "dc"], 2, "one process serves both sites");
}

#[test]
fn where_no_daemon_answers_that_is_said() {
    let folder = folder();
    for verb in ["status", "pause", "resume", "dead-letters", "conflicts"] {
        refused(
            folder.path(),
            &[verb, "--listen", "127.0.0.1:9"],
            3,
            "no daemon answers at http://127.0.0.1:9",
        );
    }
}

/// `args` against an engine that pretends.
async fn asked(args: &[&str]) -> (i32, String, String) {
    let address = serve(Arc::new(Fake::default())).await.to_string();
    let args: Vec<String> =
        args.iter().map(|arg| (*arg).to_owned()).chain(["--listen".into(), address]).collect();
    let folder = folder();
    tokio::task::spawn_blocking(move || {
        run(folder.path(), &args.iter().map(String::as_str).collect::<Vec<_>>())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn answers_are_text_for_a_person_and_json_for_a_program() {
    let (code, out, err) = asked(&["status"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    for expected in [
        "link l: dc <-> cloud",
        "tags",
        "snapshot: 5 of 10 keys (50 %), 1/s, 5 s left",
        "held: FLUSHALL",
        "warning: dc: SCAN mode",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(!out.contains('\x1b'), "colour where there is no terminal: {out}");
    let (code, out, _) = asked(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["channels"][0]["directions"][0]["phase"]), (0, &json!("snapshot")));

    let (code, out, _) = asked(&["dead-letters"]).await;
    assert!(code == 0 && out.contains("db 3: base64:cHVzaDr/") && out.contains("WRONGTYPE"), "{out}");
    let (code, out, _) = asked(&["dead-letters", "--channel", "tags", "--json"]).await;
    let page: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &page["dead_letters"][0]["seq"], &page["next"]), (0, &json!(4711), &Value::Null));
    let ids = |page: &Value| {
        page["dead_letters"].as_array().unwrap().iter().map(|l| l["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&page), [9, 8, 7]);
    let (_, out, _) = asked(&["dead-letters", "list", "--limit", "1", "--json"]).await;
    assert_eq!(ids(&serde_json::from_str(&out).unwrap()), [9]);
    let (code, out, _) = asked(&["dead-letters", "ack", "7", "8"]).await;
    assert_eq!((code, out.as_str()), (0, "2 acknowledged\n"));
    let (code, out, _) = asked(&["dead-letters", "ack", "--all", "--json"]).await;
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (0, json!({ "acknowledged": 3 })));
    let (code, _, err) = asked(&["dead-letters", "ack", "6"]).await;
    assert_eq!(
        (code, err.as_str()),
        (1, "syncd: no dead letter 6: it was never there, or was acknowledged\n")
    );
    assert_eq!(asked(&["dead-letters", "ack"]).await.0, 2);
    let (code, out, _) = asked(&["conflicts", "--json"]).await;
    let expected = json!([{ "channel": "tags", "from": "dc", "to": "cloud", "conflicts": 7 }]);
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (0, expected));
}

#[tokio::test]
async fn conflicts_are_listed_and_shown() {
    let (code, out, err) = asked(&["conflicts", "list"]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("2026-03-01T02:00:01Z") && out.contains("db 3: base64:cHVzaDr/"), "{out}");
    assert!(out.contains("3 more were decided") && !out.contains("there are more"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    // The daemon's pages are smaller than what is asked for.
    let (code, out, _) = asked(&["conflicts", "list", "--limit", "9", "--json"]).await;
    let page: Value = serde_json::from_str(&out).unwrap();
    let ids: Vec<_> = page["conflicts"].as_array().unwrap().iter().map(|entry| entry["id"].clone()).collect();
    assert_eq!((code, ids, &page["next"]), (0, (2..=10).rev().map(Value::from).collect(), &json!(2)));
    let (code, out, _) = asked(&["conflicts", "show", "7"]).await;
    assert!(code == 0 && out.contains("kept: the write of cloud stands"), "{out}");
    assert!(out.contains("none, the key is absent") && out.contains("0123456789abcdef"), "{out}");
    let (code, out, _) = asked(&["conflicts", "show", "7", "--json"]).await;
    assert_eq!((code, &serde_json::from_str::<Value>(&out).unwrap()["sides"][0]["seq"]), (0, &json!(107)));
    for (args, code, holds) in [
        (&["conflicts", "show", "11"][..], 1, "no conflict 11"),
        (&["conflicts", "show", "x"], 2, "invalid digit"),
        (&["conflicts", "list", "--since", "noon"], 2, "allowed is RFC 3339"),
        (&["conflicts", "list", "--limit", "0"], 2, "0 is not in"),
        (&["conflicts", "list", "--channel", "x"], 2, "there is tags"),
    ] {
        let (found, out, err) = asked(args).await;
        assert!(found == code && err.contains(holds) && out.is_empty(), "{args:?}: {found} {out}{err}");
    }
}

#[test]
fn the_help_of_conflicts_has_examples_and_fits() {
    let folder = folder();
    for args in [&["conflicts", "--help"][..], &["conflicts", "list", "--help"]] {
        let (code, out, _) = run(folder.path(), args);
        assert!(code == 0 && out.contains("syncd conflicts list --since 2h"), "{out}");
        assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    }
}

#[tokio::test]
async fn the_engines_answer_decides_the_exit_code() {
    for (args, code, holds) in [
        (&["pause", "--channel", "tags"][..], 0, ""),
        (&["resume", "--held", "drop"], 0, ""),
        (&["resume"], 1, "syncd: a FLUSHALL is held"),
        (&["snapshot", "--channel", "tags"], 3, "the log is full"),
        (&["cleanup"], 3, "stop it first"),
    ] {
        let (found, out, err) = asked(args).await;
        assert_eq!(found, code, "{args:?}: {out}{err}");
        assert!(err.contains(holds), "{args:?}: {err}");
    }
}

#[test]
fn check_and_cleanup_say_which_server_is_out_of_reach() {
    let folder = folder();
    let (code, out, err) = run(folder.path(), &["check"]);
    assert!(code == 3 && out.contains("channel tags") && out.contains("127.0.0.1:1"), "{code} {out}{err}");
    let (code, out, err) = run(folder.path(), &["check", "--json"]);
    let checked: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &checked["ok"]), (3, &json!(false)), "{err}");
    let (code, _, err) = run(folder.path(), &["cleanup", "--listen", "127.0.0.1:9"]);
    assert!(code == 3 && err.contains("127.0.0.1:1"), "{code} {err}");
}

/// A running `syncd run`; killed when dropped.
struct Daemon {
    child: Child,
    address: String,
}

impl Daemon {
    fn start(folder: &Path) -> Daemon {
        let mut command = command(folder, &["run", "--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("listening on http://").and_then(|rest| rest.strip_suffix('/'));
        Daemon { address: address.unwrap_or_else(|| panic!("{line:?}")).to_owned(), child }
    }

    fn stop(mut self, signal: &str) -> (Option<i32>, Duration) {
        let started = Instant::now();
        assert!(
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success()
        );
        (self.child.wait().unwrap().code(), started.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_signal_ends_the_daemon_with_0_within_ten_seconds() {
    for signal in ["-TERM", "-INT"] {
        let folder = folder();
        let (code, took) = Daemon::start(folder.path()).stop(signal);
        assert_eq!(code, Some(0), "{signal}");
        assert!(took < Duration::from_secs(10), "{signal} took {took:?}");
    }
}

#[test]
fn a_folder_or_port_in_use_is_said() {
    let folder = folder();
    let first = Daemon::start(folder.path());
    let (code, _, err) = run(folder.path(), &["run", "--listen", "127.0.0.1:0"]);
    assert!(code == 3 && err.contains("in use by process"), "{code} {err}");
    let (code, _, err) = run(folder.path(), &["run", "--listen", &first.address]);
    assert!(code == 3 && err.contains("cannot listen on"), "{code} {err}");
    refused(folder.path(), &["cleanup", "--listen", &first.address], 3, "stop it first");
    refused(folder.path(), &["cleanup", "--listen", "127.0.0.1:9"], 3, "in use by process");
    let (code, out, err) = run(folder.path(), &["status", "--json", "--listen", &first.address]);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["channels"][0]["name"]), (0, &json!("tags")), "{err}");
}
