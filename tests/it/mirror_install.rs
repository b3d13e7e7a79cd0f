//! `crossfade mirror install|status|remove`: what it puts on both databases, and what that captures.

mod capture;
mod hostile;
mod preflight;

use std::{fmt::Write as _, process::Command};

use crate::support::{
    cluster::{Cluster, base_dir, newest, oldest},
    wait_for,
    wire::Wire,
};

/// Two databases whose tables in `public` are mirrored.
pub(crate) struct Pair {
    name: String,
    /// Configuration of the command.
    toml: String,
}

impl Pair {
    /// Fresh databases of this name with `schema` on both sides; nothing is installed yet.
    pub(crate) fn new(name: &str, schema: &str) -> Self {
        Self::between(oldest(), newest(), name, schema)
    }

    /// The same on two clusters of the test's own.
    pub(crate) fn between(source: &Cluster, target: &Cluster, name: &str, schema: &str) -> Self {
        for cluster in [source, target] {
            cluster.database(name);
            cluster.admin(name).run(schema);
        }
        let mut toml = "[listen]\naddresses = [\"127.0.0.1:1\"]\n[auth]\nmethod = \"trust\"\n".to_owned();
        for (side, cluster) in [("source", source), ("target", target)] {
            let _ = write!(
                toml,
                "[{side}]\nhost = \"127.0.0.1\"\nport = {}\ndatabase = \"{name}\"\nuser = \"postgres\"\npassword = \"secret\"\n",
                cluster.port
            );
        }
        let pair = Self { name: name.to_owned(), toml };
        pair.repository("all", "public.*")
    }

    /// The same with one more mirrored repository.
    pub(crate) fn repository(mut self, name: &str, tables: &str) -> Self {
        let _ = write!(
            self.toml,
            "[[repository]]\nname = \"{name}\"\ntables = [\"{tables}\"]\nreads = {{ source = 100, target = 0 }}\n\
             writes = {{ source = 100, target = 0 }}\nmirror = \"journaled\"\n"
        );
        self
    }

    /// The same with this text in the configuration replaced.
    pub(crate) fn with(mut self, from: &str, to: &str) -> Self {
        assert!(self.toml.contains(from), "{from}");
        self.toml = self.toml.replace(from, to);
        self
    }

    /// `crossfade mirror ...`: exit code and output.
    pub(crate) fn mirror(&self, arguments: &[&str]) -> (i32, String) {
        self.command(&[&["mirror"], arguments].concat())
    }

    /// `crossfade ...`: exit code and output.
    pub(crate) fn command(&self, arguments: &[&str]) -> (i32, String) {
        let path = base_dir().join(format!("{}.toml", self.name));
        std::fs::write(&path, &self.toml).expect("writable");
        let output = Command::new(env!("CARGO_BIN_EXE_crossfade"))
            .args(arguments)
            .arg("--config")
            .arg(&path)
            .output()
            .expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8(text).expect("UTF-8"))
    }

    /// Installs; it must succeed.
    #[track_caller]
    pub(crate) fn install(&self) -> String {
        let (code, text) = self.mirror(&["install"]);
        assert_eq!(code, 0, "{text}");
        text
    }

    /// A superuser on one side.
    pub(crate) fn admin(&self, cluster: &Cluster) -> Wire {
        cluster.admin(&self.name)
    }
}

