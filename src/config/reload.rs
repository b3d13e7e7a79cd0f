//! The configuration while crossfade runs: read again on demand or when a file changes, published whole
//! or not at all.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use notify::{EventKind, RecursiveMode, Watcher as _, event::AccessKind, event::AccessMode};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{
    Config,
    check::{self, Checked, Contents, Inputs},
    file::{Mistake, Place},
};

/// The configuration in force.
#[derive(Debug)]
pub struct Live {
    config: Arc<ArcSwap<Config>>,
    observer: OnceLock<Observer>,
    path: PathBuf,
    environment: Vec<(String, String)>,
    generation: watch::Sender<u64>,
    /// Held through a reload, so that two of them come one after the other.
    state: Mutex<State>,
}

/// Hears of every reload.
pub struct Observer(Box<Observe>);

type Observe = dyn Fn(Result<&Arc<Config>, &[Mistake]>, &Config) + Send + Sync;

impl Observer {
    /// See [`Live::observe`].
    pub fn new(f: impl Fn(Result<&Arc<Config>, &[Mistake]>, &Config) + Send + Sync + 'static) -> Self {
        Self(Box::new(f))
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

#[derive(Debug)]
struct State {
    /// Files that the last reading read or tried to read, `proxy.toml` included.
    files: Digests,
}

/// Files, and digests of their contents when they were read; `None` for one that could not be.
type Digests = BTreeMap<PathBuf, Option<[u8; 32]>>;

/// A reload that was published.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// The new configuration.
    pub config: Arc<Config>,
    /// Allowed, and probably not meant; and what needs a restart.
    pub warnings: Vec<Mistake>,
}

/// What asked for a reload; the word is for logs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// SIGHUP.
    Signal,
    /// A file changed.
    File,
    /// RELOAD on the console.
    Admin,
}

impl Live {
    /// Reads `path` for the first time. The environment is taken as it is now: it cannot change later.
    pub fn open(
        path: &Path,
        environment: Vec<(String, String)>,
    ) -> Result<(Self, Vec<Mistake>), Vec<Mistake>> {
        let (checked, files) = read(path, &environment, 1);
        let config = checked.config?;
        let live = Self {
            config: Arc::new(ArcSwap::from_pointee(config)),
            observer: OnceLock::new(),
            path: path.to_owned(),
            environment,
            generation: watch::Sender::new(1),
            state: Mutex::new(State { files }),
        };
        Ok((live, checked.warnings))
    }

    /// The configuration in force.
    pub fn get(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// For an `arc_swap::cache::Cache` per thread.
    pub fn shared(&self) -> Arc<ArcSwap<Config>> {
        Arc::clone(&self.config)
    }

    /// Follows the generation of what is published.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads everything again and publishes it with the next generation; with any mistake in it nothing
    /// changes. Blocks on the file system.
    ///
    /// `[listen]` and `admin.http` keep the values crossfade was started with; a warning says so.
    pub fn reload(&self, why: Why) -> Result<Reloaded, Vec<Mistake>> {
        self.reload_locked(why, &mut self.lock())
    }

    /// Reloads if a file is another than at the last attempt.
    fn reload_if_changed(&self) {
        let mut state = self.lock();
        if state.files.iter().any(|(file, old)| digest(&read_file(file)) != *old) {
            // The mistakes were logged and counted; there is nobody to tell.
            let _ = self.reload_locked(Why::File, &mut state);
        }
    }

    fn reload_locked(&self, why: Why, state: &mut State) -> Result<Reloaded, Vec<Mistake>> {
        let old = self.get();
        let generation = old.policy.generation + 1;
        let (checked, files) = read(&self.path, &self.environment, generation);
        if checked.config.is_ok() {
            state.files = files;
        } else {
            // The files of a configuration that cannot be read are unknown: those of the last one stay.
            state.files.extend(files);
        }
        let mut warnings = checked.warnings;
        let mut config = match checked.config {
            Ok(config) => config,
            Err(mistakes) => {
                self.tell(Err(&mistakes), &old);
                for mistake in &mistakes {
                    tracing::error!(why = why.word(), "configuration not changed: {mistake}");
                }
                return Err(mistakes);
            }
        };
        warnings.extend(keep_what_needs_a_restart(&old, &mut config, &self.path));
        for warning in &warnings {
            tracing::warn!(why = why.word(), "configuration: {warning}");
        }
        tracing::info!(why = why.word(), generation, hash = %config.hash, "configuration loaded");
        let config = Arc::new(config);
        self.config.store(config.clone());
        self.generation.send_replace(generation);
        self.tell(Ok(&config), &old);
        Ok(Reloaded { config, warnings })
    }

    /// `observer` hears of every reload: the new configuration or all its mistakes, and the one before.
    pub fn observe(&self, observer: Observer) {
        assert!(self.observer.set(observer).is_ok(), "there is one observer");
    }

    fn tell(&self, result: Result<&Arc<Config>, &[Mistake]>, old: &Config) {
        if let Some(observer) = self.observer.get() {
            observer.0(result, old);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is behind the lock is replaced whole, so a panic leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directories(&self) -> BTreeSet<PathBuf> {
        let directory = |file: &PathBuf| {
            file.parent().map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p.to_owned() })
        };
        self.lock().files.keys().filter_map(directory).collect()
    }
}

impl Why {
    fn word(self) -> &'static str {
        match self {
            Why::Signal => "signal",
            Why::File => "file",
            Why::Admin => "admin",
        }
    }
}

