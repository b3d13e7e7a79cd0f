//! From a suspicion to an outcome: both sides are asked again after growing waits.
//!
//! A row that changes all the time may differ in every look, but never twice in the same way. So a divergence is what
//! is different *in the same way* in several looks in a row: the same values in the same row, the same row missing.
//! And where no cell and no row was different in all looks, nothing is: what differed was on its way.
//!
//! A flag that is switched all the time has two values only, and may well be seen in the same way a few times in a row. So
//! the follower must be known to have all writes in one of the looks, or many looks more have to agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Outcome, Why, noise::Noise};
use crate::compare::{
    Class, Difference,
    order::{Found, MOST_DIFFERENCES},
    record::Focus,
};

/// When to look again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Schedule {
    /// Waits before the first looks; later ones wait as long as the last.
    pub waits: Vec<Duration>,
    /// So many looks in a row must show the same difference, one of them at a follower that is [`Follower::Level`].
    pub agree: usize,
    /// So many, when it never was.
    pub sure: usize,
    /// The wait before those that are many.
    pub press: Duration,
    /// After so many looks of which not even [`Schedule::agree`] agree nobody can say.
    pub most: usize,
}

/// What the follower was while both sides were asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Follower {
    /// It had what the lead has, all the time. Of what is not mirrored this is believed.
    Level,
    /// Writes were on their way to it.
    Moving,
    /// One is on its way since before the last look: what differs now need not be more than what differed then.
    Stuck,
    /// It is known to lack writes, or nothing is known.
    Behind,
}

impl Default for Schedule {
    fn default() -> Self {
        let waits = [20, 100, 1_000].map(Duration::from_millis).into();
        Self { waits, agree: 3, sure: 12, press: Duration::from_millis(50), most: 8 }
    }
}

impl Schedule {
    fn wait(&self, look: usize) -> Duration {
        self.waits.get(look).or(self.waits.last()).copied().unwrap_or_default()
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Ask both sides again after this wait; of many rows keep those in this focus.
    Look(Duration, Option<Focus>),
    /// Ask the answering side twice, at once, and tell [`Suspicion::noise`] how its answers compare.
    Twice(Option<Focus>),
    /// It is over.
    Done(Outcome),
}

/// Where a difference is: its class, column and key.
type Place = (Class, Option<String>, Option<String>);

/// One read whose answers were not equal.
#[derive(Clone, Debug)]
pub struct Suspicion {
    schedule: Schedule,
    since: Duration,
    looks: usize,
    agreed: usize,
    /// One of those that agree was at a follower that was level.
    proven: bool,
    /// What all looks that agree have in common, by mark.
    common: BTreeMap<u64, Difference>,
    /// Cells and rows that were different in all looks, whatever their values.
    places: Option<BTreeSet<Place>>,
    focus: Option<Focus>,
    last: Option<Why>,
}

impl Suspicion {
    /// The digests were different at `now`. `determinate`: the query gives one answer only.
    pub fn new(schedule: Schedule, determinate: bool, now: Duration) -> (Self, Step) {
        let wait = schedule.wait(0);
        let (looks, agreed) = (0, 0);
        let suspicion = Self {
            schedule,
            since: now,
            looks,
            agreed,
            proven: false,
            common: BTreeMap::new(),
            places: None,
            focus: None,
            last: None,
        };
        let step =
            if determinate { Step::Look(wait, None) } else { Step::Done(Outcome::Indeterminate(Why::Limit)) };
        (suspicion, step)
    }

    /// Both sides were asked again.
    pub fn look(&mut self, found: Found, follower: Follower, now: Duration) -> Step {
        self.looks += 1;
        match found {
            Found::Same => return Step::Done(Outcome::Transient(now.saturating_sub(self.since))),
            Found::OrderOnly => return Step::Done(Outcome::OrderOnly),
            Found::Ignored => return Step::Done(Outcome::Ignored),
            Found::Unfit(unfit) => return Step::Done(Outcome::Indeterminate(Why::Unfit(unfit))),
            Found::Look(focus) => {
                self.focus = Some(focus);
                self.last.get_or_insert(Why::Restless);
            }
            Found::Differ(differences) if self.is_elsewhere(&differences) => {
                return Step::Done(Outcome::Transient(now.saturating_sub(self.since)));
            }
            Found::Differ(differences) => match follower {
                Follower::Level | Follower::Moving => self.add(differences, follower),
                Follower::Stuck => self.last = Some(Why::Behind),
                Follower::Behind => {
                    self.last = Some(Why::Behind);
                    self.agreed = 0;
                }
            },
        }
        let Schedule { agree, sure, press, most, .. } = self.schedule;
        if self.agreed >= sure || self.agreed >= agree && self.proven {
            return Step::Twice(self.focus.clone());
        }
        let pressing = self.agreed >= agree;
        if self.looks >= if pressing { most + 2 * sure } else { most } {
            return Step::Done(Outcome::Indeterminate(self.last.unwrap_or(Why::Restless)));
        }
        let wait = if pressing { press } else { self.schedule.wait(self.looks) };
        Step::Look(wait, self.focus.clone())
    }

