//! Two tenants on few server connections: nothing of one client ever reaches another.
//!
//! Every client has a shadow, a direct connection to a database of its own on the same server, that executes the same.
//! What the client sees must be what its shadow sees. (PITFALLS 2, cases 7 and 8.)

use std::thread;

use crate::support::{
    Rng,
    cluster::{database, oldest},
    env_number, frames, needs_proxy,
    proxy::Settings,
    reply::Frame,
    seed,
    wire::{DbError, Login, Rows, Wire},
};

/// A client and its shadow.
struct Pair {
    through: Wire,
    shadow: Wire,
    rng: Rng,
    /// Tells values of this client from those of all others.
    id: usize,
    log: Vec<String>,
}

/// What every client can ask about its own session.
const PROBES: [&str; 4] = [
    "SELECT current_user, session_user, coalesce(current_setting('app.tenant', true), ''), current_setting('work_mem'),
        current_setting('search_path'), current_setting('TimeZone'), current_setting('DateStyle'),
        current_setting('statement_timeout'), current_setting('role'), current_setting('application_name'),
        current_setting('default_transaction_isolation')",
    "SELECT '2024-03-01 12:00+00'::timestamptz, '2024-03-01'::date",
    "SELECT relname FROM pg_class WHERE relpersistence = 't' AND relkind = 'r' AND pg_table_is_visible(oid) ORDER BY 1",
    "SELECT pg_listening_channels() ORDER BY 1",
];

impl Pair {
    /// The same bytes to both; the answers must be equal.
    fn same(&mut self, what: &str, bytes: &[u8]) {
        self.log.push(what.to_owned());
        self.through.send(bytes);
        self.shadow.send(bytes);
        let (through, shadow) = (self.through.until_ready(1), self.shadow.until_ready(1));
        let (through, shadow) = (view(&through), view(&shadow));
        assert_eq!(
            through,
            shadow,
            "client {} sees (left) what is not its own (right) after:\n{}",
            self.id,
            self.log[self.log.len().saturating_sub(25)..].join("\n")
        );
    }

    fn sql(&mut self, sql: &str) {
        self.same(sql, &frames::query(sql));
    }

    /// One random step. `pins` allows what ties a client to a server connection.
    fn step(&mut self, pins: bool) {
        let mut rng = self.rng.clone();
        let value = format!("c{}_{}", self.id, rng.below(1000));
        let n = rng.below(3);
        match rng.below(if pins { 30 } else { 24 }) {
            0 => self.sql(&format!("SET app.tenant = '{value}'")),
            1 => self.sql(&format!("SET LOCAL app.tenant = '{value}'")),
            2 => self.sql(&format!("SELECT set_config('app.tenant', '{value}', {})", rng.chance(50))),
            3 => self.sql(&format!("SET work_mem = '{}kB'", 64 + rng.below(1000))),
            4 => self.sql(rng.pick(&[
                "SET TimeZone = 'Asia/Tokyo'",
                "SET TIME ZONE 'America/Lima'",
                "RESET TimeZone",
            ])),
            5 => self.sql(rng.pick(&[
                "SET DateStyle = 'German'",
                "SET DateStyle = 'SQL, DMY'",
                "SET DateStyle TO DEFAULT",
            ])),
            6 => self.sql(&format!("SET search_path = \"{value}\", public")),
            7 => self.sql(rng.pick(&[
                "SET ROLE auditor",
                "SET ROLE editor",
                "RESET ROLE",
                "SET ROLE NONE",
                "SET LOCAL ROLE editor",
            ])),
            8 => self.sql(rng.pick(&["RESET ALL", "RESET app.tenant", "SET SESSION AUTHORIZATION DEFAULT"])),
            9 | 10 => self.sql("BEGIN"),
            11 | 12 => self.sql("COMMIT"),
            13 => self.sql("ROLLBACK"),
            14 => self.sql(rng.pick(&["SAVEPOINT s", "ROLLBACK TO s", "RELEASE s", "SELECT 1/0"])),
            15 | 16 => {
                let bytes = [
                    frames::parse(&format!("st{n}"), &format!("SELECT '{value}', $1::text")),
                    frames::sync(),
                ];
                self.same(&format!("Parse st{n} {value}"), &bytes.concat());
            }
            17 | 18 => {
                let bytes =
                    [frames::bind("", &format!("st{n}"), &["x"]), frames::execute("", 0), frames::sync()];
                self.same(&format!("Bind st{n}"), &bytes.concat());
            }
            19 => self.same(
                &format!("Close st{n}"),
                &[frames::close(b'S', &format!("st{n}")), frames::sync()].concat(),
            ),
            20 => self.sql(&format!("PREPARE st{n} (text) AS SELECT '{value}', $1")),
            21 => self.sql(&format!("EXECUTE st{n}('y')")),
            22 => self.sql(&format!("DEALLOCATE st{n}")),
            23 => self.sql(rng.pick(&[
                "DISCARD ALL",
                "DEALLOCATE ALL",
                "SELECT 1; SET work_mem = '99kB'; SELECT 2",
            ])),
            24 => self.sql(&format!("CREATE TEMP TABLE tt{n} AS SELECT '{value}'::text v")),
            25 => self.sql(&format!("SELECT v FROM tt{n}")),
            26 => self.sql(&format!("DROP TABLE tt{n}")),
            27 => self.sql(&format!("LISTEN ch{n}")),
            28 => self.sql(&format!("SELECT pg_advisory_lock({})", self.id)),
            _ => self.sql(&format!("SELECT pg_advisory_unlock({})", self.id)),
        }
        self.rng = rng;
    }

