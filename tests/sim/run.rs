//! One run: two clusters, two proxies, clients, faults; then the verdict.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    client::{Client, Doors},
    faults::{Victims, held},
    judge,
    ledger::Ledger,
    schema,
    support::{
        Rng,
        cluster::{Cluster, majors},
        env_number,
        proxy::Settings,
        wire::{Login, Wire},
    },
};

pub(crate) struct Run {
    mode: &'static str,
    seed: u64,
    victims: Victims,
    ledger: Arc<Ledger>,
}

impl Run {
    /// Two clusters of its own, mirrored, and two proxies before them.
    pub(crate) fn new(mode: &'static str, seed: u64) -> Self {
        let majors = majors();
        let source = Cluster::start("chaos-source", majors[0]);
        let target = Cluster::start("chaos-target", *majors.last().expect("one"));
        let database = "chaos".to_owned();
        for cluster in [&source, &target] {
            cluster.database(&database);
            cluster.admin(&database).run(schema::TABLES);
            cluster.admin(&database).run(&schema::rows(clients()));
        }
        let mut rng = Rng(seed);
        let proxies = ["session", "transaction"].map(|pool_mode| {
            let mut settings = Settings::new_between(&source, &target, &database);
            settings.pool_mode = pool_mode;
            settings.tables += ", \"public.t*\"";
            let first = if mode == SWITCHING { "journaled" } else { mode };
            settings.mirror = format!("mirror = {first:?}");
            "slice = \"2s\"\n".clone_into(&mut settings.mirroring);
            settings.document_reads_target = if mode != "async" && seed.is_multiple_of(2) { 30 } else { 0 };
            // Shorter than a freeze, longer, and as by default.
            settings.mirroring +=
                rng.pick(&["", "apply_timeout = \"1s\"\nlock_timeout = \"300ms\"\nretry_after = \"200ms\""]);
            Mutex::new(settings.start())
        });
        let ledger = Arc::new(Ledger::new());
        let ports = [source.port, target.port];
        let victims = Victims {
            proxies,
            source: Mutex::new(source),
            target: Mutex::new(target),
            ports,
            database,
            ledger: Arc::clone(&ledger),
            switches: mode == SWITCHING,
        };
        Self { mode, seed, victims, ledger }
    }

    /// Works and breaks for `seconds`, then judges.
    pub(crate) fn play(self, seconds: u64) {
        self.disturb(Duration::from_secs(seconds));
        for proxy in &self.victims.proxies {
            let log = held(proxy).log();
            log.lines().filter(|l| l.contains("panicked at")).for_each(|l| self.ledger.broken(l.to_owned()));
        }
        let verdict = self.settle().and_then(|()| judge::judge(&self.ledger, &mut self.admins()));
        let moves =
            self.admins()[0].run("SELECT max(epoch) - 1 FROM crossfade.repositories").unwrap_or_default();
        println!(
            "chaos {} seed {}: {}; the lead moved {moves} times",
            self.mode,
            self.seed,
            self.ledger.figures()
        );
        if let Err(why) = verdict {
            let kept = self.keep();
            panic!(
                "chaos {} CROSSFADE_SEED={}: {why}\nlogs and trace: {}",
                self.mode,
                self.seed,
                kept.display()
            );
        }
        if env_number("CHAOS_KEEP").is_some() {
            println!("logs and trace: {}", self.keep().display());
        }
    }