/// Watches the files' directories until dropped.
#[derive(Debug)]
pub struct Watching {
    wake: mpsc::Sender<Wake>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        // Fails only when the thread has ended.
        let _ = self.wake.send(Wake::Stop);
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wake {
    /// Something happened in one of the directories, or events were lost: the files tell what.
    Look,
    Stop,
}

/// Reloads `live` about 100 ms after its files settle, on a thread of its own; an error is a thread that could
/// not be started.
///
/// Directories are watched rather than files: editors and `ConfigMap`s replace a file, and a watch on it
/// would stay with the one that is gone.
pub fn watch(live: &Arc<Live>) -> io::Result<Watching> {
    let (wake, wakes) = mpsc::channel();
    let sender = wake.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the files is an event too. An error means that events were lost.
        if event.is_err() || event.is_ok_and(|e| is_change(e.kind)) {
            // Fails only when the thread has ended.
            let _ = sender.send(Wake::Look);
        }
    });
    let mut watcher = watcher
        .inspect_err(|error| {
            tracing::warn!("no events of the file system, looking every 5 s instead: {error}");
        })
        .ok();
    let mut directories = BTreeSet::new();
    rewatch(watcher.as_mut(), &mut directories, live.directories());
    let live = Arc::downgrade(live);
    let body = move || {
        loop {
            let mut wake = wakes.recv_timeout(LOOK);
            // Another file of the directory may change all the time: it must not put this off for ever.
            let latest = Instant::now() + SETTLE * 10;
            while wake == Ok(Wake::Look) && Instant::now() < latest {
                wake = wakes.recv_timeout(SETTLE);
            }
            if matches!(wake, Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            let Some(live) = live.upgrade() else { return };
            live.reload_if_changed();
            rewatch(watcher.as_mut(), &mut directories, live.directories());
        }
    };
    thread::Builder::new().name("config-watch".to_owned()).spawn(body)?;
    Ok(Watching { wake })
}

/// Files are looked at this often without any event: some mounts (NFS) send none.
const LOOK: Duration = Duration::from_secs(5);
/// An editor's several steps count as one change.
const SETTLE: Duration = Duration::from_millis(30);

fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

fn rewatch(
    watcher: Option<&mut notify::RecommendedWatcher>,
    current: &mut BTreeSet<PathBuf>,
    wanted: BTreeSet<PathBuf>,
) {
    let Some(watcher) = watcher else { return };
    for directory in wanted.difference(current) {
        if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
            // It is still looked at every few seconds.
            tracing::warn!("cannot watch {}: {error}", directory.display());
        }
    }
    for directory in current.difference(&wanted) {
        // It may be gone, and its watch with it.
        let _ = watcher.unwatch(directory);
    }
    *current = wanted;
}

