//! What the clients do: statements, and what each leaves behind.

use super::{
    ledger::Effect,
    schema::{ACCOUNTS, OWN, SLOTS},
    support::Rng,
};

/// One statement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    /// With `$1` and so on.
    pub(crate) sql: String,
    pub(crate) values: Vec<String>,
    /// Lines of a COPY.
    pub(crate) copy: Option<String>,
    pub(crate) effects: Vec<Effect>,
    /// Its first column is a token that is gone from the queue.
    pub(crate) pops: bool,
}

/// Makes statements for one client.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) client: usize,
    pub(crate) rng: Rng,
    tokens: usize,
    versions: [u32; OWN],
}

impl Work {
    pub(crate) fn new(client: usize, rng: Rng) -> Self {
        Self { client, rng, tokens: 0, versions: [0; OWN] }
    }

    fn token(&mut self) -> String {
        self.tokens += 1;
        format!("c{}-{}", self.client, self.tokens)
    }

    /// A row with a token in `table`.
    fn row(&mut self, table: &'static str, columns: &str, more: &str) -> Step {
        let token = self.token();
        Step {
            sql: format!("INSERT INTO {table} (token{columns}) VALUES ($1{more})"),
            values: vec![token.clone()],
            effects: vec![Effect::Row(table, token)],
            ..Step::default()
        }
    }

    fn plain(sql: String) -> Step {
        Step { sql, ..Step::default() }
    }

    /// Statements that belong together; one, unless `block`.
    pub(crate) fn steps(&mut self, block: bool) -> Vec<Step> {
        let kinds = if block { 27 } else { 24 };
        match self.rng.below(kinds) {
            24 => self.transfer_in_steps(),
            25 => self.swap_in_steps(),
            26 => self.move_by_hand(),
            kind => vec![self.step(kind)],
        }
    }

    fn step(&mut self, kind: usize) -> Step {
        let n = self.rng.below(30);
        match kind {
            0 => self.row("t_event", ", what, n", ", 'one', 1"),
            1 => self.row("t_ident", "", ""),
            2 => self.row("t_log", "", ""),
            3 => {
                let id = self.rng.below(100);
                self.row("t_part", ", id", &format!(", {id}"))
            }
            4 | 5 => self.row("t_queue", "", ""),
            6 | 7 => Step {
                sql: "DELETE FROM t_queue WHERE id = (SELECT id FROM t_queue ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING token".to_owned(),
                pops: true,
                ..Step::default()
            },
            8 | 9 => self.transfer(),
            10 => Self::plain(format!("INSERT INTO t_kv VALUES ('k{n}', 1) ON CONFLICT (k) DO UPDATE SET v = t_kv.v + 1")),
            11 => Self::plain(format!("DELETE FROM t_kv WHERE k = 'k{n}'")),
            12 => {
                let to = self.rng.below(30);
                Self::plain(format!("UPDATE t_kv SET k = 'k{to}' WHERE k = 'k{n}'"))
            }
            13 => Self::plain(match n % 3 {
                0 => format!("UPDATE t_kv SET v = v + 1 WHERE v % 7 = {}", n % 7),
                1 => "DELETE FROM t_kv WHERE v > 20".to_owned(),
                _ => "INSERT INTO t_kv SELECT 'k' || g, 0 FROM generate_series(1, 30) g ON CONFLICT DO NOTHING".to_owned(),
            }),
            14 => Self::plain(format!("INSERT INTO t_parent VALUES ({}, 'p') ON CONFLICT DO NOTHING", 1 + n)),
            15 => self.row("t_child", ", parent", &format!(", {}", 1 + n % 12)),
            16 => Self::plain(match n % 2 {
                0 => format!("DELETE FROM t_parent WHERE id = {}", 1 + n),
                _ => format!("UPDATE t_parent SET id = {} WHERE id = {}", 1 + self.rng.below(30), 1 + n),
            }),
            17 | 18 => self.version(),
            19 => self.copy(),
            20 => self.count(),
            21 => Self::plain(format!(
                "UPDATE t_num SET k = CASE WHEN scale(k) > 3 THEN trim_scale(k) ELSE k * 1.0 END, v = v + 1 WHERE k = {}",
                1 + n % 8
            )),
            22 => Self::plain(match n {
                0 => "TRUNCATE t_scratch".to_owned(),
                1..6 => "DELETE FROM t_scratch WHERE id % 3 = 0".to_owned(),
                _ => "INSERT INTO t_scratch (v) SELECT random()::text FROM generate_series(1, 20)".to_owned(),
            }),
            _ => self.swap_in_code(),
        }
    }

