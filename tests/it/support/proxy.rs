//! A crossfade process with a configuration of its own.

use std::{
    fmt::Write as _,
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    cluster::{Cluster, base_dir, newest, oldest},
    free_port, holds_within, http,
    tls::{authority, write_private},
    wait_for,
    wire::{DbError, Login, Wire},
};

/// What becomes `proxy.toml`. Text is replaced and appended, so that a test can write what is wrong, too.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) source: u16,
    pub(crate) target: u16,
    pub(crate) database: String,
    pub(crate) pool_mode: &'static str,
    pub(crate) pool_size: usize,
    pub(crate) auth: String,
    pub(crate) users: String,
    /// Body of `[client_tls]` or empty.
    pub(crate) client_tls: String,
    pub(crate) backend_tls: &'static str,
    pub(crate) timeouts: String,
    pub(crate) limits: String,
    pub(crate) admin: String,
    pub(crate) log: String,
    pub(crate) routing: String,
    /// More lines of `[listen]`; `PORT` is the proxy's port.
    pub(crate) listen: String,
    /// Host of source and target.
    pub(crate) hosts: [String; 2],
    /// More lines of `[source]` and `[target]`; replaces the password when it names one.
    pub(crate) backend: String,
    pub(crate) environment: Vec<(String, String)>,
    /// Share of `document` whose reads go to the target, in percent.
    pub(crate) document_reads_target: u32,
    /// Whole writes of `document` to the target.
    pub(crate) document_writes_target: bool,
    /// Share of every repository's writes that the target leads, in percent. Wins over `document_writes_target`.
    pub(crate) writes_target: Option<u32>,
    /// More lines of every `[[repository]]`; what mirroring needs is installed before the start.
    pub(crate) mirror: String,
    /// Body of `[mirror]`.
    pub(crate) mirroring: String,
    /// More lines of every `[[repository]]`, without mirroring.
    pub(crate) repositories: String,
    /// Body of `[shadow]`.
    pub(crate) shadow: String,
    /// Body of `[telemetry]`.
    pub(crate) telemetry: String,
    /// `tables` of the repository `document`.
    pub(crate) tables: String,
}

impl Settings {
    /// The shared clusters, session pooling, the users of the tests.
    pub(crate) fn new(database: &str) -> Self {
        Self::new_between(oldest(), newest(), database)
    }

    /// The same for other clusters.
    pub(crate) fn new_between(source: &Cluster, target: &Cluster, database: &str) -> Self {
        Self {
            source: source.port,
            target: target.port,
            database: database.to_owned(),
            pool_mode: "session",
            pool_size: 20,
            auth: "method = \"scram-sha-256\"".to_owned(),
            users: [("postgres", "secret"), ("alice", "alice-pw"), ("bob", "bob-pw")]
                .iter()
                .fold(String::new(), |text, (name, password)| text + &user(name, password)),
            client_tls: String::new(),
            backend_tls: "prefer",
            timeouts: String::new(),
            limits: String::new(),
            admin: "admin_users = [\"alice\"]\nstats_users = [\"bob\"]".to_owned(),
            log: String::new(),
            routing: String::new(),
            // Several, whatever the machine has: what changes threads is to be tested.
            listen: "threads = 2".to_owned(),
            hosts: ["127.0.0.1", "127.0.0.1"].map(str::to_owned),
            backend: String::new(),
            environment: Vec::new(),
            document_reads_target: 0,
            document_writes_target: false,
            writes_target: None,
            mirror: String::new(),
            mirroring: String::new(),
            repositories: String::new(),
            shadow: String::new(),
            telemetry: String::new(),
            tables: "\"public.documents\"".to_owned(),
        }
    }

    /// The same with source and target swapped or other clusters.
    pub(crate) fn backends(mut self, source: &Cluster, target: &Cluster) -> Self {
        (self.source, self.target) = (source.port, target.port);
        self
    }

    /// The same in transaction pooling with this many server connections per user and backend.
    pub(crate) fn transaction(mut self, size: usize) -> Self {
        (self.pool_mode, self.pool_size) = ("transaction", size);
        self
    }

