use super::*;

fn spec(channel: &str, first: &str, second: &str) -> ChannelSpec {
    let table = |text: &str| text.parse::<toml::Table>().unwrap();
    ChannelSpec {
        link: "dc-cloud".into(),
        channel: "tags".into(),
        sites: ["dc".into(), "cloud".into()],
        carries: [true; 2],
        table: table(channel),
        site_tables: [table(first), table(second)],
        directory: std::env::temp_dir(),
    }
}

const PLAIN: &str = "url = \"redis://127.0.0.1:6401\"";

fn endpoint(site: &str) -> Endpoint {
    RedisConfig::parse(&spec("", site, PLAIN)).unwrap().endpoints[0].clone()
}

#[test]
fn what_is_not_given_has_its_default() {
    let config = RedisConfig::parse(&spec("", PLAIN, "url = \"redis://[::1]\"")).unwrap();
    assert_eq!(config.batch, BatchLimits { items_max: 512, bytes_max: 524_288 });
    assert_eq!(config.evictions, Evictions::Refuse);
    assert_eq!(config.limits.snapshot_bytes_per_second, None);
    assert_eq!(config.endpoints[0].label(), "127.0.0.1:6401");
    assert_eq!(config.endpoints[1].label(), "[::1]:6379");
    assert!(config.filter.carries(9, b"any") && config.endpoints[0].password.is_none());
}

#[test]
fn every_key_is_read() {
    let text = "keys = [\"push:*\"]\nexcept = [\"push:tmp:*\"]\ndbs = [0, 3]\nevictions = \"carry\"\n\
                batch = { items_max = 10, bytes_max = 1000 }\n\
                limits = { snapshot_bytes_per_second = 5, apply_ops_per_second = 6, value_bytes_max = 2048 }";
    let config = RedisConfig::parse(&spec(text, PLAIN, PLAIN)).unwrap();
    assert!(config.filter.carries(3, b"push:1") && !config.filter.carries(1, b"push:1"));
    assert_eq!(config.evictions, Evictions::Carry);
    assert_eq!(config.batch.items_max, 10);
    assert_eq!(config.limits.apply_ops_per_second, Some(6));
    assert_eq!(config.limits.value_bytes_max, 2048);
}

#[test]
fn urls_say_who_where_and_how() {
    let e = endpoint("url = \"rediss://us%40er:p%3Ass@host.example:7000\"");
    assert_eq!(e.user.as_deref(), Some("us@er"));
    assert_eq!(e.password, Some(Secret::Text("p:ss".into())));
    assert!(e.tls.is_some() && e.label() == "host.example:7000");
    assert!(!format!("{e:?} {}", e.label()).contains("p:ss"));
    let e = endpoint("url = \"redis://:secret@127.0.0.1\"");
    assert!(e.user.is_none() && e.password.is_some());
    assert_eq!(endpoint("url = \"unix:///run/redis.sock\"").label(), "/run/redis.sock");
    assert_eq!(endpoint("url = \"redis+unix:///run/redis.sock\"").label(), "/run/redis.sock");
    let e = endpoint("urls = [\"redis://a:1\", \"redis://b:2\"]");
    assert_eq!(e.label(), "a:1,b:2");
}

#[test]
fn a_wrong_key_or_value_is_named_with_what_is_allowed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().display();
    for (channel, site, path, message) in [
        ("keyz = 1", PLAIN, "keyz", "expected one of `keys`"),
        ("keys = []", PLAIN, "keys", "list of texts"),
        ("keys = \"a\"", PLAIN, "keys", "list of texts"),
        ("dbs = [-1]", PLAIN, "dbs", "numbers from 0"),
        ("evictions = \"no\"", PLAIN, "evictions", "`refuse` and `carry`"),
        ("batch = 1", PLAIN, "batch", "table"),
        ("batch = { items_max = 0 }", PLAIN, "batch.items_max", "from 1"),
        ("batch = { items = 1 }", PLAIN, "batch.items", "expected one of"),
        ("limits = { apply_ops_per_second = \"x\" }", PLAIN, "limits.apply_ops_per_second", "number"),
        ("", "", "dc.url", "missing"),
        ("", "url = \"\"", "dc.url", "text"),
        ("", "url = \"127.0.0.1:6379\"", "dc.url", "redis://"),
        ("", "url = \"http://127.0.0.1\"", "dc.url", "scheme `http`"),
        ("", "url = \"redis://h/3\"", "dc.url", "dbs"),
        ("", "url = \"redis://h?x=1\"", "dc.url", "encode"),
        ("", "url = \"unix://\"", "dc.url", "path"),
        ("", "url = \"redis://h\"\nurls = [\"redis://h\"]", "dc.urls", "keep one"),
        ("", "urls = [\"redis://a\", \"rediss://b\"]", "dc.urls", "same scheme"),
        ("", "url = \"redis://h\"\nuser = \"x\"", "dc.user", "password"),
        ("", "url = \"redis://h\"\npassword_file = \"/no/such/file\"", "dc.password_file", "/no/such/file"),
        ("", "url = \"redis://h\"\nca_file = \"FILE\"", "dc.ca_file", "rediss"),
        ("", "url = \"rediss://h\"\ncert_file = \"FILE\"", "dc.key_file", "missing"),
        ("", "url = \"redis://:x@h\"\npassword_file = \"FILE\"", "dc.password_file", "keep one"),
        ("", "url = \"redis://h\"\npasword = \"x\"", "dc.pasword", "expected one of `url`"),
    ] {
        let site = site.replace("FILE", &file.to_string());
        let error = RedisConfig::parse(&spec(channel, &site, PLAIN)).unwrap_err();
        assert_eq!(error.path.join("."), path, "{channel} {site}");
        assert!(error.message.contains(message), "{error}");
    }
}

#[test]
fn no_error_quotes_a_url_with_its_password() {
    for url in [
        "redis://:hunter2@",
        "redis://:hunter2@h/9",
        "http://:hunter2@h",
        "redis://:hunter2@h:99999",
        "redis://:hunter2%zz@h",
    ] {
        let error = RedisConfig::parse(&spec("", &format!("url = \"{url}\""), PLAIN)).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
