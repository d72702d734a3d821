//! Exit codes, reports, and the ways to reach a server.

use std::process::Command;

use crate::support::{Pair, Server, run, verifier};

#[test]
fn what_cannot_be_used_exits_2_and_says_what_is_allowed() {
    let answer = verifier(&["report", "no/such/file"]);
    assert!(answer.code == 2 && answer.stderr.contains("no/such/file"), "{}", answer.stderr);
    for (arguments, text) in [
        (&["check", "--config", "x", "--from", "yesterday"][..], "30m, 2h, 7d"),
        (&["check", "--config", "x", "--to", "2h"], "--from"),
        (
            &["check", "--config", "x", "--from", "2026-03-01T02:00:00Z", "--to", "2026-03-01T01:00:00Z"],
            "before --to",
        ),
        (&["watch", "--config", "x", "--every", "soon"], "allowed is a number with its unit"),
        (&["watch", "--config", "no/such/file.toml"], "no/such/file.toml"),
    ] {
        let answer = verifier(arguments);
        assert!(answer.code == 2 && answer.stderr.contains(text), "{arguments:?}: {}", answer.stderr);
    }
    assert_eq!(verifier(&["check"]).code, 2);
    let answer = verifier(&["check", "--config", "no/such/file.toml"]);
    assert_eq!((answer.code, answer.stdout.as_str()), (2, ""));
    assert!(answer.stderr.contains("no/such/file.toml"), "{}", answer.stderr);

    let Some(pair) = Pair::start() else { return };
    let path = pair.config("", "keys = 3");
    let answer = pair.check_at(&path, &[]);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("syncd.toml:10:8: `keys`"), "{}", answer.stderr);
    let path = pair.config("", "");
    assert_eq!(pair.check_at(&path, &["--channel", "none"]).code, 2);
    assert_eq!(pair.check_at(&path, &["--tenant", "a"]).code, 2);
    let same = format!("{{ url = \"redis://localhost:{}\" }}", pair.servers[0].port);
    let twin = format!("{{ url = \"redis://127.0.0.1:{}\" }}", pair.servers[0].port);
    let answer = pair.check_at(&pair.config_at("", "", &same, &twin), &[]);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("same server"), "{}", answer.stderr);
}

#[test]
fn what_checks_found_is_kept_and_shown_again() {
    let Some(mut pair) = Pair::start() else { return };
    let file = pair.folder.path().join("results.sqlite");
    let path = file.to_str().unwrap();
    pair.both("MSET a 1 b 2 c 3");
    let mut told = Vec::new();
    for command in ["SET a 1", "SET b other", "SET c other"] {
        run(&mut pair.sites[1], command);
        told.push(pair.check(&["--result", path]));
    }
    let report = |arguments: &[&str]| verifier(&[&["report", path], arguments].concat());
    for (n, told) in told.iter().enumerate() {
        let again = report(&["--run", &(n + 1).to_string(), "--json"]);
        assert_eq!((again.code, again.json()), (told.code, told.json()));
    }
    assert_eq!(report(&["--json"]).json(), told[2].json(), "the newest");
    let list = report(&["--list"]);
    assert!(
        list.stdout.lines().count() == 4 && list.stdout.lines().all(|line| line.len() <= 100),
        "{}",
        list.stdout
    );
    let page = pair.folder.path().join("page.html");
    assert_eq!(report(&["--html", page.to_str().unwrap()]).code, 1);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(
        page.contains("Over time")
            && page.contains("run 2, ")
            && page.contains("1 of 3 keys of everything not equal")
    );
    // A repair looks at what the newest one found.
    let config = pair.config("", "");
    let repair =
        verifier(&["repair", "--config", config.to_str().unwrap(), "--from", "dc", "--report", path]);
    assert!(
        repair.code == 1 && repair.stdout.contains("2 keys to repair"),
        "{} {}",
        repair.stdout,
        repair.stderr
    );
    // Another file is neither read nor written.
    let other = pair.folder.path().join("other");
    std::fs::write(&other, "text").unwrap();
    let answer = pair.check(&["--result", other.to_str().unwrap()]);
    assert!(answer.code == 2 && answer.stdout.is_empty(), "{}", answer.stderr);
    assert_eq!(std::fs::read(&other).unwrap(), b"text");
}

