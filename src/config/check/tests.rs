use std::{collections::HashMap, io, path::Path};

use super::*;

const BASE: &str = "\
[[user]]
name = 'app'
password = 'hush-hush'
[source]
host = 'a'
database = 'd'
[target]
host = 'b'
database = 'd'
";

fn check_with(text: &str, files: &[(&str, &[u8], bool)]) -> Checked {
    let files: HashMap<&str, (&[u8], bool)> = files.iter().map(|&(p, b, w)| (p, (b, w))).collect();
    let read = |path: &Path| {
        let &(bytes, world_readable) =
            files.get(path.to_str().expect("UTF-8")).ok_or(io::ErrorKind::NotFound)?;
        Ok(Contents { bytes: bytes.to_vec(), world_readable })
    };
    let path = Path::new("proxy.toml");
    check(&Inputs { path, text, environment: &[], read: &read, cores: 2, generation: 7 })
}

fn shown(list: &[Mistake]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// `BASE` with `more` in front is wrong in exactly these ways.
#[track_caller]
fn mistakes(more: &str, expected: &[&str]) {
    let checked = check_with(&format!("{more}\n{BASE}"), &[]);
    let found = checked.config.err().unwrap_or_default();
    assert_eq!(shown(&found), expected.join("\n"), "{more}");
    assert!(!shown(&found).contains("hush"), "a secret is shown");
}

#[track_caller]
fn warnings(more: &str, expected: &[&str]) {
    let checked = check_with(&format!("{more}\n{BASE}"), &[]);
    if let Err(found) = &checked.config {
        panic!("{}", shown(found));
    }
    assert_eq!(shown(&checked.warnings), expected.join("\n"), "{more}");
}

#[test]
fn the_example_is_right_and_holds_every_key_with_its_default() {
    use crate::config::schema::{SECTIONS, Unset};
    let manifest = env!("CARGO_MANIFEST_DIR");
    let text = std::fs::read_to_string(format!("{manifest}/proxy.toml")).unwrap();
    let docs = std::fs::read_to_string(format!("{manifest}/docs/configuration.md")).unwrap();
    let config = check_with(&text, &[]).config.unwrap();
    assert_eq!(config.policy.repositories.len(), 4);

    let documented: Vec<&str> = docs.lines().filter(|l| l.starts_with("| `")).collect();
    for section in SECTIONS {
        let head = if section.many { format!("[[{}]]", section.name) } else { format!("[{}]", section.name) };
        let from = text.find(&format!("{head}\n")).or_else(|| text.find(&format!("{head} ")));
        let part = &text[from.unwrap_or_else(|| panic!("no {head} in proxy.toml"))..];
        let part = &part[..part.find("\n\n").filter(|_| !section.many).unwrap_or(part.len())];
        for key in section.keys {
            let name = format!("{}.{}", section.name, key.name);
            let row = documented.iter().find(|l| l.starts_with(&format!("| `{name}` ")));
            let row = row.unwrap_or_else(|| panic!("no row for {name} in docs/configuration.md"));
            let written =
                part.lines().find(|l| l.trim_start_matches("# ").starts_with(&format!("{} = ", key.name)));
            let in_comment = part.contains(&format!("{} = ", key.name)) || section.name == "target";
            assert!(written.is_some() || in_comment, "no {name} in proxy.toml");
            let Unset::Is(default) = key.unset else { continue };
            assert!(row.contains(&format!("| `{default}` ")), "docs/configuration.md: {name} is {default}");
            let line = written.unwrap_or_else(|| panic!("no line for {name} in proxy.toml"));
            // The target's port differs from the default for a reason: both run on one machine.
            let same = line.contains(&format!("{} = {default}", key.name)) || name == "target.port";
            assert!(same, "proxy.toml: {line:?} is not the default {default}");
        }
    }
    for row in documented {
        let name = row[3..].split('`').next().unwrap();
        let known =
            |(s, k): (&str, &str)| SECTIONS.iter().any(|x| x.name == s && x.keys.iter().any(|y| y.name == k));
        assert!(name.split_once('.').is_some_and(known), "docs/configuration.md: {name} does not exist");
    }
}

#[test]
fn the_least_is_enough() {
    let config = check_with(BASE, &[]).config.unwrap();
    assert_eq!(config.policy.generation, 7);
    assert_eq!(config.policy.repositories[0].name, "default");
    assert_eq!(config.listen.threads, 1);
    assert_eq!(config.timeouts.client_idle, None);
    assert_eq!(config.timeouts.query_wait, Some(Duration::from_secs(120)));
    assert_eq!(config.hash.len(), 64);
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn otlp_needs_its_feature() {
    let text = "[telemetry]\notlp_endpoint = 'https://collector'";
    let built = "proxy.toml:2:17: telemetry.otlp_endpoint: this binary was built without OTLP; \
                 build it with cargo build --release --features otlp";
    let wrong = "proxy.toml:2:17: telemetry.otlp_endpoint: is not http://host:port (for TLS put a collector beside crossfade)";
    let both = [built, wrong];
    mistakes(text, &both[usize::from(cfg!(feature = "otlp"))..]);
}

#[test]
fn every_mistake_at_once() {
    mistakes(
        "[pool]\nmode = 'sesion'\nsize = 0\nmin_sise = 3\n[timeout]\nquery = '1s'\n[timeouts]\nquery = 30\ndrain = '1d'\n\
         client_login = '0'\n[log]\nliterals = 'no'\n[[pools]]\n[user_]",
        &[
            "proxy.toml:2:8: pool.mode: \"sesion\" is none of \"session\", \"transaction\"; did you mean \"session\"?",
            "proxy.toml:3:8: pool.size: 0 is not between 1 and 100000",
            "proxy.toml:4:1: pool.min_sise: no such key; did you mean \"min_size\"?",
            "proxy.toml:5:2: timeout: no such table; did you mean \"timeouts\"?",
            "proxy.toml:8:9: timeouts.query: a duration needs its unit; did you mean \"30s\"?",
            "proxy.toml:9:9: timeouts.drain: \"1d\" is not a duration (at most 366 days); \
             write \"250ms\", \"30s\", \"5m\", \"1h\" or \"0\"",
            "proxy.toml:10:16: timeouts.client_login: must be more than zero",
            "proxy.toml:12:12: log.literals: expected true or false, found a text",
            "proxy.toml:13:3: pools: no such table; did you mean \"pool\"?",
            "proxy.toml:14:2: user_: no such table; did you mean \"user\"?",
        ],
    );
}

#[test]
fn sections() {
    mistakes(
        "[listen]\naddresses = ['localhost:1', '::1:2', '1.1.1.1:3', '1.1.1.1:3']",
        &[
            "proxy.toml:2:14: listen.addresses: \"localhost:1\" is not an address with a port; did you mean \"127.0.0.1:1\"?",
            "proxy.toml:2:29: listen.addresses: \"::1:2\" is not an address with a port; did you mean \"[::1]:2\"?",
            "proxy.toml:2:51: listen.addresses: 1.1.1.1:3 is there twice",
        ],
    );
    mistakes(
        "[listen]\naddresses = []",
        &["proxy.toml:2:13: listen.addresses: at least one address is needed"],
    );
    mistakes(
        "[admin]\nhttp = '127.0.0.1:6432'\nadmin_users = ['ap']",
        &[
            "proxy.toml:2:8: admin.http: 127.0.0.1:6432 is one of listen.addresses",
            "proxy.toml:3:16: admin.admin_users: there is no user \"ap\"; did you mean \"app\"?",
        ],
    );
    mistakes(
        "[admin]\ntoken = 'short'",
        &[
            "proxy.toml:2:9: admin.token: needs 20 characters or more, all of them visible ASCII; make one: openssl rand -hex 20",
        ],
    );
    mistakes(
        "[admin]\ntoken = '0123456789abcdefghij'\ntoken_file = 'x'",
        &["proxy.toml:3:14: admin.token_file: there is a token as well; one of the two"],
    );
    warnings(
        "[admin]\nhttp = '0.0.0.0:1'\ntoken = '0123456789abcdefghij'",
        &[
            "proxy.toml:3:9: admin.token: goes over the network in the clear: admin.http is not on the loopback; \
           put something that speaks TLS before it",
        ],
    );
    mistakes(
        "[auth]\nmethod = 'cert'\nquery = 'SELECT 1'",
        &[
            "proxy.toml:2:10: auth.method: \"cert\" needs [client_tls] with client_ca",
            "proxy.toml:3:9: auth.query: does not mention $1, the name of the user",
        ],
    );
    mistakes(
        "[log]\nfilter = 'crossfade=loud'",
        &[
            "proxy.toml:2:10: log.filter: is not a filter: error parsing level filter: expected one of \"off\", \
           \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
        ],
    );
    mistakes(
        "[client_tls]\nmode = 'require'",
        &["proxy.toml:1:2: client_tls.certificate: missing", "proxy.toml:1:2: client_tls.key: missing"],
    );
    mistakes(
        "[client_tls]\ncertificate = 'c.pem'\nkey = 'k.pem'",
        &[
            "proxy.toml:2:15: client_tls.certificate: cannot read c.pem: entity not found",
            "proxy.toml:3:7: client_tls.key: cannot read k.pem: entity not found",
        ],
    );
    warnings(
        "[listen]\naddresses = ['0.0.0.0:1']\n[auth]\nmethod = 'trust'",
        &[
            "proxy.toml:4:10: auth.method: \"trust\" lets everybody in who can reach listen.addresses, as any user; \
           use \"scram-sha-256\"",
        ],
    );
    warnings(
        "[pool]\nsize = 200",
        &["proxy.toml:2:8: pool.size: never reached: pool.max_server_connections is 100"],
    );
}

#[test]
fn backends() {
    let found =
        check_with("[source]\nhost = 'a'\n[[user]]\nname = 'u'\npassword = 'p'", &[]).config.unwrap_err();
    assert_eq!(
        shown(&found),
        "proxy.toml:1:1: target: missing, with at least host and database\nproxy.toml:1:2: source.database: missing"
    );
    let text = "[source]\nhost = '/run'\ndatabase = 'crossfade'\ntls = 'require'\ntls_key = 'k'\n\
                password = 'SCRAM-SHA-256$hush'\n[target]\nhost = ''\ndatabase = 'x'\n[auth]\nmethod = 'trust'";
    assert_eq!(
        shown(&check_with(text, &[]).config.unwrap_err()),
        "proxy.toml:3:12: source.database: clients reach the admin console by this name\n\
         proxy.toml:4:7: source.tls: there is no TLS on a Unix socket\n\
         proxy.toml:5:11: source.tls_key: needs tls_certificate\n\
         proxy.toml:6:12: source.password: begins like a SCRAM verifier and is none\n\
         proxy.toml:8:8: target.host: is empty"
    );
}

#[test]
fn repositories() {
    let repository = |keys: &str| format!("[[repository]]\nname = 'r'\ntables = ['public.r']\n{keys}");
    mistakes(
        &repository("mirror = 'async'\nwrites = { source = 99, target = 1 }"),
        &[
            "proxy.toml:5:10: repository.writes: source and target can only take turns while the follower is current, \
           and mirror = \"async\" leaves it behind; use mirror = \"journaled\" or \"atomic\", or write \
           { source = 100, target = 0 } or { source = 0, target = 100 }",
        ],
    );
    let turns = |place: &str, target: f64, period| {
        format!(
            "proxy.toml:{place}: repository.writes: source and target take turns: the target leads {target} s of every \
             {period} s, one side at a time; writers wait a moment at each change, and each change leaves out some \
             values of every sequence"
        )
    };
    for (mode, target) in [("journaled", 10), ("atomic", 90)] {
        let keys = format!("mirror = '{mode}'\nwrites = {{ source = {}, target = {target} }}", 100 - target);
        warnings(&repository(&keys), &[&turns("5:10", f64::from(target) / 10.0, 10)]);
    }
    let keys = "mirror = 'atomic'\nwrites = { source = 99, target = 1 }\n[mirror]\nslice = '20s'";
    warnings(&repository(keys), &[&turns("5:10", 0.5, 50)]);
    mistakes(&repository("[mirror]\nslice = '0'"), &["proxy.toml:5:9: mirror.slice: must be more than zero"]);
    warnings(&repository("mirror = 'journaled'\nreads = { source = 90, target = 10 }"), &[]);
    warnings(
        &repository("mirror = 'async'\nreads = { source = 90, target = 10 }"),
        &[
            "proxy.toml:5:9: repository.reads: reads stay on the lead while mirror = \"async\": the follower is \
           behind; use mirror = \"journaled\"",
        ],
    );
    mistakes(
        &repository("writes = { source = 99, target = 1 }"),
        &[
            "proxy.toml:4:10: repository.writes: without mirroring some rows would be on one side only and the data \
           would be split; write { source = 100, target = 0 } or { source = 0, target = 100 }",
        ],
    );
    mistakes(
        &repository("reads = { source = 90, target = 9 }"),
        &["proxy.toml:4:9: repository.reads: source and target add up to 99, not 100"],
    );
    warnings(
        &repository("reads = { source = 90, target = 10 }"),
        &[
            "proxy.toml:4:9: repository.reads: some reads are answered by the side that does not get the writes: with \
           mirror = \"off\" something else must keep it current",
        ],
    );
    warnings(&repository("reads = { source = 0, target = 100 }\nwrites = { source = 0, target = 100 }"), &[]);
    mistakes(
        "[[repository]]\nname = 'default'\ntables = ['r']\n[[repository]]\nname = 'A b'\ntables = []\n\
         [[repository]]\nname = 'r'\ntables = ['public.r', 'public.s_*']\n[[repository]]\nname = 'r'\ntables = ['public.R', 'public.s_x']",
        &[
            "proxy.toml:2:8: repository.name: \"default\" is built in: it has the tables of no other repository",
            "proxy.toml:3:11: repository.tables: \"r\" is not schema.name; did you mean \"public.r\"?",
            "proxy.toml:5:8: repository.name: \"A b\" is not 1 to 63 characters of a-z, 0-9, _ and -",
            "proxy.toml:6:10: repository.tables: is empty",
            "proxy.toml:11:8: repository.name: the repository \"r\" is there twice",
            "proxy.toml:12:11: repository.tables: public.R is in the repository \"r\" too",
        ],
    );
    warnings(
        "[[repository]]\nname = 'a'\ntables = ['public.s_*']\n[[repository]]\nname = 'b'\ntables = ['public.s_x']",
        &[
            "proxy.toml:6:11: repository.tables: public.s_x and public.s_* of the repository \"a\" may match the same name",
        ],
    );
}

#[test]
fn users() {
    let verifier = format!("SCRAM-SHA-256$4096:c2FsdA==${0}=:{0}=", "A".repeat(43));
    let text = format!("[[user]]\nname = 'v'\npassword = '{verifier}'\n{BASE}");
    let config = check_with(&text, &[]).config.unwrap();
    assert!(matches!(config.auth.users["v"].secret, Secret::ScramVerifier(_)));
    mistakes(
        "[[user]]\nname = 'app'\npassword = 'x'\n[[user]]\nname = 'b'\n[[user]]\nname = 'c'\n\
         password = 'md5d41d8cd98f00b204e9800998ecf8427e'\n[[user]]\npassword = 'y'\n[[user]]\nname = 'd'\n\
         password = 'hush'\nsource = { user = '', pasword = 'hush' }",
        &[
            "proxy.toml:4:1: user.password: missing: this user could never log in",
            "proxy.toml:8:12: user.password: an md5 hash cannot be checked by \"scram-sha-256\"; \
             set auth.method = \"md5\", or give the password or a SCRAM verifier",
            "proxy.toml:9:1: user.name: missing",
            "proxy.toml:14:19: user.source.user: is empty",
            "proxy.toml:14:23: user.source.pasword: no such key; did you mean \"password\"?",
            "proxy.toml:16:8: user.name: the user \"app\" is there twice",
        ],
    );
}

#[test]
fn files_of_secrets() {
    let text = format!("[auth]\nusers_file = 'sub/users.toml'\n{BASE}password_file = '/run/pw'\n");
    let users = b"[[user]]\nname = 'b'\npassword = 'hush'\n[[user]]\nname = 'c'\npool_sise = 3\n";
    let files = [("sub/users.toml", users.as_slice(), true), ("/run/pw", b"hush\r\n".as_slice(), false)];
    let checked = check_with(&text, &files);
    assert_eq!(
        shown(&checked.config.unwrap_err()),
        "sub/users.toml:4:1: user.password: missing: this user could never log in\n\
         sub/users.toml:6:1: user.pool_sise: no such key; did you mean \"pool_size\"?"
    );
    assert_eq!(
        shown(&checked.warnings),
        "proxy.toml:2:14: auth.users_file: everybody on this machine may read this secret file; chmod o-rwx it"
    );
    assert_eq!(checked.files, [Path::new("/run/pw"), Path::new("sub/users.toml")]);

    let text = format!("{BASE}password_file = '/run/pw'\n");
    let config = check_with(&text, &files).config.unwrap();
    assert_eq!(config.backends[1].control_secret, Secret::Password("hush".to_owned()));
}

#[test]
fn certificates_must_belong_together() {
    let one = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(["b".to_owned()]).unwrap();
    let text = format!("[client_tls]\ncertificate = 'c'\nkey = 'k'\nclient_ca = 'c'\n{BASE}");
    let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
    let good = [("c", certificate.as_bytes(), true), ("k", key.as_bytes(), false)];
    let config = check_with(&text, &good).config.unwrap();
    assert!(config.client_tls.is_some());
    let other = two.signing_key.serialize_pem();
    for (key, expected) in [
        (other.as_bytes(), "proxy.toml:3:7: client_tls.key: this key does not belong to certificate"),
        (b"x".as_slice(), "proxy.toml:3:7: client_tls.key: there is no PEM private key in this file"),
    ] {
        let files = [("c", certificate.as_bytes(), true), ("k", key, false)];
        assert_eq!(shown(&check_with(&text, &files).config.unwrap_err()), expected);
    }
}

#[test]
fn the_hash_follows_the_content_and_not_the_spelling_or_the_secrets() {
    let hash = |text: &str| check_with(text, &[]).config.unwrap().hash;
    assert_eq!(hash(BASE), hash(&format!("# a comment\n{BASE}")));
    assert_eq!(hash(BASE), hash(&format!("[pool]\nsize = 20\n{BASE}")));
    assert_eq!(hash(BASE), hash(&BASE.replace("hush-hush", "other")));
    assert_ne!(hash(BASE), hash(&format!("[pool]\nsize = 21\n{BASE}")));
}

/// The fuzz target's corpus, and each of its files cut short.
#[test]
fn corpus() {
    let dir = format!("{}/fuzz/corpus/config", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let step = (text.len() / 50).max(1);
        for end in (0..=text.len()).step_by(step).chain([text.len()]).filter(|&e| text.is_char_boundary(e)) {
            let checked = check_with(&text[..end], &[]);
            assert!(checked.config.is_ok() || !checked.config.unwrap_err().is_empty());
        }
        seen += 1;
    }
    assert!(seen >= 5, "the corpus is gone");
}
