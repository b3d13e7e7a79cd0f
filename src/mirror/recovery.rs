//! Prepared transactions in doubt on the follower, resolved by asking the lead. Ownerless: any instance, any time.
//!
//! The lead's COMMIT is the commit point, so what became of its transaction is the truth. Whoever cannot be sure that
//! it asks the same lead about the same transaction does nothing and raises an alarm.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use super::{
    session::{Error, Session},
    status::{InDoubt, Status},
};
use crate::{Side, backend::control::Manager};

/// Name of a prepared transaction: `cf1.<lead system id>.<timeline>.<xid8>.<instance>.<epoch>`. The follower's half of it
/// may be rolled back whatever became of it on the lead: the lead's journal has its keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gid {
    /// The lead.
    pub identity: Identity,
    /// The lead's transaction.
    pub xid: u64,
    /// Who prepared it: letters, digits and hyphens.
    pub instance: String,
    /// Log position of the lead's last checkpoint, or of one before it, known before its write set was read. A lead that crashes gives numbers
    /// of transactions again whose log had not reached its disk; its recovery ends with a checkpoint.
    pub epoch: u64,
}

/// Which server, in which life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity {
    /// `system_identifier`, of initdb.
    pub system: u64,
    /// Rises with each promotion.
    pub timeline: u32,
}

impl Identity {
    /// The identity of a primary; `None` while it is in recovery.
    pub async fn load(session: &Session) -> Result<Option<Self>, Error> {
        let rows = session.rows(&format!("SELECT {IDENTITY}"), &[]).await?;
        Ok(rows.first().and_then(Self::read))
    }

    fn read(row: &tokio_postgres::Row) -> Option<Self> {
        let system: String = row.try_get(0).ok()?;
        let timeline: Option<i32> = row.try_get(1).ok()?;
        Some(Self { system: system.parse().ok()?, timeline: u32::try_from(timeline?).ok()? })
    }
}

/// [`LAST_CHECKPOINT`] of this server; `None`: it does not say.
pub async fn last_checkpoint(session: &Session) -> Result<Option<u64>, Error> {
    let rows = session.rows(&format!("SELECT {LAST_CHECKPOINT}"), &[]).await?;
    Ok(rows.first().and_then(|r| r.try_get::<_, String>(0).ok()?.parse().ok()))
}

impl Gid {
    /// Reads a name. `None`: not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split('.');
        let mut number = || {
            let part = parts.next()?;
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<u64>().ok()).flatten()
        };
        let (system, timeline, xid) = (number()?, u32::try_from(number()?).ok()?, number()?);
        let instance = parts.next()?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if instance.is_empty() || !instance.bytes().all(plain) {
            return None;
        }
        let epoch = parts.next().filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
        if parts.next().is_some() {
            return None;
        }
        Some(Self { identity: Identity { system, timeline }, xid, instance: instance.to_owned(), epoch })
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity: Identity { system, timeline }, xid, instance, epoch } = self;
        write!(f, "{PREFIX}{system}.{timeline}.{xid}.{instance}.{epoch}")
    }
}

/// What the lead says of a transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It committed.
    Committed,
    /// It is gone.
    Aborted,
    /// Nobody knows yet.
    InProgress,
    /// Too old: forgotten.
    Forgotten,
    /// Refused, with this SQLSTATE: of the future, or not to be asked.
    Refused(String),
}

impl Outcome {
    /// From `pg_xact_status`.
    pub fn from_status(status: Option<&str>) -> Self {
        match status {
            Some("committed") => Outcome::Committed,
            Some("aborted") => Outcome::Aborted,
            Some("in progress") => Outcome::InProgress,
            _ => Outcome::Forgotten,
        }
    }
}