    fn disturb(&self, time: Duration) {
        let (calm, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let proxies = [0, 1].map(|i| held(&self.victims.proxies[i]).port);
        let doors = Doors { proxies, source: self.victims.ports[0], database: self.victims.database.clone() };
        let mut rng = Rng(self.seed ^ 0x000c_4a05);
        std::thread::scope(|scope| {
            let mut workers = Vec::new();
            for number in 0..clients() {
                let client = Client::new(number, Rng(rng.next()), doors.clone(), Arc::clone(&self.ledger));
                let stop = &stop;
                workers.push(scope.spawn(move || client.live(stop)));
            }
            scope.spawn(|| self.watch(&stop));
            let (breaks, cuts, edits) = (Rng(rng.next()), Rng(rng.next()), Rng(rng.next()));
            let calm = &calm;
            let injectors = [
                scope.spawn(move || self.victims.break_things(breaks, calm)),
                scope.spawn(move || self.victims.cut(cuts, calm)),
                scope.spawn(move || self.victims.edit(edits, calm)),
            ];
            let end = Instant::now() + time;
            while Instant::now() < end && !injectors.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(Duration::from_millis(50));
            }
            calm.store(true, Ordering::Relaxed);
            for injector in injectors {
                injector.join().expect("faults could be injected");
            }
            // Some transactions without a fault: it must work again.
            std::thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// Watches how the journal grows.
    fn watch(&self, stop: &AtomicBool) {
        let mut admin = None;
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(200));
            let login = Login::new("postgres", "secret", &self.victims.database);
            if admin.is_none() {
                admin = Wire::connect(self.victims.ports[0], &login).ok();
            }
            let Some(open) = &mut admin else { continue };
            match open.query("SELECT count(*) FROM crossfade.journal") {
                Ok(rows) => {
                    let rows = rows[0][0].as_deref().and_then(|n| n.parse().ok()).unwrap_or(0);
                    let mut ledger = self.ledger.lock();
                    ledger.journal = ledger.journal.max(rows);
                }
                Err(_) => admin = None,
            }
        }
    }

    fn admins(&self) -> [Wire; 2] {
        self.victims.ports.map(|port| {
            Wire::connect(port, &Login::new("postgres", "secret", &self.victims.database))
                .expect("the cluster answers")
        })
    }

    /// Waits until nothing is on its way any more.
    fn settle(&self) -> Result<(), String> {
        let mut admins = self.admins();
        let end = Instant::now() + SETTLE;
        let left =
            "SELECT (SELECT count(*) FROM crossfade.journal) + (SELECT count(*) FROM pg_prepared_xacts)";
        let mut quiet = 0;
        while Instant::now() < end {
            // A transaction whose client is gone may still be at work: twice in a row.
            let empty = admins.iter_mut().all(|side| side.run(left).as_deref() == Some("0"));
            quiet = if empty { quiet + 1 } else { 0 };
            if quiet == 10 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut said = "something stays in the journal or in doubt".to_owned();
        for proxy in &self.victims.proxies {
            let mut console =
                held(proxy).console("alice").map_err(|e| format!("{said}; no console: {e:?}"))?;
            for question in ["SHOW JOURNAL", "SHOW IN_DOUBT"] {
                let _ = write!(said, "\n{question}: {:?}", console.query(question));
            }
        }
        for admin in &mut admins {
            for question in [
                "SELECT id, sync, at, entries FROM crossfade.journal LIMIT 5",
                "SELECT * FROM pg_prepared_xacts",
            ] {
                let _ = write!(said, "\n{:?}", admin.query(question));
            }
        }
        Err(said)
    }

    /// Copies logs and trace to where they outlive the run.
    fn keep(&self) -> PathBuf {
        let dir =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}-{}", self.mode, self.seed));
        std::fs::create_dir_all(&dir).expect("writable");
        let write = |name: &str, text: String| std::fs::write(dir.join(name), text).expect("writable");
        write("trace", self.ledger.trace());
        for (name, proxy) in ["session.log", "transaction.log"].iter().zip(&self.victims.proxies) {
            write(name, held(proxy).log());
        }
        write("source.log", held(&self.victims.source).log());
        write("target.log", held(&self.victims.target).log());
        dir
    }
}

fn clients() -> usize {
    env_number("CHAOS_CLIENTS").map_or(12, |n| usize::try_from(n).expect("few"))
}

/// Not one mode, but all of them in turn.
pub(crate) const SWITCHING: &str = "switching";
/// How long the journal may take to become empty.
const SETTLE: Duration = Duration::from_secs(60);
