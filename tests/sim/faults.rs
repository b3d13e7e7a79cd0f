//! What goes wrong: processes die, servers crash or freeze, connections are cut.

use std::{
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    ledger::Ledger,
    support::{
        Rng,
        cluster::Cluster,
        proxy::Proxy,
        wire::{Login, Wire},
    },
};

/// What can be hurt.
pub(crate) struct Victims {
    pub(crate) proxies: [Mutex<Proxy>; 2],
    pub(crate) source: Mutex<Cluster>,
    pub(crate) target: Mutex<Cluster>,
    pub(crate) ports: [u16; 2],
    pub(crate) database: String,
    pub(crate) ledger: Arc<Ledger>,
    /// Modes and leads are edited, too.
    pub(crate) switches: bool,
}

impl Victims {
    /// Kills and freezes until it is told to stop; leaves everything running.
    pub(crate) fn break_things(&self, mut rng: Rng, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            pause(&mut rng, 400 * self.calm());
            match rng.below(10) {
                0..5 => self.kill_proxy(&mut rng),
                5 | 6 => self.crash("source crash", &self.source, &mut rng),
                7 | 8 => self.crash("target crash", &self.target, &mut rng),
                _ => self.freeze(&mut rng),
            }
        }
    }

    /// A lead moves only where the journal gets empty in between.
    fn calm(&self) -> u64 {
        if self.switches { 8 } else { 1 }
    }

    /// Cuts connections until it is told to stop.
    pub(crate) fn cut(&self, mut rng: Rng, stop: &AtomicBool) {
        let mut sides = [None, None];
        while !stop.load(Ordering::Relaxed) {
            pause(&mut rng, 250 * self.calm());
            let side = rng.below(2);
            if sides[side].is_none() {
                sides[side] =
                    Wire::connect(self.ports[side], &Login::new("postgres", "secret", &self.database)).ok();
            }
            let Some(admin) = &mut sides[side] else { continue };
            let which = match rng.below(3) {
                0 => "usename = 'alice'",
                1 => "state <> 'idle'",
                _ => "true",
            };
            // Random on the server: which sessions there are is nothing that a seed can repeat.
            let sql = format!(
                "SELECT pid, application_name, left(query, 60), pg_terminate_backend(pid) FROM (SELECT * FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND {which} \
                 ORDER BY random() LIMIT {}) a",
                1 + rng.below(3)
            );
            match admin.query(&sql) {
                Ok(rows) => {
                    let kind = ["cut on source", "cut on target"][side];
                    for row in rows {
                        self.ledger.fault(kind, &format!("{row:?}"));
                    }
                }
                Err(_) => sides[side] = None,
            }
        }
    }

    /// Edits modes and leads until it is told to stop.
    pub(crate) fn edit(&self, mut rng: Rng, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            pause(&mut rng, 3_000);
            self.switch(&mut rng);
            // In the middle of a move, as often as not.
            if self.switches && rng.chance(30) {
                pause(&mut rng, 500);
                self.kill_proxy(&mut rng);
            }
        }
    }

    /// Another mode, another lead, in both files or in one of them; whatever the proxies are at.
    fn switch(&self, rng: &mut Rng) {
        if !self.switches {
            return;
        }
        let mode = rng.pick(&["async", "journaled", "atomic"]);
        let share = rng.pick(if mode == "async" { &[0, 100][..] } else { &[0, 50, 50, 100] });
        self.ledger.fault("mode or lead edited", &format!("{mode}, {share} % led by the target"));
        let first = rng.below(2);
        for number in [first, 1 - first] {
            // The other one may be late, or keep what it has.
            if number != first && rng.chance(15) {
                continue;
            }
            held(&self.proxies[number]).rewrite(|s| {
                s.mirror = format!("mirror = {mode:?}");
                s.writes_target = Some(share);
            });
            pause(rng, 300);
        }
    }

    fn kill_proxy(&self, rng: &mut Rng) {
        let number = rng.below(2);
        let mut proxy = held(&self.proxies[number]);
        self.ledger.fault("proxy killed", &number.to_string());
        proxy.kill();
        if rng.chance(30) {
            pause(rng, 1_000);
        }
        if self.switches && rng.chance(30) {
            proxy.rewrite(|s| s.mirror = format!("mirror = {:?}", rng.pick(&["journaled", "atomic"])));
        }
        proxy.launch();
        self.ledger.note("FAULT", "proxy started");
    }

    fn crash(&self, kind: &'static str, cluster: &Mutex<Cluster>, rng: &mut Rng) {
        let mut cluster = held(cluster);
        self.ledger.fault(kind, "");
        cluster.kill();
        if rng.chance(30) {
            pause(rng, 2_000);
        }
        // The other proxy's hour: it may have to go on from what this one left.
        if rng.chance(20) {
            self.kill_proxy(rng);
        }
        if rng.chance(25) {
            self.switch(rng);
        }
        cluster.restart();
        self.ledger.note("FAULT", &format!("{kind}: it runs again"));
        if rng.chance(25) {
            self.switch(rng);
        }
    }

    fn freeze(&self, rng: &mut Rng) {
        let cluster = held(&self.target);
        self.ledger.fault("target frozen", "");
        let longest = if rng.chance(25) { 6_000 } else { 1_500 };
        signal(&cluster, "STOP");
        pause(rng, longest);
        if rng.chance(20) {
            self.kill_proxy(rng);
        }
        signal(&cluster, "CONT");
        self.ledger.note("FAULT", "target thawed");
    }
}

/// To the server and its processes, whichever of them are there: they come and go.
fn signal(cluster: &Cluster, name: &str) {
    let file = std::fs::read_to_string(cluster.dir().join("data/postmaster.pid")).expect("it runs");
    let main = file.lines().next().expect("the process id").to_owned();
    let kill =
        |pids: &[&str]| Command::new("kill").arg(format!("-{name}")).args(pids).output().expect("kill runs");
    // First, so that nobody is born unstopped.
    if name == "STOP" {
        kill(&[&main]);
    }
    let children = Command::new("pgrep").args(["-P", &main]).output().expect("pgrep runs").stdout;
    let children = String::from_utf8(children).expect("numbers");
    for pid in children.lines() {
        kill(&[pid]);
    }
    kill(&[&main]);
}

pub(crate) fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pause(rng: &mut Rng, most_ms: u64) {
    std::thread::sleep(Duration::from_millis(rng.next() % most_ms));
}