    /// The same with TLS towards clients.
    pub(crate) fn tls(mut self, mode: &str) -> Self {
        let (certificate, key) = authority().server();
        self.client_tls = format!(
            "mode = {mode:?}\ncertificate = '{}'\nkey = '{}'\nclient_ca = '{}'\n",
            certificate.display(),
            key.display(),
            authority().ca().display()
        );
        self
    }

    fn toml(&self, port: u16, http: u16) -> String {
        let Self { source, target, database, pool_mode, pool_size, backend_tls, .. } = self;
        let mut toml = format!(
            "[listen]\naddresses = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\n{}\n\n[auth]\n{}\n\n{}\n[pool]\nmode = \"{pool_mode}\"\nsize = {pool_size}\n",
            self.listen, self.auth, self.users
        );
        let secret = if self.backend.contains("password") { "" } else { "password = \"secret\"\n" };
        for (side, port, host) in [("source", source, &self.hosts[0]), ("target", target, &self.hosts[1])] {
            let _ = write!(
                toml,
                "\n[{side}]\nhost = \"{host}\"\nport = {port}\ndatabase = \"{database}\"\nuser = \"postgres\"\n{secret}tls = \"{backend_tls}\"\n{}\n",
                self.backend
            );
        }
        for (table, body) in [
            ("client_tls", &self.client_tls),
            ("timeouts", &self.timeouts),
            ("limits", &self.limits),
            ("routing", &self.routing),
            ("log", &self.log),
            ("mirror", &self.mirroring),
            ("shadow", &self.shadow),
            ("telemetry", &self.telemetry),
        ] {
            if !body.is_empty() {
                let _ = write!(toml, "\n[{table}]\n{body}\n");
            }
        }
        let _ = write!(toml, "\n[admin]\nhttp = \"127.0.0.1:{http}\"\n{}\n", self.admin);
        let reads = self.document_reads_target;
        let others = self.writes_target.unwrap_or(0);
        let writes = self.writes_target.unwrap_or(if self.document_writes_target { 100 } else { 0 });
        let _ = write!(
            toml,
            "\n[[repository]]\nname = \"document\"\ntables = [{}]\nreads = {{ source = {}, target = {reads} }}\nwrites = {{ source = {}, target = {writes} }}\n{}\n",
            self.tables,
            100 - reads,
            100 - writes,
            [self.mirror.as_str(), &self.repositories].join("\n")
        );
        for (name, tables) in [("user", "public.users"), ("organization", "public.organizations")] {
            let _ = write!(
                toml,
                "\n[[repository]]\nname = \"{name}\"\ntables = [\"{tables}\"]\nreads = {{ source = 100, target = 0 }}\nwrites = {{ source = {}, target = {others} }}\n{}\n",
                100 - others,
                [self.mirror.as_str(), &self.repositories].join("\n")
            );
        }
        toml
    }

    /// Starts the proxy; in direct mode a stand-in that is the source itself.
    pub(crate) fn start(self) -> Proxy {
        Proxy::start(self)
    }
}

/// Another build, such as a release, can be put to the test by its path.
fn binary() -> std::ffi::OsString {
    std::env::var_os("CROSSFADE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_crossfade").into())
}

/// A `[[user]]` table.
pub(crate) fn user(name: &str, password: &str) -> String {
    format!("[[user]]\nname = {name:?}\npassword = {password:?}\n")
}

/// A running proxy. Dropped, it is killed and reaped.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) settings: Settings,
    pub(crate) port: u16,
    pub(crate) http: u16,
    dir: PathBuf,
    child: Option<Child>,
}