/// Puts the old values of what cannot change back, a warning for each.
fn keep_what_needs_a_restart(old: &Config, new: &mut Config, path: &Path) -> Vec<Mistake> {
    let mut warnings = Vec::new();
    let mut warn = |key: &str| {
        warnings.push(Mistake {
            place: Place::whole(&path.to_string_lossy()),
            key: key.to_owned(),
            message: "a change needs a restart; the old value stays in force".to_owned(),
            suggestion: None,
        });
    };
    if old.listen != new.listen {
        warn("listen");
        new.listen = old.listen.clone();
    }
    if old.admin.http != new.admin.http {
        warn("admin.http");
        new.admin.http = old.admin.http;
    }
    if !warnings.is_empty() {
        new.hash = check::hash(new);
    }
    warnings
}

/// Reads and checks `path` with everything it names, once.
pub fn check_file(path: &Path, environment: &[(String, String)]) -> Checked {
    read(path, environment, 1).0
}

fn read(path: &Path, environment: &[(String, String)], generation: u64) -> (Checked, Digests) {
    let unreadable = |message: String| Checked {
        config: Err(vec![Mistake {
            place: Place::whole(&path.to_string_lossy()),
            key: String::new(),
            message,
            suggestion: None,
        }]),
        warnings: Vec::new(),
        files: Vec::new(),
    };
    // Digests of what was read, not of what the files hold a moment later: a change in between must be noticed.
    let digests = RefCell::new(BTreeMap::new());
    let read_file = |file: &Path| {
        let contents = read_file(file);
        digests.borrow_mut().insert(file.to_owned(), digest(&contents));
        contents
    };
    let contents = match read_file(path) {
        Ok(contents) => contents,
        Err(error) => {
            return (unreadable(format!("cannot be read: {error}")), digests.into_inner());
        }
    };
    let Ok(text) = String::from_utf8(contents.bytes) else {
        return (unreadable("is not UTF-8".to_owned()), digests.into_inner());
    };
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut checked =
        check::check(&Inputs { path, text: &text, environment, read: &read_file, cores, generation });
    let holds_secrets = |c: &Config| {
        let secret = |s: &super::Secret| *s != super::Secret::None;
        c.backends.iter().any(|b| secret(&b.control_secret))
            || c.auth.users.values().any(|u| secret(&u.secret))
    };
    // Secrets of other files only would be a false alarm; the file's own text tells.
    let inline = text.lines().any(|l| !l.trim_start().starts_with('#') && l.contains("password ="));
    if contents.world_readable && inline && checked.config.as_ref().is_ok_and(holds_secrets) {
        checked.warnings.push(Mistake {
            place: Place::whole(&path.to_string_lossy()),
            key: String::new(),
            message: "holds passwords and everybody on this machine may read it".to_owned(),
            suggestion: Some("chmod o-rwx it, or use password_file".to_owned()),
        });
    }
    (checked, digests.into_inner())
}

fn read_file(path: &Path) -> io::Result<Contents> {
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _};
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::other("is a directory"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("is larger than 16 MiB"));
    }
    Ok(Contents { bytes, world_readable: metadata.permissions().mode() & 0o004 != 0 })
}

/// No configuration is larger; a device or a pipe would be endless.
const MAX_FILE_BYTES: u64 = 16 << 20;

