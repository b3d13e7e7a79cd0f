//! The evidence of shadow reads: what was compared and what came of it, per repository, query and application.
//!
//! Bounded in every direction and kept across a restart as JSON. Values of rows are in it only where the
//! configuration says so; keys of rows are.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    bound,
    latency::{Deltas, Latencies},
    metrics::sqlstate_class,
};
use crate::{
    Side,
    compare::{Class, Difference},
    shadow::Outcome,
};

/// One comparison that has come to its end.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// Of the configuration.
    pub repository: &'a str,
    /// Of the plan.
    pub fingerprint: u64,
    /// The text without its literals.
    pub sql: &'a str,
    /// The client's `application_name`.
    pub application: &'a str,
    /// The side that answered the client.
    pub answering: Side,
    /// How long each side took, by [`Side::index`].
    pub latency: [Duration; 2],
    /// How each side failed, by [`Side::index`].
    pub sqlstate: [Option<[u8; 5]>; 2],
    /// What came of it.
    pub outcome: &'a Outcome,
    /// Unix time in seconds.
    pub now: u64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Queries per repository; those without a divergence that were not seen for longest go first.
    pub queries: usize,
    /// Different divergences per query, and applications per repository.
    pub samples: usize,
    /// Applications per repository; the others are one, named `other`.
    pub applications: usize,
    /// Bytes of a query's text.
    pub sql_bytes: usize,
    /// Are values of rows kept, not only their keys?
    pub values: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queries: 500, samples: 20, applications: 20, sql_bytes: 2_000, values: false }
    }
}

/// All evidence.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Book {
    version: u32,
    /// By name.
    pub repositories: BTreeMap<String, Repository>,
}

/// The evidence about one repository.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Repository {
    /// All its queries together, also those that are not kept.
    pub all: Stats,
    /// By fingerprint.
    pub queries: BTreeMap<u64, Query>,
    /// By `application_name`.
    pub applications: BTreeMap<String, Stats>,
    /// Mirrored writes.
    pub writes: Writes,
}

/// Rows that mirrored writes were applied to on the follower.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Writes {
    /// Transactions whose row counts were looked at.
    pub compared: u64,
    /// Those in which the follower did not have the rows that it should, or had others.
    pub differed: u64,
}

/// The evidence about one query.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Query {
    /// Its text without literals.
    pub sql: String,
    /// What came of its comparisons.
    pub stats: Stats,
    /// Its divergences.
    pub samples: Vec<Sample>,
}

/// What came of some comparisons.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Stats {
    /// By the index of [`Outcome::NAMES`].
    pub outcomes: [u64; Outcome::NAMES.len()],
    /// Why nobody can say, by [`crate::shadow::Why::name`].
    pub indeterminate: BTreeMap<String, u64>,
    /// Divergences by class.
    pub classes: BTreeMap<Class, u64>,
    /// Of each side, by [`Side::index`].
    pub latency: [Latencies; 2],
    /// Target minus source.
    pub delta: Deltas,
    /// How long differences lasted that went away.
    pub transient: Latencies,
    /// Errors of each side by class of SQLSTATE.
    pub errors: [BTreeMap<String, u64>; 2],
    /// Unix time in seconds of the first comparison.
    pub first: u64,
    /// And of the last.
    pub last: u64,
}

/// A divergence, as often as it was seen.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sample {
    /// What differs.
    pub class: Class,
    /// The column.
    pub column: Option<String>,
    /// The key of the row.
    pub key: Option<String>,
    /// The side that answered.
    pub answering: Side,
    /// What it answered, where values are kept; SQLSTATEs, tags, counts and columns always are.
    pub answered: Option<String>,
    /// The same of the other side.
    pub other: Option<String>,
    /// How often it was seen.
    pub count: u64,
    /// Unix time in seconds of the first time.
    pub first: u64,
    /// And of the last.
    pub last: u64,
}

/// A divergence, with repository, fingerprint and evidence of its query.
pub type Found<'a> = (&'a str, u64, &'a Query, &'a Sample);