    /// The whole life of a client. The first six may be pinned: three of each user.
    fn live(mut self, steps: u64) {
        for _ in 0..steps {
            if self.rng.chance(35) { self.probe() } else { self.step(self.id < 6) }
        }
        self.sql("ROLLBACK");
    }

    fn probe(&mut self) {
        let probe = self.rng.pick(&PROBES);
        self.sql(probe);
        let n = self.rng.below(3);
        let bytes = [frames::describe(b'S', &format!("st{n}")), frames::sync()].concat();
        self.same(&format!("Describe st{n}"), &bytes);
    }
}

/// An answer without what differs by nature: temp schemas have numbers, `ParameterStatus` is told when a connection is
/// adopted too.
fn view(answer: &Result<Vec<Frame>, DbError>) -> Vec<String> {
    match answer {
        Err(error) => vec![format!("{error:?}")],
        Ok(frames) => frames.iter().filter(|f| f.kind != b'S').map(Frame::full).collect(),
    }
}

#[test]
fn nothing_leaks() {
    database("tenants");
    database("tenants_shadow");
    let seed = seed("tenants");
    let steps = env_number("CROSSFADE_ROUNDS").unwrap_or(400);
    // Per user: three clients that may be pinned, four that share what is left.
    let proxy = Settings::new("tenants").transaction(4).start();
    let pairs: Vec<Pair> = (0..14)
        .map(|id| {
            let user = if id % 2 == 0 { "alice" } else { "bob" };
            let shadow = Login::new(user, &format!("{user}-pw"), "tenants_shadow");
            Pair {
                through: proxy.client(user),
                shadow: Wire::connect(oldest().port, &shadow).expect("Postgres answers"),
                rng: Rng(seed.wrapping_add(id as u64 * 7919)),
                id,
                log: Vec::new(),
            }
        })
        .collect();
    thread::scope(|scope| {
        for pair in pairs {
            scope.spawn(move || pair.live(steps));
        }
    });
}

/// The parameters that a client is told are those of its own session, also when it is given another connection.
#[test]
fn parameter_status_is_ones_own() {
    database("tenants_status");
    let proxy = Settings::new("tenants_status").transaction(1).start();
    let mut clients: Vec<Wire> = (0..3).map(|_| proxy.client("alice")).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.run(&format!("SET application_name = 'app {i}'"));
    }
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.run("SHOW application_name"), Some(format!("app {i}")));
        assert_eq!(client.parameters.get("application_name"), Some(&format!("app {i}")));
    }
}

/// A client that leaves in the middle of everything leaves nothing behind.
#[test]
fn nothing_is_left_behind() {
    database("tenants_left");
    let proxy = Settings::new("tenants_left").transaction(1).start();
    let dirt: [&[&str]; 7] = [
        &["BEGIN", "SET LOCAL app.tenant = 'x'", "INSERT INTO users VALUES (1, 'x')"],
        &["SET app.tenant = 'x'"],
        &["SET ROLE auditor"],
        &["CREATE TEMP TABLE users (secret text)"],
        &["PREPARE st AS SELECT 'secret'"],
        &["LISTEN ch"],
        &["SELECT pg_advisory_lock(1)"],
    ];
    let probe = "SELECT current_user, coalesce(current_setting('app.tenant', true), ''),
        (SELECT count(*) FROM users), (SELECT count(*) FROM pg_listening_channels()), pg_try_advisory_xact_lock(1)";
    for queries in dirt {
        for politely in [true, false] {
            let mut dirty = proxy.client("alice");
            for sql in queries {
                dirty.run(sql);
            }
            if politely {
                dirty.terminate();
            } else {
                drop(dirty);
            }
            let mut clean = proxy.client("alice");
            let expected: Rows =
                vec![["alice", "", "0", "0", "t"].map(|text| Some(text.to_owned())).to_vec()];
            // Direct to Postgres the dirty backend may take a moment to notice that its client has gone.
            let mut rows = clean.query(probe);
            if crate::support::direct() {
                crate::support::wait_for("a clean session", || {
                    rows = clean.query(probe);
                    rows.as_ref() == Ok(&expected)
                });
            }
            assert_eq!(rows, Ok(expected), "after {queries:?}");
            let error = clean.query("EXECUTE st").expect_err("no statement of another client");
            assert_eq!(error.sqlstate, "26000");
        }
    }
}

/// Threads hand server connections to each other: whoever gets one that another thread opened is told the same.
#[test]
fn first_logins_at_once_are_told_of_the_server() {
    needs_proxy!();
    database("logins");
    for round in 0..4 {
        let proxy = Settings::new("logins").transaction(1).start();
        let (login, port) = (proxy.login("alice"), proxy.port);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let login = login.clone();
                thread::spawn(move || Wire::connect(port, &login).expect("it logs in").parameters)
            })
            .collect();
        for client in clients {
            let told = client.join().expect("a client");
            assert!(told.contains_key("server_version"), "round {round}: told {told:?}");
        }
    }
}
