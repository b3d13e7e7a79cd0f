//! Who may log in (5, 6, 19): every method, with and without TLS, right, wrong and missing secrets.

use crate::support::{
    cluster::{database, oldest},
    needs_proxy,
    proxy::{Proxy, Settings, user},
    wait_for,
    wire::{Login, Wire},
};

/// SQLSTATE of the refusal; empty when the login works and the session answers.
fn outcome(proxy: &Proxy, login: &Login) -> String {
    match Wire::connect(proxy.port, login) {
        Err(error) if error.sqlstate.is_empty() => format!("closed: {}", error.message),
        Err(error) => error.sqlstate,
        Ok(mut wire) => {
            assert_eq!(wire.run("SELECT session_user"), Some(login.user.clone()));
            String::new()
        }
    }
}

/// 6: one row per method: what a right password, a wrong one, none and an unknown user get.
const MATRIX: [(&str, [&str; 4]); 3] = [
    ("scram-sha-256", ["", "28P01", "28P01", "28P01"]),
    ("md5", ["", "28P01", "28P01", "28P01"]),
    // Trust asks nobody; a user that is not known has no password for the servers.
    ("trust", ["", "", "", "28000"]),
];

#[test]
fn matrix() {
    needs_proxy!();
    database("sec_auth");
    for (method, expected) in MATRIX {
        let mut settings = Settings::new("sec_auth").tls("prefer");
        settings.auth = format!("method = {method:?}");
        let proxy = settings.start();
        // Twice: the second time a pooled server connection is at hand.
        for (round, tls) in [(0, false), (0, true), (1, false), (1, true)] {
            let logins =
                [("alice", "alice-pw"), ("alice", "bob-pw"), ("alice", ""), ("stranger", "alice-pw")];
            for ((name, password), expected) in logins.iter().zip(expected) {
                let login = Login::new(name, password, "sec_auth").tls(tls);
                let seen = outcome(&proxy, &login);
                let refused = !expected.is_empty() && seen.starts_with("28");
                assert!(
                    seen == expected || refused,
                    "{method}, TLS {tls}, round {round}, {name}/{password}: {seen:?}"
                );
            }
            // The same door leads to the console.
            for (name, password) in [("alice", "bob-pw"), ("alice", ""), ("stranger", "x")] {
                let login = Login::new(name, password, "crossfade").tls(tls);
                let open = Wire::connect(proxy.port, &login).is_ok();
                assert!(
                    !open || (method == "trust" && name == "alice"),
                    "{method}: {name}/{password} at the console"
                );
            }
        }
    }
}

#[test]
fn certificates() {
    needs_proxy!();
    database("sec_cert");
    let mut settings = Settings::new("sec_cert").tls("prefer");
    settings.auth = "method = \"cert\"".to_owned();
    let proxy = settings.start();
    let with = |user: &str, certificate: Option<&str>, tls: bool| {
        let mut login = Login::new(user, "", "sec_cert").tls(tls);
        login.certificate = certificate.map(str::to_owned);
        outcome(&proxy, &login)
    };
    assert_eq!(with("alice", Some("alice"), true), "");
    for (user, certificate, tls) in [
        ("alice", Some("bob"), true),
        ("alice", None, true),
        ("alice", None, false),
        ("stranger", Some("stranger"), true),
    ] {
        let seen = with(user, certificate, tls);
        assert!(
            seen.starts_with("28") || seen.starts_with("closed"),
            "{user} with {certificate:?}, TLS {tls}: {seen:?}"
        );
    }
}

/// 19: what `pg_authid` holds does instead of a password.
#[test]
fn verifiers() {
    needs_proxy!();
    database("sec_verifier");
    let mut admin = oldest().admin("sec_verifier");
    let scram = admin.run("SELECT rolpassword FROM pg_authid WHERE rolname = 'alice'").expect("a verifier");
    let md5 = admin.run("SELECT 'md5' || md5('alice-pw' || 'alice')").expect("a digest");
    let backend = "source = { user = \"alice\", password = \"alice-pw\" }\ntarget = { user = \"alice\", password = \"alice-pw\" }\n";
    for (method, verifier) in [("scram-sha-256", &scram), ("md5", &md5)] {
        let mut settings = Settings::new("sec_verifier");
        settings.auth = format!("method = {method:?}");
        settings.users = user("alice", verifier) + backend;
        settings.admin = String::new();
        let proxy = settings.start();
        assert_eq!(outcome(&proxy, &Login::new("alice", "alice-pw", "sec_verifier")), "", "{method}");
        assert_eq!(outcome(&proxy, &Login::new("alice", "wrong", "sec_verifier")), "28P01", "{method}");
        // The verifier itself is no password.
        assert_eq!(outcome(&proxy, &Login::new("alice", verifier, "sec_verifier")), "28P01", "{method}");
    }
}

/// 5: the lookup in `pg_authid` sees expired and disabled roles.
#[test]
fn expired_roles() {
    needs_proxy!();
    database("sec_expired");
    let mut admin = oldest().admin("sec_expired");
    admin.run(
        "CREATE ROLE expired LOGIN PASSWORD 'expired-pw' VALID UNTIL '2001-01-01';
         CREATE ROLE disabled NOLOGIN PASSWORD 'disabled-pw';
         CREATE ROLE looked_up LOGIN PASSWORD 'looked_up-pw'",
    );
    let mut settings = Settings::new("sec_expired");
    settings.users = user("postgres", "secret");
    settings.admin = String::new();
    settings.auth = "method = \"scram-sha-256\"\nquery = \"SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now())\"".to_owned();
    let proxy = settings.start();
    for name in ["expired", "disabled", "absent"] {
        assert_eq!(outcome(&proxy, &proxy.login(name)), "28P01", "{name}");
    }
    // With a verifier only, the client's own proof must open the server's door.
    assert_eq!(outcome(&proxy, &proxy.login("looked_up")), "");
    let mut wrong = proxy.login("looked_up");
    "wrong".clone_into(&mut wrong.password);
    assert_eq!(outcome(&proxy, &wrong), "28P01");
    // A role that expires is refused from then on.
    admin.run("ALTER ROLE looked_up VALID UNTIL '2001-01-01'");
    wait_for("the role to be refused", || outcome(&proxy, &proxy.login("looked_up")) == "28P01");
    admin.run("DROP ROLE expired, disabled, looked_up");
}