    /// Notes where the answers differ; `true` when that is nowhere that they differed in all looks before.
    fn is_elsewhere(&mut self, differences: &[Difference]) -> bool {
        if differences.len() >= MOST_DIFFERENCES {
            return false; // these are not all
        }
        let now: BTreeSet<Place> =
            differences.iter().map(|d| (d.class, d.column.clone(), d.key.clone())).collect();
        let places = match self.places.take() {
            Some(before) => before.intersection(&now).cloned().collect(),
            None => now,
        };
        let nowhere = places.is_empty();
        self.places = Some(places);
        nowhere
    }

    fn add(&mut self, differences: Vec<Difference>, follower: Follower) {
        let mut new: BTreeMap<u64, Difference> = differences.into_iter().map(|d| (d.mark, d)).collect();
        if self.agreed > 0 && new.keys().any(|mark| self.common.contains_key(mark)) {
            new.retain(|mark, _| self.common.contains_key(mark));
            self.agreed += 1;
        } else {
            // Nothing is as it was: the first of a new row.
            self.agreed = 1;
            self.proven = false;
            self.last = Some(Why::Restless);
        }
        self.proven |= follower == Follower::Level;
        self.common = new;
    }

    /// A side did not answer.
    pub fn unanswered(&mut self) -> Step {
        self.looks += 1;
        self.agreed = 0;
        self.last = Some(Why::Unanswered);
        if self.looks >= self.schedule.most {
            return Step::Done(Outcome::Indeterminate(Why::Unanswered));
        }
        Step::Look(self.schedule.wait(self.looks), self.focus.clone())
    }