impl Stats {
    /// All comparisons.
    pub fn comparisons(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Comparisons that said whether the sides are equal: all but noise and those of which nobody can say.
    pub fn decided(&self) -> u64 {
        self.comparisons() - self.count("noise") - self.count("indeterminate")
    }

    /// Comparisons with this outcome, one of [`Outcome::NAMES`].
    pub fn count(&self, outcome: &str) -> u64 {
        Outcome::NAMES.iter().position(|name| *name == outcome).map_or(0, |index| self.outcomes[index])
    }

    /// Share of the decided comparisons that diverged, and its 95 % upper bound. `None` without any.
    pub fn rate(&self) -> Option<(f64, f64)> {
        let (divergent, decided) = (self.count("divergence"), self.decided());
        #[expect(clippy::cast_precision_loss, reason = "counts above 2^53 do not occur")]
        let rate = divergent as f64 / decided as f64;
        (decided > 0).then(|| (rate, bound::upper_95(divergent, decided)))
    }

    fn add(&mut self, c: &Comparison<'_>) {
        self.outcomes[c.outcome.index()] += 1;
        match c.outcome {
            Outcome::Transient(age) => self.transient.record(*age),
            Outcome::Indeterminate(why) => {
                *self.indeterminate.entry(why.name().to_owned()).or_default() += 1;
            }
            Outcome::Divergence(differences) => {
                let classes: std::collections::BTreeSet<Class> =
                    differences.iter().map(|d| d.class).collect();
                for class in classes {
                    *self.classes.entry(class).or_default() += 1;
                }
            }
            Outcome::Match | Outcome::OrderOnly | Outcome::Ignored | Outcome::Noise => {}
        }
        for (side, latency) in self.latency.iter_mut().enumerate() {
            latency.record(c.latency[side]);
            if let Some(code) = &c.sqlstate[side] {
                let class = sqlstate_class(std::str::from_utf8(code).unwrap_or_default());
                *self.errors[side].entry(class.to_owned()).or_default() += 1;
            }
        }
        self.delta.record(c.latency[0], c.latency[1]);
        if self.first == 0 {
            self.first = c.now;
        }
        self.last = self.last.max(c.now);
    }
}

impl Book {
    /// Adds one comparison.
    pub fn record(&mut self, c: &Comparison<'_>, limits: &Limits) {
        self.version = VERSION;
        let repository = self.repositories.entry(c.repository.to_owned()).or_default();
        repository.all.add(c);
        repository.application(c.application, limits).add(c);
        repository.make_room(c.fingerprint, limits);
        let query = repository
            .queries
            .entry(c.fingerprint)
            .or_insert_with(|| Query { sql: cut(c.sql, limits.sql_bytes).to_owned(), ..Query::default() });
        query.stats.add(c);
        if let Outcome::Divergence(differences) = c.outcome {
            for difference in differences {
                query.sample(difference, c, limits);
            }
        }
    }

    /// A mirrored transaction was applied; `differed`: the follower did not have the rows that it should, or had others.
    pub fn record_write(&mut self, repository: &str, differed: bool) {
        self.version = VERSION;
        if !self.repositories.contains_key(repository) {
            self.repositories.insert(repository.to_owned(), Repository::default());
        }
        let Some(Repository { writes, .. }) = self.repositories.get_mut(repository) else { return };
        writes.compared += 1;
        writes.differed += u64::from(differed);
    }

    /// Repository, fingerprint and evidence of all queries.
    pub fn queries(&self) -> impl Iterator<Item = (&str, u64, &Query)> {
        let all = self.repositories.iter();
        all.flat_map(|(name, r)| r.queries.iter().map(move |(&f, q)| (name.as_str(), f, q)))
    }

    /// At most so many divergences, those seen last first.
    pub fn newest(&self, most: usize) -> Vec<Found<'_>> {
        let samples = self.queries().flat_map(|(name, f, q)| q.samples.iter().map(move |s| (name, f, q, s)));
        let mut all: Vec<_> = samples.collect();
        all.sort_by_key(|(.., sample)| std::cmp::Reverse(sample.last));
        all.truncate(most);
        all
    }

    /// As it is kept in a file.
    ///
    /// # Errors
    /// Never, unless memory is out.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// From the file of an earlier run. What another version wrote is not evidence for this one.
    ///
    /// # Errors
    /// When it is not such a file.
    pub fn from_json(text: &[u8]) -> Result<Self, serde_json::Error> {
        let book: Self = serde_json::from_slice(text)?;
        Ok(if book.version == VERSION { book } else { Self::default() })
    }