    /// Both balances and the row that tells of it.
    fn transfer(&mut self) -> Step {
        let (giver, taker, amount) = self.parties();
        let token = self.token();
        Step {
            sql: format!(
                "WITH g AS (UPDATE t_account SET balance = balance - {amount}, touched = now() WHERE id = {giver}), \
                 t AS (UPDATE t_account SET balance = balance + {amount}, touched = now() WHERE id = {taker}) \
                 INSERT INTO t_transfer VALUES ($1, {giver}, {taker}, {amount})"
            ),
            values: vec![token.clone()],
            effects: vec![Effect::Row("t_transfer", token)],
            ..Step::default()
        }
    }

    fn parties(&mut self) -> (usize, usize, usize) {
        let giver = 1 + self.rng.below(ACCOUNTS);
        let taker = 1 + (giver + self.rng.below(ACCOUNTS - 1)) % ACCOUNTS;
        (giver, taker, 1 + self.rng.below(50))
    }

    fn transfer_in_steps(&mut self) -> Vec<Step> {
        let (giver, taker, amount) = self.parties();
        let token = self.token();
        vec![
            Self::plain(format!(
                "SELECT balance FROM t_account WHERE id IN ({giver}, {taker}) ORDER BY id FOR UPDATE"
            )),
            Self::plain(format!("UPDATE t_account SET balance = balance - {amount} WHERE id = {giver}")),
            Self::plain(format!("UPDATE t_account SET balance = balance + {amount} WHERE id = {taker}")),
            Step {
                sql: format!("INSERT INTO t_transfer VALUES ($1, {giver}, {taker}, {amount})"),
                values: vec![token.clone()],
                effects: vec![Effect::Row("t_transfer", token)],
                ..Step::default()
            },
        ]
    }

    /// Two rows exchange their unique values.
    fn swap_in_steps(&mut self) -> Vec<Step> {
        let (a, b) = self.slots();
        vec![
            Self::plain(format!("UPDATE t_slot SET pos = pos + 1000 WHERE id IN ({a}, {b})")),
            Self::plain(format!(
                "UPDATE t_slot SET pos = (SELECT o.pos FROM t_slot o WHERE o.id IN ({a}, {b}) AND o.id <> t_slot.id) - 1000 WHERE id IN ({a}, {b})"
            )),
        ]
    }

    fn swap_in_code(&mut self) -> Step {
        let (a, b) = self.slots();
        Self::plain(format!(
            "DO $$ BEGIN UPDATE t_slot SET pos = pos + 1000 WHERE id IN ({a}, {b}); \
             UPDATE t_slot SET pos = (SELECT o.pos FROM t_slot o WHERE o.id IN ({a}, {b}) AND o.id <> t_slot.id) - 1000 WHERE id IN ({a}, {b}); END $$"
        ))
    }

    fn slots(&mut self) -> (usize, usize) {
        let a = 1 + self.rng.below(SLOTS);
        (a, 1 + (a + self.rng.below(SLOTS - 1)) % SLOTS)
    }

    /// A unique value changes hands by a row that goes and one that comes.
    fn move_by_hand(&mut self) -> Vec<Step> {
        let (a, b) = self.slots();
        vec![
            Self::plain(format!("SELECT pos FROM t_slot WHERE id IN ({a}, {b}) ORDER BY id FOR UPDATE")),
            Self::plain(format!("UPDATE t_slot SET pos = pos + 2000 WHERE id = {a}")),
            Self::plain(format!(
                "WITH o AS (DELETE FROM t_slot WHERE id = {b} RETURNING pos) UPDATE t_slot SET pos = pos - 2000 WHERE id = {a}"
            )),
            Self::plain(format!(
                "INSERT INTO t_slot SELECT {b}, min(g) FROM generate_series(1, {SLOTS}) g WHERE g NOT IN (SELECT pos FROM t_slot)"
            )),
        ]
    }

    fn version(&mut self) -> Step {
        let own = self.rng.below(OWN);
        self.versions[own] += 1;
        let (version, row) = (self.versions[own], self.client * OWN + own);
        Step {
            sql: format!("UPDATE t_own SET version = {version} WHERE id = {row} AND version < {version}"),
            effects: vec![Effect::Version(row, version)],
            ..Step::default()
        }
    }

    fn copy(&mut self) -> Step {
        let tokens: Vec<_> = (0..=self.rng.below(6)).map(|_| self.token()).collect();
        Step {
            sql: "COPY t_event (token, what) FROM STDIN".to_owned(),
            copy: Some(tokens.iter().fold(String::new(), |lines, t| lines + t + "\tcopied\n")),
            effects: tokens.into_iter().map(|t| Effect::Row("t_event", t)).collect(),
            ..Step::default()
        }
    }

    /// What it writes depends on what it sees.
    fn count(&mut self) -> Step {
        let token = self.token();
        Step {
            sql: "INSERT INTO t_event (token, what, n) SELECT $1, 'count', count(*) + sum(v) FROM t_kv"
                .to_owned(),
            values: vec![token.clone()],
            effects: vec![Effect::Row("t_event", token)],
            ..Step::default()
        }
    }
}
