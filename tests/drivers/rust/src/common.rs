//! What both drivers share: where to connect, the rows to expect, the choice of checks, the report.

use std::error::Error;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Reported errors after which a driver stops.
const MANY: usize = 5;

/// Counts operations, who answered and what went wrong.
pub struct Run {
    /// Unique among the runs that write to the same table.
    pub name: String,
    /// All rows of the read repositories, as `expected.sql` writes them.
    pub expected: Value,
    n: i32,
    operations: u64,
    source: u64,
    target: u64,
    errors: usize,
    messages: Vec<String>,
    dice: u64,
    begun: usize,
    deadline: Instant,
}

pub fn env(key: &str) -> String {
    std::env::var(key).unwrap_or_else(|_| panic!("{key} is set by tests/drivers/run"))
}

impl Run {
    pub fn new(driver: &str) -> Self {
        let text = std::fs::read_to_string(env("CF_EXPECTED")).expect("expected rows");
        let seed = format!("{} {driver} {}", env("CF_SEED"), env("CF_MODE"));
        let dice = seed
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let name = format!("{driver}-{}-{}", env("CF_MODE"), std::process::id());
        println!("{name}: seed {dice}");
        let seconds: f64 = env("CF_SECONDS").parse().expect("seconds");
        Self {
            name,
            expected: serde_json::from_str(&text).expect("expected rows are JSON"),
            n: 0,
            operations: 0,
            source: 0,
            target: 0,
            errors: 0,
            messages: Vec::new(),
            dice: dice | 1,
            begun: 0,
            deadline: Instant::now() + Duration::from_secs_f64(seconds),
        }
    }

    /// A number below `limit` (xorshift64).
    pub fn dice(&mut self, limit: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        usize::try_from(self.dice >> 33).expect("31 bits") % limit
    }

    /// The key of some document.
    pub fn anyone(&mut self) -> i64 {
        let count = self.expected["documents"].as_array().expect("documents").len();
        1 + i64::try_from(self.dice(count)).expect("small")
    }

    /// The document with this key; keys begin at 1 and have no gaps.
    pub fn expected_document(&self, id: i64) -> Value {
        self.expected["documents"][usize::try_from(id - 1).expect("keys begin at 1")].clone()
    }

    /// Keys of the documents that satisfy a predicate.
    pub fn keys(&self, wanted: impl Fn(&Value) -> bool) -> Vec<i64> {
        let all = self.expected["documents"].as_array().expect("documents");
        all.iter().filter(|d| wanted(d)).map(|d| d["id"].as_i64().expect("a key")).collect()
    }

    /// A number that this run has not used in `organization_scratch`.
    pub fn next(&mut self) -> i32 {
        self.n += 1;
        self.n
    }

    /// Every check once, then by chance until the time is up.
    pub fn next_check(&mut self, checks: &[&'static str]) -> Option<&'static str> {
        if self.begun < checks.len() {
            self.begun += 1;
            return Some(checks[self.begun - 1]);
        }
        let going = Instant::now() < self.deadline && self.errors < MANY;
        going.then(|| checks[self.dice(checks.len())])
    }

    pub fn equal<T: PartialEq + Debug>(&mut self, got: T, expected: T, what: &str) -> Result<()> {
        self.operations += 1;
        if got == expected {
            Ok(())
        } else {
            Err(format!("{what}: got {got:?}, expected {expected:?}").into())
        }
    }

    /// Checks a whole row of documents and counts who answered.
    pub fn document(&mut self, row: Value, who: &str) -> Result<()> {
        match who {
            "source" => self.source += 1,
            "target" => self.target += 1,
            other => return Err(format!("who answered? {other:?}").into()),
        }
        let expected = self.expected_document(row["id"].as_i64().ok_or("a row without key")?);
        self.operations += 1;
        let columns = expected.as_object().ok_or("a document is an object")?;
        match columns.iter().find(|(name, value)| row[*name] != **value) {
            None => Ok(()),
            Some((name, value)) => {
                Err(format!("document {} by {who}: {name} is {}, expected {value}", row["id"], row[name])
                    .into())
            }
        }
    }

    pub fn failed(&mut self, what: &str, error: &dyn Error) {
        self.errors += 1;
        let mut message = format!("{what}: {error}");
        let mut cause = error.source();
        while let Some(inner) = cause {
            message += &format!(": {inner}");
            cause = inner.source();
        }
        if self.messages.len() < MANY {
            self.messages.push(message);
        }
    }

    /// Prints the report; returns the exit status.
    pub fn finish(&self) -> i32 {
        let report = json!({"operations": self.operations, "source": self.source, "target": self.target,
                            "errors": self.errors, "messages": self.messages});
        println!("{report}");
        i32::from(self.errors > 0)
    }
}