    /// Forgets what was found about a repository, or about all.
    pub fn forget(&mut self, repository: Option<&str>) {
        self.repositories.retain(|name, _| repository.is_some_and(|forgotten| name != forgotten));
    }
}

impl Repository {
    fn application(&mut self, name: &str, limits: &Limits) -> &mut Stats {
        let name = cut(name, MOST_NAME);
        let known = self.applications.contains_key(name) || self.applications.len() < limits.applications;
        let name = if known { name } else { "other" };
        self.applications.entry(name.to_owned()).or_default()
    }

    /// For a query that is not there yet.
    fn make_room(&mut self, fingerprint: u64, limits: &Limits) {
        if self.queries.contains_key(&fingerprint) || self.queries.len() < limits.queries {
            return;
        }
        let worth = |query: &Query| (!query.samples.is_empty(), query.stats.last);
        let least = self.queries.iter().min_by_key(|(_, query)| worth(query)).map(|(&f, _)| f);
        least.and_then(|fingerprint| self.queries.remove(&fingerprint));
    }
}

impl Query {
    fn sample(&mut self, difference: &Difference, c: &Comparison<'_>, limits: &Limits) {
        let Difference { class, column, key, answering, shadow, .. } = difference;
        let public = matches!(class, Class::Error | Class::Tag | Class::Count | Class::Type | Class::Columns);
        let kept = |value: &Option<String>| value.clone().filter(|_| limits.values || public);
        let of = |s: &&mut Sample| {
            s.class == *class && s.column == *column && s.key == *key && s.answering == c.answering
        };
        if let Some(known) = self.samples.iter_mut().find(of) {
            known.count += 1;
            known.last = c.now;
            known.answered = kept(answering);
            known.other = kept(shadow);
            return;
        }
        if self.samples.len() >= limits.samples.max(1) {
            // The first ones tell how it began; the newest takes the place of the one not seen for longest.
            let oldest = (0..self.samples.len()).min_by_key(|&i| self.samples[i].last);
            oldest.map(|i| self.samples.remove(i));
        }
        self.samples.push(Sample {
            class: *class,
            column: column.clone(),
            key: key.clone(),
            answering: c.answering,
            answered: kept(answering),
            other: kept(shadow),
            count: 1,
            first: c.now,
            last: c.now,
        });
    }
}