/// What is to be done with a prepared transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// COMMIT PREPARED.
    Commit,
    /// ROLLBACK PREPARED.
    Rollback,
    /// Look again.
    Wait(&'static str),
    /// Nobody may guess: an operator decides.
    Stuck(&'static str),
}

/// Decides. `lead` is what the server said of itself in the same breath as `outcome`, with the position of its last
/// checkpoint; `None`: it is in recovery.
pub fn decide(gid: Option<&Gid>, lead: Option<(Identity, u64)>, outcome: &Outcome, age: Duration) -> Verdict {
    let Some(gid) = gid else { return Verdict::Stuck("its name cannot be read") };
    let Some((lead, checkpoint)) = lead else { return Verdict::Wait("the lead is in recovery") };
    if gid.identity.system != lead.system {
        return Verdict::Stuck("the lead is another server than the one that ran it");
    }
    if gid.identity.timeline != lead.timeline {
        return Verdict::Stuck(
            "the lead was promoted since: its transaction numbers may have been given again",
        );
    }
    match outcome {
        Outcome::InProgress => Verdict::Wait("it is in progress on the lead"),
        Outcome::Committed | Outcome::Aborted if age < OWNERS => Verdict::Wait("its owner is at it"),
        Outcome::Committed if checkpoint == gid.epoch => Verdict::Commit,
        // Committed, but the lead may have crashed: it, or another one of the same number. The journal knows.
        Outcome::Committed | Outcome::Aborted => Verdict::Rollback,
        // Of the future: all that it wrote was lost in a crash.
        Outcome::Refused(code) if code == "22023" && checkpoint != gid.epoch => Verdict::Rollback,
        Outcome::Forgotten => Verdict::Stuck("the lead has forgotten it: too old"),
        Outcome::Refused(_) => Verdict::Stuck("the lead refuses to tell"),
    }
}

/// Resolves what is in doubt on one side.
#[derive(Debug)]
pub struct Recoverer {
    side: Side,
    managers: [Manager; 2],
    patience: Duration,
    status: Arc<Status>,
    /// Kept open: a pool that is blocked behind what is in doubt would leave none for us.
    here: Option<Session>,
    lead: Option<Session>,
    told: HashSet<String>,
}

impl Recoverer {
    /// For prepared transactions on `side`; connects to nothing yet.
    pub fn new(side: Side, managers: [Manager; 2], patience: Duration, status: Arc<Status>) -> Self {
        Self { side, managers, patience, status, here: None, lead: None, told: HashSet::new() }
    }

    /// Looks once, and resolves what can be: how many there were. After an error all connections are new.
    pub async fn round(&mut self) -> Result<usize, Error> {
        let round = self.try_round().await;
        if let Err(error) = &round {
            if error.side() == Some(self.side) {
                self.here = None;
            } else {
                self.lead = None;
            }
        }
        round
    }

    async fn try_round(&mut self) -> Result<usize, Error> {
        let (side, patience) = (self.side, self.patience);
        if self.here.is_none() {
            self.here = Some(Session::look(&self.managers[side.index()], side, patience).await?);
        }
        let here = self.here.as_ref().expect("connected");
        let prepared = here.rows(PREPARED, &[]).await?;
        if prepared.is_empty() {
            self.told.clear();
            self.status.in_doubt(side, Vec::new());
            return Ok(0);
        }
        if self.lead.is_none() {
            let lead = side.other();
            match Session::look(&self.managers[lead.index()], lead, patience).await {
                Ok(session) => self.lead = Some(session),
                Err(error) => {
                    let row = |gid, age| InDoubt { gid, age, verdict: error.to_string(), stuck: false };
                    let list = prepared.iter().map(|p| row(p.get(0), age(p.get(1)))).collect();
                    self.status.in_doubt(side, list);
                    return Err(error);
                }
            }
        }
        let (mut list, count) = (Vec::new(), prepared.len());
        for row in prepared {
            let (gid, age): (String, Duration) = (row.get(0), age(row.get(1)));
            list.extend(self.resolve(gid, age).await?);
        }
        self.status.in_doubt(side, list);
        Ok(count)
    }

    /// Resolves one, or says why not.
    async fn resolve(&mut self, text: String, age: Duration) -> Result<Option<InDoubt>, Error> {
        let gid = Gid::parse(&text);
        let (lead, outcome) = match &gid {
            Some(gid) => self.ask(gid).await?,
            None => (None, Outcome::Forgotten),
        };
        let verdict = decide(gid.as_ref(), lead, &outcome, age);
        let doubt = |verdict: String, stuck| Some(InDoubt { gid: text.clone(), age, verdict, stuck });
        let (word, done) = match verdict {
            Verdict::Commit => ("COMMIT", "committed"),
            Verdict::Rollback => ("ROLLBACK", "rolled_back"),
            Verdict::Wait(why) => return Ok(doubt(why.to_owned(), false)),
            Verdict::Stuck(why) => {
                if self.told.insert(text.clone()) {
                    self.status.recovered("stuck");
                    let side = self.side;
                    tracing::error!(%side, gid = text, why, "a transaction in doubt must be resolved by an operator");
                }
                return Ok(doubt(why.to_owned(), true));
            }
        };
        let here = self.here.as_ref().expect("connected at the start of the round");
        let resolved = here.run(&format!("{word} PREPARED '{text}'")).await;
        match resolved {
            Ok(()) => {
                self.status.recovered(done);
                let side = self.side;
                tracing::info!(%side, gid = text, outcome = done, "a transaction in doubt was resolved");
                Ok(None)
            }
            Err(error) => match error.sqlstate() {
                // Gone: somebody was faster, with the same answer from the same lead.
                Some("42704") => {
                    self.status.recovered("elsewhere");
                    Ok(None)
                }
                Some("55000") => {
                    self.status.recovered("busy");
                    Ok(doubt("somebody else is at it".to_owned(), false))
                }
                _ if error.is_fatal() => Err(error),
                _ => {
                    self.status.recovered("failed");
                    tracing::error!(gid = text, %error, "a transaction in doubt could not be resolved");
                    Ok(doubt(error.to_string(), true))
                }
            },
        }
    }

    /// Who the lead is and what became of the transaction, in one statement: both of the same server.
    async fn ask(&self, gid: &Gid) -> Result<(Option<(Identity, u64)>, Outcome), Error> {
        let lead = self.lead.as_ref().expect("connected at the start of the round");
        // Asked only of the server that gave the number: another may never have heard of it, and refuse.
        let Some(identity) = Identity::load(lead).await? else { return Ok((None, Outcome::Forgotten)) };
        if identity != gid.identity {
            return Ok((Some((identity, 0)), Outcome::Forgotten));
        }
        // The checkpoint after the status: a crash between the two closes the connection.
        let ask = format!("SELECT {IDENTITY}, pg_catalog.pg_xact_status($1::text::xid8), {LAST_CHECKPOINT}");
        match lead.rows(&ask, &[&gid.xid.to_string()]).await {
            Ok(rows) => {
                let row = rows.first();
                let status: Option<String> = row.and_then(|r| r.try_get(2).ok().flatten());
                let checkpoint = row.and_then(|r| r.try_get::<_, String>(3).ok()?.parse().ok());
                let lead = row.and_then(Identity::read).zip(checkpoint);
                Ok((lead, Outcome::from_status(status.as_deref())))
            }
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                let checkpoint = last_checkpoint(lead).await?;
                let outcome = Outcome::Refused(error.sqlstate().unwrap_or_default().to_owned());
                Ok((checkpoint.map(|c| (identity, c)), outcome))
            }
        }
    }
}