#[test]
fn a_sample_says_what_it_proves_and_a_rate_is_kept() {
    let Some(mut pair) = Pair::start() else { return };
    pair.both("MSET {0..4000:some-value-of-a-length}");
    let report = pair.check(&["--sample", "25"]).json();
    let compared = report["compared"].as_u64().unwrap();
    assert!((700..1300).contains(&compared) && report["equal"] == true, "{report}");
    let at_most = report["sample"]["differ_at_most"].as_f64().unwrap();
    assert!(
        (at_most - 2.9957 / compared as f64).abs() < 1e-5 && report["sample"]["share"] == 0.25,
        "{report}"
    );
    run(&mut pair.sites[1], "MSET {0..2000:other}");
    let answer = pair.check(&["--sample", "25"]);
    assert!(answer.code == 1, "{}", answer.stdout);
    for wrong in ["0", "101", "x"] {
        assert_eq!(pair.check(&["--sample", wrong]).code, 2);
    }
    // Some 250 kB are read of each site.
    let begin = std::time::Instant::now();
    assert_eq!(pair.check(&["--bytes-per-second", "100KiB", "--settle", "1s"]).code, 1);
    assert!(begin.elapsed().as_secs_f64() > 2.0, "{:?}", begin.elapsed());
}

#[test]
fn a_window_needs_a_daemon() {
    let Some(pair) = Pair::start() else { return };
    let window = ["--from", "1h"];
    let answer = pair.check_at(&pair.config("", ""), &window);
    assert!(answer.code == 3 && answer.stderr.contains("set `[api]`"), "{}", answer.stderr);
    let answer = pair.check_at(&pair.config("[api]\nlisten = \"127.0.0.1:1\"", ""), &window);
    assert!(
        answer.code == 3 && answer.stderr.contains("no daemon says what was written"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_watch_goes_on_where_something_cannot_be_reached() {
    let Some(pair) = Pair::start() else { return };
    let url = |server: &Server| format!("{{ url = \"redis://127.0.0.1:{}\" }}", server.port);
    let dc = url(&pair.servers[0]);
    let path = pair.config_at("", "", &dc, "{ url = \"redis://127.0.0.1:1\" }");
    let answer = verifier(&["watch", "--config", path.to_str().unwrap(), "--for", "2s", "--every", "1s"]);
    assert_eq!(answer.code, 1, "nothing was ever compared: {}", answer.stdout);
    assert!(
        answer.stdout.contains("error") && answer.stdout.contains("all equal: never"),
        "{}",
        answer.stdout
    );
    // Without a daemon what was lately written is not known, and everything is compared all the same.
    let path = pair.config_at("", "", &dc, &url(&pair.servers[1]));
    let answer = verifier(&["watch", "--config", path.to_str().unwrap(), "--for", "3s", "--every", "1s"]);
    assert_eq!(answer.code, 0, "{}", answer.stdout);
    assert!(answer.stdout.contains("proof") && answer.stdout.contains("set `[api]`"), "{}", answer.stdout);
}

#[test]
fn what_cannot_be_reached_exits_3_without_a_secret() {
    let Some(mut pair) = Pair::start() else { return };
    let dc = format!("{{ url = \"redis://127.0.0.1:{}\" }}", pair.servers[0].port);
    let answer = pair.check_at(&pair.config_at("", "", &dc, "{ url = \"redis://127.0.0.1:1\" }"), &[]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("cloud (127.0.0.1:1)"), "{}", answer.stderr);

    run(&mut pair.sites[1], "CONFIG SET requirepass right-secret");
    let url = format!("redis://:wrong-secret@127.0.0.1:{}", pair.servers[1].port);
    let answer = pair.check_at(&pair.config_at("", "", &dc, &format!("{{ url = \"{url}\" }}")), &[]);
    assert_eq!(answer.code, 3);
    assert!(!answer.stderr.contains("secret"), "{}", answer.stderr);
}

#[test]
fn secrets_sockets_and_lists_of_addresses_lead_to_the_master() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let first = ["--unixsocket", socket.to_str().unwrap()];
    let Some(mut pair) = Pair::start_with(&first, &["--requirepass", "admin"]) else { return };
    run(&mut pair.sites[0], "SET a 1");
    let site = &mut pair.sites[1];
    run(site, "AUTH admin");
    run(site, "ACL SETUSER reader on >s3cret ~* +@read +@connection +info");
    run(site, "SET a 1");
    std::fs::write(pair.folder.path().join("password"), "s3cret\n").unwrap();

    let Some(replica) = Server::start(folder.path(), &[]) else { return };
    run(&mut replica.connect(), &format!("REPLICAOF 127.0.0.1 {}", pair.servers[0].port));
    let dc = format!("{{ url = \"unix://{}\" }}", socket.display());
    let cloud = format!(
        "{{ urls = [\"redis://127.0.0.1:1\", \"redis://127.0.0.1:{}\"], user = \"reader\", password_file = \"password\" }}",
        pair.servers[1].port
    );
    let answer = pair.check_at(&pair.config_at("", "", &dc, &cloud), &[]);
    // The user lacks FUNCTION, which is said and not skipped.
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("give the user the right"), "{}", answer.stderr);
    run(&mut pair.sites[1], "ACL SETUSER reader +function|list");
    let answer = pair.check_at(&pair.config_at("", "", &dc, &cloud), &[]);
    assert_eq!((answer.code, &answer.json()["compared"]), (0, &1.into()), "{}", answer.stderr);

    let list = format!(
        "{{ urls = [\"redis://127.0.0.1:{}\", \"redis://127.0.0.1:{}\"] }}",
        replica.port, pair.servers[0].port
    );
    let answer = pair.check_at(&pair.config_at("", "", &list, &cloud), &[]);
    assert_eq!((answer.code, &answer.json()["compared"]), (0, &1.into()), "{}", answer.stderr);
}

#[test]
fn tls_is_spoken_with_the_sites_own_authority() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (ca, ca_key, cert, key) = (file("ca.pem"), file("ca.key"), file("cert.pem"), file("key.pem"));
    let openssl =
        |line: &str| Command::new("openssl").args(line.split(' ')).output().is_ok_and(|o| o.status.success());
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let made = openssl(&format!("req -x509 {curve} -keyout {ca_key} -out {ca} -days 2 -subj /CN=ca"))
        && openssl(&format!(
            "req -x509 {curve} -keyout {key} -out {cert} -days 2 -subj /CN=localhost -CA {ca} -CAkey {ca_key} \
             -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
        ));
    if !made {
        eprintln!("ignored: openssl cannot make certificates here");
        return;
    }
    let Some(mut pair) = Pair::start() else { return };
    pair.both("SET a 1");
    let site = &mut pair.sites[1];
    for (name, value) in [("tls-ca-cert-file", &ca), ("tls-cert-file", &cert), ("tls-key-file", &key)] {
        run(site, &format!("CONFIG SET {name} {value}"));
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    run(site, &format!("CONFIG SET tls-port {port}"));
    let dc = format!("{{ url = \"redis://127.0.0.1:{}\" }}", pair.servers[0].port);
    let rediss = |files: &str| format!("{{ url = \"rediss://127.0.0.1:{port}\"{files} }}");
    let ours = format!(", ca_file = \"{ca}\", cert_file = \"{cert}\", key_file = \"{key}\"");
    let answer = pair.check_at(&pair.config_at("", "", &dc, &rediss(&ours)), &[]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    // Nobody vouches for it without the authority.
    let answer = pair.check_at(&pair.config_at("", "", &dc, &rediss("")), &[]);
    assert_eq!(answer.code, 3, "{}", answer.stderr);
}

#[test]
fn reports_show_keys_and_never_a_value() {
    let Some(mut pair) = Pair::start() else { return };
    for n in 0..60 {
        run(&mut pair.sites[0], &format!("SET key-{n:02}-{} hidden-value", "k".repeat(200)));
    }
    run(&mut pair.sites[0], "HSET <script>alert(1)</script> f hidden-value");
    let path = pair.config("", "");
    let html = pair.folder.path().join("report.html");
    let fixed = ["check", "--config", path.to_str().unwrap()];
    let answer =
        verifier(&[&fixed[..], &["--html", html.to_str().unwrap(), "--ops-per-second", "100000"]].concat());
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    assert!(answer.stdout.contains("60 string missing at cloud"), "{}", answer.stdout);
    assert!(answer.stdout.lines().all(|line| line.chars().count() <= 100), "{}", answer.stdout);
    assert_eq!(answer.stdout.lines().filter(|line| line.starts_with("  extra")).count(), 20);
    let html = std::fs::read_to_string(html).unwrap();
    assert!(html.contains("&lt;script&gt;") && !html.contains("<script"));
    assert!(!html.contains("http://") && !html.contains("https://"));
    let json = pair.check_at(&path, &["--list-max", "7"]);
    assert_eq!((json.differences().len(), &json.json()["different"]), (7, &61.into()));
    for text in [&answer.stdout, &answer.stderr, &html, &json.stdout] {
        assert!(!text.contains("hidden-value"));
    }
}