/// The first characters, of at most so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// Of the file's form.
const VERSION: u32 = 1;
/// Bytes of an application's name.
const MOST_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::Why;

    const LIMITS: Limits = Limits { queries: 5, samples: 3, applications: 2, sql_bytes: 20, values: false };

    fn difference(class: Class, key: &str) -> Difference {
        Difference {
            class,
            column: (class == Class::Cell).then(|| "title".to_owned()),
            key: Some(key.to_owned()),
            answering: Some("secret".into()),
            shadow: Some("hidden".into()),
            mark: 1,
        }
    }

    fn comparison(outcome: &Outcome, fingerprint: u64, now: u64) -> Comparison<'_> {
        Comparison {
            repository: "document",
            fingerprint,
            sql: "select * from documents where id = $1",
            application: "old",
            answering: Side::Source,
            latency: [Duration::from_millis(10), Duration::from_millis(15)],
            sqlstate: [None, None],
            outcome,
            now,
        }
    }

    #[test]
    fn rates_have_a_bound() {
        let mut book = Book::default();
        for n in 0..1_000 {
            book.record(&comparison(&Outcome::Match, 1, n + 1), &LIMITS);
        }
        let stats = |book: &Book| book.repositories["document"].all.clone();
        let (rate, upper) = stats(&book).rate().unwrap();
        assert!(rate == 0.0 && (upper - 0.003).abs() < 1e-4, "{rate} {upper}");
        for outcome in [
            Outcome::Noise,
            Outcome::Indeterminate(Why::Limit),
            Outcome::Transient(Duration::from_millis(20)),
            Outcome::Divergence(vec![difference(Class::Cell, "id=1"), difference(Class::Cell, "id=2")]),
        ] {
            book.record(&comparison(&outcome, 1, 5_000), &LIMITS);
        }
        let stats = stats(&book);
        assert_eq!((stats.comparisons(), stats.decided(), stats.count("divergence")), (1_004, 1_002, 1));
        assert_eq!((stats.first, stats.last), (1, 5_000));
        assert_eq!(stats.classes, BTreeMap::from([(Class::Cell, 1)]));
        assert_eq!(stats.indeterminate, BTreeMap::from([("limit".to_owned(), 1)]));
        assert_eq!((stats.transient.total(), stats.delta.total()), (1, 1_004));
        let delta = stats.delta.quantile(0.5).unwrap();
        assert!((delta - 0.005).abs() < 0.0002, "{delta}");
    }

    #[test]
    fn errors_are_counted_by_side() {
        let mut book = Book::default();
        let outcome = Outcome::Divergence(vec![difference(Class::Error, "-")]);
        let failed = Comparison { sqlstate: [None, Some(*b"42501")], ..comparison(&outcome, 1, 1) };
        book.record(&failed, &LIMITS);
        let query = &book.repositories["document"].queries[&1];
        assert_eq!(query.stats.errors, [BTreeMap::new(), BTreeMap::from([("42".to_owned(), 1)])]);
        assert_eq!(query.samples[0].other.as_deref(), Some("hidden"), "an SQLSTATE is no secret");
    }

    #[test]
    fn everything_is_bounded() {
        let mut book = Book::default();
        let divergence = |key: &str| Outcome::Divergence(vec![difference(Class::Cell, key)]);
        book.record(&comparison(&divergence("id=0"), 1_000, 1), &LIMITS);
        for n in 1..100 {
            book.record(&comparison(&Outcome::Match, n, n), &LIMITS);
            book.record(&comparison(&divergence(&format!("id={n}")), 1_000, n), &LIMITS);
            let application = format!("{n}");
            let named = Comparison { application: &application, ..comparison(&Outcome::Match, 1_000, n) };
            book.record(&named, &LIMITS);
        }
        let repository = &book.repositories["document"];
        assert_eq!(repository.queries.keys().collect::<Vec<_>>(), [&96, &97, &98, &99, &1_000]);
        let query = &repository.queries[&1_000];
        assert_eq!(query.sql, "select * from docume");
        assert_eq!(query.samples.iter().map(|s| s.last).collect::<Vec<_>>(), [97, 98, 99]);
        assert_eq!(repository.applications.keys().collect::<Vec<_>>(), ["1", "old", "other"]);
        assert_eq!(repository.all.comparisons(), 298);
    }

    #[test]
    fn values_are_kept_only_where_configured() {
        let outcome =
            Outcome::Divergence(vec![difference(Class::Cell, "id=1"), difference(Class::MissingRow, "id=2")]);
        for values in [false, true] {
            let mut book = Book::default();
            book.record(&comparison(&outcome, 1, 1), &Limits { values, ..LIMITS });
            book.record(&comparison(&outcome, 1, 7), &Limits { values, ..LIMITS });
            let text = String::from_utf8(book.to_json().unwrap()).unwrap();
            assert_eq!(text.contains("secret") || text.contains("hidden"), values, "{text}");
            let sample = &book.repositories["document"].queries[&1].samples[0];
            assert_eq!((sample.count, sample.first, sample.last), (2, 1, 7));
            assert_eq!((sample.column.as_deref(), sample.key.as_deref()), (Some("title"), Some("id=1")));
        }
    }

    #[test]
    fn it_is_kept_across_a_restart() {
        let mut book = Book::default();
        book.record(&comparison(&Outcome::Divergence(vec![difference(Class::Cell, "id=1")]), 1, 1), &LIMITS);
        book.record_write("document", true);
        book.record_write("document", false);
        assert_eq!(book.repositories["document"].writes, Writes { compared: 2, differed: 1 });
        let text = book.to_json().unwrap();
        assert_eq!(Book::from_json(&text).unwrap(), book);
        let later = String::from_utf8(text).unwrap().replacen("\"version\":1", "\"version\":2", 1);
        assert_eq!(Book::from_json(later.as_bytes()).unwrap(), Book::default());
        assert!(Book::from_json(b"{").is_err());
        book.forget(Some("user"));
        assert_eq!(book.repositories.len(), 1);
        book.forget(None);
        assert!(book.repositories.is_empty());
    }
}