impl Proxy {
    fn start(settings: Settings) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let dir = base_dir().join(format!("proxy-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&dir).expect("the temp dir is writable");
        if super::direct() {
            return Self { port: settings.source, http: 0, settings, dir, child: None };
        }
        let mut proxy = Self { port: free_port(), http: free_port(), settings, dir, child: None };
        proxy.write_config();
        if !proxy.settings.mirror.is_empty() {
            proxy.command(&["mirror", "install"]);
        }
        proxy.launch();
        proxy
    }

    /// Runs another command of the binary with this configuration; what it says.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        let done = Command::new(binary())
            .args(arguments)
            .arg("--config")
            .arg(self.config_file())
            .stdin(Stdio::null())
            .output()
            .expect("the binary was built");
        let said =
            [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(done.status.success(), "crossfade {arguments:?}: {said}");
        said
    }

    /// Starts the process on the configuration as it is and waits until it accepts.
    pub(crate) fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("writable");
        let child = Command::new(binary())
            .args(["serve", "--config"])
            .arg(self.config_file())
            .envs(self.settings.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the binary was built");
        File::create(base_dir().join("pids").join(child.id().to_string())).expect("writable");
        self.child = Some(child);
        let accepts = holds_within(super::PATIENCE, || {
            let gone = self.child.as_mut().is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
            gone || std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        let alive = self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)));
        assert!(accepts && alive, "crossfade does not serve; its log:\n{}", self.log());
    }

    /// The configuration file.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.join("proxy.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Replaces the file as an editor does: a new file, renamed over the old one.
    pub(crate) fn write_text(&self, text: &str) {
        let new = self.dir.join("proxy.toml.new");
        write_private(&new, text);
        std::fs::rename(&new, self.config_file()).expect("same directory");
    }

    /// The text of the configuration as the settings have it.
    pub(crate) fn text(&self) -> String {
        self.settings.toml(self.port, self.http)
    }

    fn write_config(&self) {
        self.write_text(&self.text());
    }

    /// `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        http::get(self.http, "/metrics").map(|(_, body)| body).unwrap_or_default()
    }

    /// A metric of the proxy, without its prefix.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        http::metric(&self.metrics(), &format!("crossfade_{name}"), labels)
    }

    /// The line with the hash of the live configuration.
    pub(crate) fn live_hash(&self) -> String {
        let metrics = self.metrics();
        let line = metrics.lines().find(|l| l.starts_with("crossfade_config_info{") && l.ends_with(" 1"));
        line.unwrap_or_default().to_owned()
    }

    /// Changes the settings in the file and waits until they are live.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Settings)) {
        let before = self.live_hash();
        self.rewrite(change);
        wait_for("the new configuration", || self.live_hash() != before);
    }

    /// Changes the settings in the file; whether the process runs, and when it takes them, is not looked at.
    pub(crate) fn rewrite(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.write_config();
    }

    /// A login with the password of the suites' users and the proxy's database.
    pub(crate) fn login(&self, user: &str) -> Login {
        let password = if user == "postgres" { "secret".to_owned() } else { format!("{user}-pw") };
        Login::new(user, &password, &self.settings.database)
    }

    /// A logged-in client.
    pub(crate) fn client(&self, user: &str) -> Wire {
        self.try_client(user).unwrap_or_else(|e| panic!("{user} cannot log in: {e:?}; log:\n{}", self.log()))
    }

    /// A client that may fail to log in.
    pub(crate) fn try_client(&self, user: &str) -> Result<Wire, DbError> {
        Wire::connect(self.port, &self.login(user))
    }

    /// A client of the admin console.
    pub(crate) fn console(&self, user: &str) -> Result<Wire, DbError> {
        let mut login = self.login(user);
        login.parameters = vec![("database".to_owned(), "crossfade".to_owned())];
        Wire::connect(self.port, &login)
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    /// Sends a signal by name (`TERM`, `HUP`).
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -{name}");
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(base_dir().join("pids").join(child.id().to_string()));
        }
    }

    /// Its exit status once it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().expect("our own child"))
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
    }

    /// Resident memory in KiB; from now on the peak is counted anew.
    pub(crate) fn forget_peak_kib(&self) -> u64 {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("our own child");
        self.resident_kib()
    }

    /// The most resident memory in KiB since then.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// CPU seconds used so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() && !super::direct() {
            let log = self.log();
            let tail = log.lines().rev().take(30).collect::<Vec<_>>();
            eprintln!(
                "--- end of the proxy's log ---\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