    /// The answering side was asked twice; `within` is how its two answers compare. What differs there as well, or is
    /// known to, is noise; columns of the key never are.
    pub fn noise(
        self,
        within: &Found,
        fingerprint: u64,
        key: &[String],
        noise: &mut Noise,
        now: Duration,
    ) -> Outcome {
        let itself: &[Difference] = match within {
            Found::Differ(differences) => differences,
            Found::Same | Found::OrderOnly | Found::Ignored | Found::Look(_) | Found::Unfit(_) => &[],
        };
        let by_column =
            |d: &Difference| d.class == Class::Cell && d.column.as_ref().is_some_and(|c| !key.contains(c));
        let of = |name: &str| itself.iter().any(|d| by_column(d) && d.column.as_deref() == Some(name));
        let columns: BTreeSet<&String> =
            self.common.values().filter(|d| by_column(d)).filter_map(|d| d.column.as_ref()).collect();
        for column in &columns {
            noise.learn(fingerprint, column, of(column), now);
        }
        let expected = |d: &Difference| match (d.class, &d.column) {
            (Class::Cell, Some(column)) if by_column(d) => {
                of(column) || noise.is_noise(fingerprint, column, now)
            }
            (Class::Order, _) => itself.iter().any(|d| d.class == Class::Order),
            _ => false,
        };
        let left: Vec<Difference> = self.common.values().filter(|d| !expected(d)).cloned().collect();
        if left.is_empty() { Outcome::Noise } else { Outcome::Divergence(left) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Unfit;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn cell(column: &str, mark: u64) -> Difference {
        Difference {
            class: Class::Cell,
            column: Some(column.into()),
            key: Some("id=1".into()),
            answering: Some("a".into()),
            shadow: Some("b".into()),
            mark,
        }
    }

    fn row(mark: u64) -> Difference {
        Difference { class: Class::MissingRow, column: None, ..cell("", mark) }
    }

    fn differ(marks: &[u64]) -> Found {
        Found::Differ(marks.iter().map(|&mark| cell("title", mark)).collect())
    }

    /// Plays the looks as scheduled; the answering side agrees with itself. In words, with the waits.
    fn play(looks: &[Found]) -> String {
        let mut now = ms(5);
        let (mut suspicion, mut step) = Suspicion::new(Schedule::default(), true, now);
        let mut looks = looks.iter();
        let mut waits = Vec::new();
        loop {
            step = match step {
                Step::Look(wait, _) => {
                    now += wait;
                    waits.push(wait.as_millis().to_string());
                    suspicion.look(looks.next().expect("a look more").clone(), Follower::Level, now)
                }
                Step::Twice(_) => {
                    Step::Done(suspicion.clone().noise(&Found::Same, 1, &[], &mut Noise::default(), now))
                }
                Step::Done(outcome) => {
                    assert!(looks.next().is_none(), "it ended early");
                    let what = match &outcome {
                        Outcome::Divergence(found) => {
                            let marks: Vec<u64> = found.iter().map(|d| d.mark).collect();
                            format!("divergence {marks:?}")
                        }
                        Outcome::Transient(age) => format!("transient {}", age.as_millis()),
                        Outcome::Indeterminate(why) => format!("indeterminate {}", why.name()),
                        Outcome::Match | Outcome::OrderOnly | Outcome::Ignored | Outcome::Noise => {
                            outcome.name().to_owned()
                        }
                    };
                    return format!("{} {what}", waits.join(","));
                }
            };
        }
    }

    #[test]
    fn looks() {
        let (d, look) = (differ, || Found::Look(Focus::default()));
        for (looks, expected) in [
            (vec![Found::Same], "20 transient 20"),
            (vec![d(&[1]), Found::Same], "20,100 transient 120"),
            (vec![d(&[1]), d(&[1]), Found::Same], "20,100,1000 transient 1120"),
            (vec![d(&[1]), d(&[1]), d(&[1])], "20,100,1000 divergence [1]"),
            (vec![d(&[1, 2]), d(&[1, 3]), d(&[4, 1])], "20,100,1000 divergence [1]"),
            (vec![d(&[1]), d(&[2]), d(&[2]), d(&[2])], "20,100,1000,1000 divergence [2]"),
            (
                vec![d(&[1, 2]), d(&[2, 3]), d(&[3, 1]), d(&[3]), d(&[3])],
                "20,100,1000,1000,1000 divergence [3]",
            ),
            (
                (1..9).map(|n| d(&[n])).collect(),
                "20,100,1000,1000,1000,1000,1000,1000 indeterminate restless",
            ),
            (vec![look(), d(&[1]), d(&[1]), d(&[1])], "20,100,1000,1000 divergence [1]"),
            (vec![d(&[1]), Found::Ignored], "20,100 ignored"),
            (vec![Found::OrderOnly], "20 order_only"),
            (vec![Found::Unfit(Unfit::Large)], "20 indeterminate large"),
            ((0..8).map(|_| look()).collect(), "20,100,1000,1000,1000,1000,1000,1000 indeterminate restless"),
        ] {
            assert_eq!(play(&looks), expected, "{looks:?}");
        }
    }

    /// Other rows each time: none of them stays.
    #[test]
    fn what_differs_elsewhere_each_time_was_on_its_way() {
        let at = |keys: &[&str]| {
            let cell =
                |key: &&str| Difference { key: Some((*key).to_owned()), ..cell("n", key.len() as u64) };
            Found::Differ(keys.iter().map(cell).collect())
        };
        for (looks, expected) in [
            (vec![at(&["a", "bb"]), at(&["ccc"])], "20,100 transient 120"),
            (vec![at(&["a", "bb"]), at(&["bb", "ccc"]), at(&["ccc", "dddd"])], "20,100,1000 transient 1120"),
            (vec![at(&["a", "bb"]), at(&["bb", "ccc"]), at(&["bb"])], "20,100,1000 divergence [2]"),
        ] {
            assert_eq!(play(&looks), expected, "{looks:?}");
        }
    }

    #[test]
    fn an_open_answer_is_not_looked_at_again() {
        let (_, step) = Suspicion::new(Schedule::default(), false, ms(0));
        assert_eq!(step, Step::Done(Outcome::Indeterminate(Why::Limit)));
    }

    #[test]
    fn while_the_follower_is_behind_nothing_is_a_divergence() {
        let (mut suspicion, _) = Suspicion::new(Schedule::default(), true, ms(0));
        for look in 1..8 {
            assert!(matches!(suspicion.look(differ(&[1]), Follower::Behind, ms(look)), Step::Look(..)));
        }
        let last = suspicion.look(differ(&[1]), Follower::Behind, ms(9));
        assert_eq!(last, Step::Done(Outcome::Indeterminate(Why::Behind)));
    }

    /// A flag that is switched all the time is not taken for one that differs; one that does differ is found all the same.
    #[test]
    fn while_writes_are_on_their_way_more_looks_must_agree() {
        let play = |looks: &[(Follower, u64)]| {
            let (mut suspicion, _) = Suspicion::new(Schedule::default(), true, ms(0));
            let steps: Vec<Step> = looks
                .iter()
                .map(|&(follower, mark)| suspicion.look(differ(&[mark]), follower, ms(1)))
                .collect();
            match steps.last() {
                Some(Step::Look(wait, _)) => format!("look {}", wait.as_millis()),
                Some(Step::Twice(_)) => format!("found in {}", steps.len()),
                Some(Step::Done(outcome)) => format!("{} in {}", outcome.name(), steps.len()),
                None => String::new(),
            }
        };
        let (level, moving, stuck) = (Follower::Level, Follower::Moving, Follower::Stuck);
        assert_eq!(play(&[(moving, 1); 3]), "look 50");
        assert_eq!(play(&[(moving, 1); 11]), "look 50");
        assert_eq!(play(&[(moving, 1); 12]), "found in 12");
        assert_eq!(play(&[[(moving, 1); 2], [(level, 1); 2]].concat()[..3]), "found in 3");
        assert_eq!(play(&[&[(moving, 1); 5][..], &[(level, 1)]].concat()), "found in 6");
        // What was seen of a level follower was another difference.
        assert_eq!(play(&[&[(level, 2)][..], &[(moving, 1); 3]].concat()), "look 50");
        assert_eq!(play(&[&[(moving, 1); 9][..], &[(moving, 2)]].concat()), "indeterminate in 10");
        assert_eq!(play(&[(stuck, 1); 8]), "indeterminate in 8");
        assert_eq!(play(&[&[(moving, 1); 4][..], &[(stuck, 1); 20]].concat()), "look 50");
        assert_eq!(play(&[&[(moving, 1); 4][..], &[(stuck, 1); 20], &[(level, 1)]].concat()), "found in 25");
    }

    #[test]
    fn a_side_that_does_not_answer_is_asked_again() {
        let (mut suspicion, _) = Suspicion::new(Schedule::default(), true, ms(0));
        let _ = suspicion.look(differ(&[1]), Follower::Level, ms(1));
        assert!(matches!(suspicion.unanswered(), Step::Look(wait, _) if wait == ms(1_000)));
        for _ in 0..2 {
            assert!(
                matches!(suspicion.look(differ(&[1]), Follower::Level, ms(2)), Step::Look(..)),
                "three in a row"
            );
        }
        assert!(matches!(suspicion.look(differ(&[1]), Follower::Level, ms(3)), Step::Twice(_)));
    }

    #[test]
    fn noise_is_taken_out_and_keys_are_not() {
        let mut noise = Noise::default();
        let mut end = |found: &[Difference], within: &Found, key: &[&str]| {
            let (mut suspicion, _) = Suspicion::new(Schedule::default(), true, ms(0));
            for look in 0..3 {
                let _ = suspicion.look(Found::Differ(found.to_vec()), Follower::Level, ms(look));
            }
            let key: Vec<String> = key.iter().map(ToString::to_string).collect();
            match suspicion.noise(within, 7, &key, &mut noise, ms(9)) {
                Outcome::Divergence(left) => left.iter().map(|d| d.mark).collect(),
                Outcome::Noise => vec![u64::MAX],
                Outcome::Match
                | Outcome::OrderOnly
                | Outcome::Ignored
                | Outcome::Transient(_)
                | Outcome::Indeterminate(_) => Vec::new(),
            }
        };
        let seen = Found::Differ(vec![cell("seen", 50), row(51)]);
        assert_eq!(end(&[cell("seen", 1)], &seen, &[]), [u64::MAX]);
        assert_eq!(end(&[cell("seen", 1), cell("title", 2)], &seen, &[]), [2]);
        assert_eq!(end(&[cell("seen", 1), row(2)], &seen, &[]), [2], "a row that is missing is missing");
        assert_eq!(end(&[cell("seen", 1)], &seen, &["seen"]), [1]);
        // Learned by now: it need not show each time.
        assert_eq!(end(&[cell("seen", 1)], &Found::Same, &[]), [1], "three of four are not enough");
        for _ in 0..6 {
            end(&[cell("seen", 1)], &seen, &[]);
        }
        assert_eq!(end(&[cell("seen", 1)], &Found::Same, &[]), [u64::MAX]);
        let order = Difference { class: Class::Order, column: None, ..cell("", 8) };
        assert_eq!(end(std::slice::from_ref(&order), &Found::Differ(vec![order.clone()]), &[]), [u64::MAX]);
        assert_eq!(end(std::slice::from_ref(&order), &Found::Same, &[]), [8]);
    }
}
