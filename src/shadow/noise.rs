//! Columns whose values differ even between two executions on one side, learned per query and column.
//!
//! As Diffy has it: a column is noise when the two answers of the same side differ in it about as often as those of
//! the two sides. What is learned expires, and a key column is never noise: a wrong key is a wrong row.

use std::{collections::BTreeMap, time::Duration};

/// What was learned. Bounded; the columns not seen for longest go first.
#[derive(Debug, Default)]
pub struct Noise {
    seen: BTreeMap<(u64, String), Counts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Suspicions in which the two sides differed in it.
    between: u32,
    /// Those in which the answering side differed from itself.
    within: u32,
    /// When it did last.
    last: Duration,
}

impl Noise {
    /// A suspicion about the query of this fingerprint came to its last look at `now`: the two sides differ in the
    /// column, and the answering side differs from itself there, or does not.
    pub fn learn(&mut self, fingerprint: u64, column: &str, within: bool, now: Duration) {
        let key = (fingerprint, column.to_owned());
        if !self.seen.contains_key(&key) && self.seen.len() >= MOST {
            let oldest = self.seen.iter().min_by_key(|(_, counts)| counts.last).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.seen.remove(&key));
        }
        let counts = self.seen.entry(key).or_default();
        if now.saturating_sub(counts.last) >= EXPIRES {
            *counts = Counts::default();
        }
        counts.between = counts.between.saturating_add(1);
        if within {
            counts.within = counts.within.saturating_add(1);
        }
        counts.last = now;
    }

    /// Is a difference in this column to be expected?
    pub fn is_noise(&self, fingerprint: u64, column: &str, now: Duration) -> bool {
        let Some(counts) = self.seen.get(&(fingerprint, column.to_owned())) else { return false };
        let fresh = now.saturating_sub(counts.last) < EXPIRES;
        let relative = |n: u32| f64::from(counts.between - n) / f64::from(counts.between.max(1));
        fresh && counts.within >= LEAST && relative(counts.within) <= RELATIVE
    }

    /// Columns that are noise now, with their queries' fingerprints.
    pub fn known(&self, now: Duration) -> impl Iterator<Item = (u64, &str)> {
        self.seen
            .keys()
            .filter(move |(f, column)| self.is_noise(*f, column, now))
            .map(|(f, c)| (*f, c.as_str()))
    }
}

/// So long after its last occurrence noise is forgotten.
const EXPIRES: Duration = Duration::from_secs(3_600);
/// Fewer occurrences are chance.
const LEAST: u32 = 3;
/// At most this share of a column's differences is not explained by noise.
const RELATIVE: f64 = 0.2;
/// Columns that are remembered.
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn learned(within: &[bool]) -> Noise {
        let mut noise = Noise::default();
        for &within in within {
            noise.learn(1, "a", within, HOUR);
        }
        noise
    }

    #[test]
    fn noise_is_what_the_answering_side_does_as_well() {
        for (within, expected) in [
            (&[][..], false),
            (&[true, true], false),
            (&[true, true, true], true),
            (&[true, true, true, true, false], true),
            (&[true, true, true, false], false),
            (&[false; 50], false),
        ] {
            assert_eq!(learned(within).is_noise(1, "a", HOUR), expected, "{within:?}");
        }
        let noise = learned(&[true; 5]);
        assert!(!noise.is_noise(2, "a", HOUR) && !noise.is_noise(1, "b", HOUR));
        assert_eq!(noise.known(HOUR).collect::<Vec<_>>(), [(1, "a")]);
    }

    #[test]
    fn noise_expires() {
        let mut noise = learned(&[true; 5]);
        assert!(noise.is_noise(1, "a", HOUR + Duration::from_secs(3_599)));
        assert!(!noise.is_noise(1, "a", 2 * HOUR));
        noise.learn(1, "a", true, 3 * HOUR);
        assert!(!noise.is_noise(1, "a", 3 * HOUR), "it is learned anew");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut noise = learned(&[true; 5]);
        for i in 0..MOST as u64 {
            noise.learn(i + 2, "b", true, HOUR + Duration::from_secs(i));
        }
        assert_eq!(noise.seen.len(), MOST);
        assert!(!noise.is_noise(1, "a", HOUR));
    }
}