fn age(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

const PREFIX: &str = "cf1.";
/// Younger ones are left to their owners.
const OWNERS: Duration = Duration::from_secs(1);

/// The control file's timeline is that of the last checkpoint, not of now.
const IDENTITY: &str = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
  CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN
    ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int4
  END";
/// Log position of the last checkpoint, in bytes. Another one: the server may have crashed since.
pub const LAST_CHECKPOINT: &str =
    "(SELECT (checkpoint_lsn - '0/0')::text FROM pg_catalog.pg_control_checkpoint())";
const PREPARED: &str = "SELECT gid, extract(epoch FROM pg_catalog.clock_timestamp() - prepared)::float8
  FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() AND gid LIKE 'cf1.%'
  ORDER BY prepared";

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "cf1.7311112222233334444.1.98765.host-1.3";

    #[test]
    fn gids() {
        let gid = Gid::parse(TEXT).expect("one of ours");
        assert_eq!(gid.identity, Identity { system: 7_311_112_222_233_334_444, timeline: 1 });
        assert_eq!((gid.xid, gid.instance.as_str(), gid.epoch), (98_765, "host-1", 3));
        assert_eq!(gid.to_string(), TEXT);
        for broken in [
            "",
            "cf1.",
            "cf2.1.1.1.a.1",
            "cf1.1.1.1.a",
            "cf1.1.1.1.a.1.1",
            "cf1.1.1.1..1",
            "cf1.1.1.1.a'b.1",
            "cf1.-1.1.1.a.1",
            "cf1.1.1.+1.a.1",
            "cf1.1.1..a.1",
            "cf1.1.99999999999.1.a.1",
            "cf1.1.1.1.a.",
            "cf1.1.1.99999999999999999999.a.1",
        ] {
            assert_eq!(Gid::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn never_a_guess() {
        let gid = Gid::parse(TEXT).expect("one of ours");
        let same = Some((gid.identity, 3));
        let crashed = Some((gid.identity, 4));
        let promoted = Some((Identity { timeline: 2, ..gid.identity }, 3));
        let another = Some((Identity { system: 1, ..gid.identity }, 3));
        let (old, young) = (OWNERS, Duration::from_millis(999));
        let refused = Outcome::Refused("22023".into());
        let word = |verdict: Verdict| match verdict {
            Verdict::Commit => "commit",
            Verdict::Rollback => "rollback",
            Verdict::Wait(_) => "wait",
            Verdict::Stuck(_) => "stuck",
        };
        for (lead, outcome, age, expected) in [
            (same, &Outcome::Committed, old, "commit"),
            (same, &Outcome::Aborted, old, "rollback"),
            (same, &Outcome::InProgress, old, "wait"),
            (same, &Outcome::InProgress, Duration::from_secs(86_400), "wait"),
            (same, &Outcome::Committed, young, "wait"),
            (same, &Outcome::Aborted, young, "wait"),
            (same, &Outcome::Forgotten, old, "stuck"),
            (same, &refused, old, "stuck"),
            (crashed, &Outcome::Committed, old, "rollback"),
            (crashed, &Outcome::Aborted, old, "rollback"),
            (crashed, &Outcome::InProgress, old, "wait"),
            (crashed, &Outcome::Forgotten, old, "stuck"),
            (crashed, &refused, old, "rollback"),
            (promoted, &Outcome::Committed, old, "stuck"),
            (promoted, &Outcome::Aborted, old, "stuck"),
            (promoted, &Outcome::InProgress, old, "stuck"),
            (another, &Outcome::Committed, old, "stuck"),
            (another, &Outcome::Aborted, old, "stuck"),
            (None, &Outcome::Committed, old, "wait"),
            (None, &Outcome::Aborted, old, "wait"),
        ] {
            assert_eq!(
                word(decide(Some(&gid), lead, outcome, age)),
                expected,
                "{lead:?} {outcome:?} {age:?}"
            );
            assert_eq!(word(decide(None, lead, outcome, age)), "stuck");
        }
    }

    #[test]
    fn statuses() {
        assert_eq!(Outcome::from_status(Some("committed")), Outcome::Committed);
        assert_eq!(Outcome::from_status(Some("aborted")), Outcome::Aborted);
        assert_eq!(Outcome::from_status(Some("in progress")), Outcome::InProgress);
        assert_eq!(Outcome::from_status(None), Outcome::Forgotten);
        assert_eq!(Outcome::from_status(Some("prepared")), Outcome::Forgotten);
    }
}