#[test]
fn install_twice_status_remove() {
    let pair = Pair::new("mirror_life", "");
    let (code, text) = pair.mirror(&["status"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("missing: source: nothing is installed"), "{text}");
    let text = pair.install();
    assert!(text.contains("done: target: triggers on public.documents"), "{text}");
    let text = pair.install();
    assert!(!text.contains("done:"), "{text}");
    let (code, text) = pair.mirror(&["status"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = pair.mirror(&["remove"]);
    assert_eq!(code, 0, "{text}");
    for cluster in [oldest(), newest()] {
        let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%'";
        assert_eq!(pair.admin(cluster).run(left).as_deref(), Some("0"));
        let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade'";
        assert_eq!(pair.admin(cluster).run(left).as_deref(), Some("0"));
    }
}

#[test]
fn schema_changes_are_followed() {
    let pair =
        Pair::new("mirror_changes", "CREATE TABLE gone (id int PRIMARY KEY)").repository("other", "sales.*");
    for cluster in [oldest(), newest()] {
        pair.admin(cluster)
            .run("CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY, v text)");
    }
    pair.install();
    let numbers = |cluster: &Cluster| {
        let sql = "SELECT string_agg(schema_name || '.' || table_name || '=' || number, ' ' ORDER BY number) FROM crossfade.tables";
        pair.admin(cluster).run(sql).unwrap()
    };
    let before = numbers(oldest());
    assert_eq!(before, numbers(newest()));
    for cluster in [oldest(), newest()] {
        pair.admin(cluster).run(
            "ALTER TABLE users ADD extra int DEFAULT 7; ALTER TABLE documents DROP CONSTRAINT documents_pkey, ADD PRIMARY KEY (id, n); \
             DROP TABLE gone; CREATE TABLE added (id int PRIMARY KEY)",
        );
    }
    let (code, text) = pair.mirror(&["status"]);
    assert_eq!(code, 1, "{text}");
    for line in [
        "source: functions or columns are not up to date",
        "target: public.added: public.added has no trigger crossfade_i",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    pair.install();
    let after = numbers(oldest());
    assert_eq!(after, numbers(newest()));
    let next = before.split(' ').count() + 1;
    let gone = before.split(' ').find(|one| one.starts_with("public.gone")).unwrap();
    assert_eq!(
        after,
        format!(
            "{} public.added={next}",
            before.replace(&format!("{gone} "), "").replace(&format!(" {gone}"), "")
        )
    );
    let mut admin = pair.admin(oldest());
    admin.run("INSERT INTO documents VALUES (1, 'a', 2)");
    let entry = admin.run("SELECT entries[1] FROM crossfade.journal ORDER BY id DESC LIMIT 1").unwrap();
    assert!(entry.ends_with(":{1,2}"), "{entry}");
    // One repository goes; the other stays, and its journal rows are not forgotten.
    let (code, text) = pair.mirror(&["remove", "--repository", "other"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("1 journal rows are not shipped yet"), "{text}");
    let (code, text) = pair.mirror(&["remove", "--repository", "other", "--force"]);
    assert_eq!(code, 0, "{text}");
    let triggers = "SELECT string_agg(DISTINCT tgrelid::regclass::text, ' ') FROM pg_trigger WHERE tgname = 'crossfade_i' \
                    AND tgrelid IN ('users'::regclass, 'sales.orders'::regclass)";
    assert_eq!(pair.admin(newest()).run(triggers).as_deref(), Some("users"));
    pair.install();
    let number = "SELECT number FROM crossfade.repositories WHERE name = 'other'";
    assert_eq!(pair.admin(newest()).run(number).as_deref(), Some("3"), "numbers are never used again");
}

#[test]
fn a_locked_table_is_waited_for() {
    let pair = Pair::new("mirror_locked", "");
    let mut holder = pair.admin(oldest());
    holder.run("SET application_name = 'the holder'; BEGIN; INSERT INTO users VALUES (1, 'a')");
    let (code, text) = pair.mirror(&["install", "--patience", "1"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("source: public.users was locked for 1s by process"), "{text}");
    assert!(text.contains("the holder"), "{text}");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| pair.install());
        let mut admin = pair.admin(oldest());
        wait_for("the installation to wait", || {
            admin
                .run("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ShareRowExclusiveLock'")
                .as_deref()
                == Some("1")
        });
        holder.run("COMMIT");
        waits.join().unwrap();
    });
}

#[test]
fn check_says_what_is_missing() {
    let pair = Pair::new("mirror_check", "");
    let (code, text) = pair.command(&["check"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("mirroring of all is not installed or not up to date"), "{text}");
    pair.install();
    let (code, text) = pair.command(&["check"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("mirroring of all is installed"), "{text}");
}
