//! `crossfade mirror install|status|remove`: what it puts on both databases, and what that captures.

mod capture;

use std::{fmt::Write as _, process::Command};

use crate::support::{
    cluster::{Cluster, base_dir, newest, oldest},
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

    /// `crossfade mirror ...`: exit code and output.
    pub(crate) fn mirror(&self, arguments: &[&str]) -> (i32, String) {
        let path = base_dir().join(format!("{}.toml", self.name));
        std::fs::write(&path, &self.toml).expect("writable");
        let output = Command::new(env!("CARGO_BIN_EXE_crossfade"))
            .arg("mirror")
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