fn digest(contents: &io::Result<Contents>) -> Option<[u8; 32]> {
    contents.as_ref().ok().map(|c| Sha256::digest(&c.bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[[user]]\nname = 'app'\npassword = 'x'\n[source]\nhost = 'a'\ndatabase = 'd'\n\
                        [target]\nhost = 'b'\ndatabase = 'd'\n";

    /// A directory that is removed in the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("crossfade-reload-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn put(&self, name: &str, text: &str) {
            // As editors do it.
            fs::write(self.0.join("new"), text).unwrap();
            fs::rename(self.0.join("new"), self.0.join(name)).unwrap();
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[track_caller]
    fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_bad_file_changes_nothing() {
        let directory = Directory::new("bad");
        directory.put("proxy.toml", BASE);
        let (live, _) = Live::open(&directory.0.join("proxy.toml"), Vec::new()).unwrap();
        let before = live.get();
        directory.put("proxy.toml", &format!("[pool]\nsise = 3\n{BASE}"));
        assert_eq!(live.reload(Why::Signal).unwrap_err().len(), 1);
        assert!(Arc::ptr_eq(&before, &live.get()));
        fs::remove_file(directory.0.join("proxy.toml")).unwrap();
        assert_eq!(live.reload(Why::Signal).unwrap_err().len(), 1);
        directory.put("proxy.toml", &format!("[pool]\nsize = 3\n{BASE}"));
        let reloaded = live.reload(Why::Signal).unwrap();
        assert_eq!((reloaded.config.policy.generation, reloaded.config.pool.size), (2, 3));
        assert_eq!(*live.subscribe().borrow(), 2);
    }

    #[test]
    fn listen_and_http_keep_their_values() {
        let directory = Directory::new("listen");
        directory.put("proxy.toml", BASE);
        let (live, _) = Live::open(&directory.0.join("proxy.toml"), Vec::new()).unwrap();
        let before = live.get();
        let text = "[listen]\naddresses = ['127.0.0.1:1']\n[admin]\nhttp = ''\nstats_users = ['app']\n";
        directory.put("proxy.toml", &format!("{text}{BASE}"));
        let reloaded = live.reload(Why::Admin).unwrap();
        let keys: Vec<&str> =
            reloaded.warnings.iter().map(|w| w.key.as_str()).filter(|k| !k.is_empty()).collect();
        assert_eq!(keys, ["listen", "admin.http"]);
        assert_eq!(reloaded.config.listen, before.listen);
        assert_eq!(reloaded.config.admin.http, before.admin.http);
        assert_eq!(reloaded.config.admin.stats_users, ["app"]);
        assert_ne!(reloaded.config.hash, before.hash);
    }

    #[test]
    fn changed_files_are_noticed() {
        let directory = Directory::new("watch");
        directory.put("proxy.toml", &format!("[auth]\nusers_file = 'users.toml'\n{BASE}"));
        directory.put("users.toml", "");
        let (live, _) = Live::open(&directory.0.join("proxy.toml"), Vec::new()).unwrap();
        let live = Arc::new(live);
        let _watching = watch(&live).unwrap();
        directory.put("users.toml", "[[user]]\nname = 'b'\npassword = 'x'\n");
        wait_for("a new user", || live.get().auth.users.contains_key("b"));
        let generation = live.get().policy.generation;
        directory.put("proxy.toml", BASE);
        wait_for("a new configuration", || live.get().policy.generation > generation);
        assert!(!live.get().auth.users.contains_key("b"));
    }

    #[test]
    fn a_config_map_is_noticed() {
        // proxy.toml -> ..data/proxy.toml, ..data -> ..1; an update replaces the link ..data.
        let directory = Directory::new("map");
        let link = |version: &str, text: &str| {
            let version_dir = directory.0.join(version);
            fs::create_dir(&version_dir).unwrap();
            fs::write(version_dir.join("proxy.toml"), text).unwrap();
            std::os::unix::fs::symlink(version, directory.0.join("..tmp")).unwrap();
            fs::rename(directory.0.join("..tmp"), directory.0.join("..data")).unwrap();
        };
        link("..1", BASE);
        std::os::unix::fs::symlink("..data/proxy.toml", directory.0.join("proxy.toml")).unwrap();
        let (live, _) = Live::open(&directory.0.join("proxy.toml"), Vec::new()).unwrap();
        let live = Arc::new(live);
        let _watching = watch(&live).unwrap();
        link("..2", &format!("[pool]\nsize = 4\n{BASE}"));
        wait_for("the new map", || live.get().pool.size == 4);
    }
}
