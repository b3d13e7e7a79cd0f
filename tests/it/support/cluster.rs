//! Throwaway Postgres clusters, started by `tools/cluster`.
//!
//! The two shared ones live until the process ends, however it ends: a shell waits for our process id to vanish and
//! removes what is left.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    tls::authority,
    wire::{Login, Wire},
};

/// A running cluster; superuser `postgres`, password `secret`, TLS on.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    pub(crate) major: u32,
    pub(crate) port: u16,
}

/// The database from which [`Cluster::database`] copies.
const TEMPLATE: &str = "crossfade_it";

/// Tables, types and functions that the suites use.
const SCHEMA: &str = "
CREATE TABLE public.documents (id int PRIMARY KEY, title text NOT NULL, n int NOT NULL DEFAULT 0 CHECK (n >= 0));
CREATE TABLE public.users (id int PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE public.organizations (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE public.deferred (id int PRIMARY KEY, u int CONSTRAINT deferred_u UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE public.people (id int PRIMARY KEY, mood public.mood);
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT CREATE ON SCHEMA public TO PUBLIC;
";

/// Roles of every cluster.
const ROLES: &str = "
CREATE ROLE alice LOGIN PASSWORD 'alice-pw';
CREATE ROLE bob LOGIN PASSWORD 'bob-pw';
CREATE ROLE auditor NOLOGIN;
CREATE ROLE editor NOLOGIN;
GRANT auditor, editor TO alice, bob;
";

/// The oldest major at hand; the source of a migration.
pub(crate) fn oldest() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start("oldest", majors()[0]))
}

/// The newest major at hand; the target of a migration.
pub(crate) fn newest() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start("newest", *majors().last().expect("at least one major")))
}

/// Majors at hand, oldest first.
pub(crate) fn majors() -> Vec<u32> {
    let text = tool(&["majors"]);
    let majors: Vec<u32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert!(!majors.is_empty(), "no Postgres here: run tools/setup");
    majors
}

fn tool(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/cluster");
    let output =
        Command::new(script).args(arguments).stdin(Stdio::null()).output().expect("tools/cluster runs");
    assert!(
        output.status.success(),
        "tools/cluster {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The directory of everything this process leaves on disk. Its creation starts the watchdog.
pub(crate) fn base_dir() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let pid = std::process::id();
        let base = std::env::temp_dir().join(format!("crossfade-it-{pid}"));
        std::fs::create_dir_all(base.join("pids")).expect("the temp dir is writable");
        watchdog(pid, &base);
        base
    })
}

/// Waits for this process to vanish, ends the proxies it left, and removes the clusters and the directory. In a
/// process group of its own, so that Ctrl-C does not reach it.
fn watchdog(pid: u32, base: &Path) {
    use std::os::unix::process::CommandExt;
    let script = r#"
        while kill -0 "$1" 2>/dev/null; do sleep 0.3; done
        for f in "$2"/pids/*; do
            p=${f##*/}
            if tr '\0' '\n' <"/proc/$p/cmdline" 2>/dev/null | grep -q "^$2/"; then kill -9 "$p"; fi
        done
        for d in "$2"/cluster-*; do [ -d "$d" ] && "$3" remove "$d"; done
        rm -rf "$2"
    "#;
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/cluster");
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "watchdog", &pid.to_string()])
        .args([base.as_os_str(), tool.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    // Nobody waits for it: it outlives us.
    drop(command.spawn().expect("sh runs"));
}

impl Cluster {
    /// A cluster of its own for a test that stops or kills it.
    pub(crate) fn start(name: &str, major: u32) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = base_dir().join(format!("cluster-{name}-{number}"));
        std::fs::create_dir_all(dir.join("tls")).expect("the temp dir is writable");
        authority().issue(&dir.join("tls"), "server", "localhost");
        let mut cluster = Self { dir, major, port: 0 };
        cluster.restart();
        let mut admin = cluster.admin("postgres");
        admin.run(ROLES);
        admin.run(&format!("CREATE DATABASE {TEMPLATE}"));
        cluster.admin(TEMPLATE).run(SCHEMA);
        cluster
    }

    /// Starts it again, on its old port.
    pub(crate) fn restart(&mut self) {
        let (dir, major) = (self.dir.display().to_string(), self.major.to_string());
        let port = tool(&["start", &dir, &major]);
        self.port = port.trim().parse().expect("tools/cluster prints the port");
    }

    /// Stops it as an administrator would (`fast`: clients hear 57P01).
    pub(crate) fn stop(&self) {
        tool(&["stop", &self.dir.display().to_string(), "fast"]);
    }

    /// Stops it as a crash would.
    pub(crate) fn kill(&self) {
        tool(&["stop", &self.dir.display().to_string(), "immediate"]);
    }

    /// Sends a signal to the server and all its processes (`STOP`, `CONT`).
    pub(crate) fn signal(&self, name: &str) {
        let file = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).expect("it runs");
        let main = file.lines().next().expect("the process id").to_owned();
        let tell = |pids: &[&str]| {
            let status = Command::new("kill").arg(format!("-{name}")).args(pids).status();
            status.is_ok_and(|s| s.success())
        };
        // The postmaster first: when it is stopped nobody is born unstopped.
        assert!(tell(&[&main]), "kill -{name}");
        let children = Command::new("pgrep").args(["-P", &main]).output().expect("pgrep runs").stdout;
        let children = String::from_utf8(children).expect("numbers");
        // One that is gone by now does not keep the others from being told.
        tell(&children.lines().collect::<Vec<_>>());
    }

    /// Where its files are: `run` has the socket, `data` the configuration.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// A superuser's connection.
    pub(crate) fn admin(&self, database: &str) -> Wire {
        Wire::connect(self.port, &Login::new("postgres", "secret", database)).expect("the cluster answers")
    }

    /// A fresh database with the schema. A copy may have to wait for the session that was in the template last.
    pub(crate) fn database(&self, name: &str) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut admin = self.admin("postgres");
        super::wait_for("a copy of the template", || {
            admin.query(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).is_ok()
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        tool(&["remove", &self.dir.display().to_string()]);
    }
}

/// A fresh database of this name on the two shared clusters.
pub(crate) fn database(name: &str) {
    oldest().database(name);
    newest().database(name);
}
