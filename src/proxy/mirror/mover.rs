//! Moves leads to where the operator's file wants them: once, or in turns.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Weak,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    journal::{Mirrored, jitter},
    lead::{LOOK, Leads},
};
use crate::{
    Side,
    backend::control::Manager,
    config::Config,
    mirror::lead::{Attempt, Failed, InForce, Mover, Order, Wait},
    proxy::global::Global,
    route::slice::LEAST,
};

/// Moves leads for as long as there is a proxy.
pub(super) async fn move_leads(global: Weak<Global>, managers: [Manager; 2], patience: Duration) {
    let mover = Mover::new(managers, patience);
    let mut wishes: HashMap<Vec<String>, Wish> = HashMap::new();
    let mut nap = LOOK;
    let Some(mut edits) = global.upgrade().map(|global| global.live.subscribe()) else { return };
    loop {
        tokio::select! {
            () = sleep(jitter(nap)) => {}
            // What is edited forth and back is wanted anew.
            _ = edits.changed() => {}
        }
        let Some(strong) = global.upgrade() else { return };
        // Not held while we wait: the proxy may end.
        let (config, mirrored) = (strong.live.get(), strong.mirrored.clone());
        drop(strong);
        let groups = groups(&config, mirrored.leads.clock());
        wishes.retain(|names, _| groups.iter().any(|group| group.names == *names));
        nap = LOOK;
        let mut together: [Vec<&Group>; 2] = Default::default();
        let mut alone = Vec::new();
        for group in &groups {
            let wish = wishes.entry(group.names.clone()).or_insert_with(|| Wish::new(group));
            wish.follow(group);
            match wish.due(group, &mirrored) {
                Some(Due::Move(side)) if !wish.turns && wish.tries.failed < TOGETHER => {
                    together[side.index()].push(group);
                }
                Some(due) => alone.push((due, vec![group])),
                None => {}
            }
            nap = group.left.map_or(nap, |left| nap.min(left));
        }
        let sides = Side::BOTH.into_iter().zip(together).filter(|(_, groups)| !groups.is_empty());
        for (due, groups) in sides.map(|(side, groups)| (Due::Move(side), groups)).chain(alone) {
            grant(&mover, &mirrored.leads, &mut wishes, (due, &groups)).await;
        }
    }
}

/// One attempt for all of these.
async fn grant(
    mover: &Mover,
    leads: &Leads,
    wishes: &mut HashMap<Vec<String>, Wish>,
    (due, groups): (Due, &[&Group]),
) {
    let (mut pressing, mut often) = (false, false);
    for group in groups {
        let Some(wish) = wishes.get_mut(&group.names) else { continue };
        wish.begins(group);
        pressing |= wish.tries.pressing;
        often |= wish.turns;
    }
    let names: Vec<&str> = groups.iter().flat_map(|group| &group.names).map(String::as_str).collect();
    let wanted = match due {
        Due::Move(side) => Some(side),
        Due::Finish => None,
    };
    let attempt = mover.attempt(&Order { names: &names, wanted, pressing, often }).await;
    match &attempt {
        Ok(Attempt::Nothing | Attempt::Elsewhere) => {}
        Ok(Attempt::Waits(_)) => leads.count("waited"),
        Ok(Attempt::Moved { .. }) => leads.count("moved"),
        Err(_) => leads.count("failed"),
    }
    for group in groups {
        if let Some(wish) = wishes.get_mut(&group.names) {
            wish.ends(&attempt, leads, group);
        }
    }
    if matches!(attempt, Ok(Attempt::Moved { .. })) {
        leads.look().await;
    }
}

/// Repositories that are to be led by the same side.
#[derive(Debug)]
struct Group {
    names: Vec<String>,
    wanted: Side,
    /// They take turns: how long this one lasts.
    left: Option<Duration>,
}

/// Who is to lead what by the file, at this moment of the source's clock. Those of equal weights between 0 and 100 change
/// sides together, so that a transaction may write several.
fn groups(config: &Config, clock: Option<Duration>) -> Vec<Group> {
    let (mut groups, mut turns) = (Vec::new(), BTreeMap::<u16, Group>::new());
    for r in config.policy.repositories.iter().filter(|r| r.mirror.mode.is_mirrored()) {
        let Some(slices) = r.slices(config.mirror.slice) else {
            groups.push(Group { names: vec![r.name.clone()], wanted: r.writes.draw(0), left: None });
            continue;
        };
        let Some(slice) = clock.map(|clock| slices.at(clock)) else { continue };
        let group = Group { names: Vec::new(), wanted: slice.lead, left: Some(slice.left) };
        turns.entry(r.writes.basis_points()).or_insert(group).names.push(r.name.clone());
    }
    groups.extend(turns.into_values());
    groups
}

/// What the operator's file wants of some repositories, and what has come of it.
#[derive(Debug)]
struct Wish {
    wanted: Side,
    turns: bool,
    /// It led once since the file (or its turn) wants it. When somebody else moves it then, that is what counts: two
    /// instances whose files differ must not pull at it for ever.
    granted: bool,
    /// Since when it is tried.
    since: Option<Instant>,
    /// The next attempt.
    again: Instant,
    /// What was logged last.
    said: Option<(Instant, String)>,
    /// This turn was counted as one that waits.
    waited: bool,
    tries: Tries,
}

/// What an attempt is to do.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// That side is to lead.
    Move(Side),
    /// A move that broke off, wherever it went, is to be finished.
    Finish,
}

impl Wish {
    fn new(group: &Group) -> Self {
        Self {
            wanted: group.wanted,
            turns: group.left.is_some(),
            granted: false,
            since: None,
            again: Instant::now(),
            said: None,
            waited: false,
            tries: Tries::default(),
        }
    }

    /// Another turn, or another edit.
    fn follow(&mut self, group: &Group) {
        let turns = group.left.is_some();
        if self.turns != turns || !turns && self.wanted != group.wanted {
            *self = Wish::new(group);
        } else if self.wanted != group.wanted {
            // What was in the way may still be: the pause between attempts goes on.
            (self.wanted, self.granted, self.since, self.waited) = (group.wanted, false, None, false);
        }
    }

    /// Is it time to try, and what for?
    fn due(&mut self, group: &Group, mirrored: &Mirrored) -> Option<Due> {
        let leads = &mirrored.leads;
        let in_force: Vec<InForce> = group.names.iter().map(|name| leads.in_force(name)).collect();
        if in_force.contains(&InForce::Unknown) {
            return None;
        }
        if in_force.iter().all(|&lead| lead == InForce::Side(self.wanted)) {
            if !self.granted || self.said.is_some() {
                (self.granted, self.said, self.since) = (true, None, None);
                self.tries = Tries::default();
                wait(leads, group, None);
            }
            return None;
        }
        let whole = in_force.iter().all(|lead| matches!(lead, InForce::Side(_)));
        if self.granted && whole {
            if !self.turns && self.is_news("another") {
                let wanted = self.wanted;
                tracing::warn!(repository = %group.names.join(","), %wanted, "another instance has moved the lead: it stays there, and the file says otherwise");
            }
            return None;
        }
        if Instant::now() < self.again {
            return None;
        }
        if self.granted {
            return Some(Due::Finish);
        }
        if whole && self.turns && !self.may_turn(group, mirrored, &in_force) {
            return None;
        }
        Some(Due::Move(self.wanted))
    }

    /// Is a turn worth the while? Nobody is made to wait for rows that the repairer could not ship.
    fn may_turn(&mut self, group: &Group, mirrored: &Mirrored, in_force: &[InForce]) -> bool {
        if group.left.is_some_and(|left| left < LEAST / 2) {
            return false;
        }
        let now = Instant::now();
        let dirty = group.names.iter().zip(in_force).find_map(|(name, lead)| match lead {
            InForce::Side(lead) => (!mirrored.status.is_clean(name, *lead, now)).then_some(*lead),
            InForce::Nobody | InForce::Both | InForce::Unknown => None,
        });
        let Some(lead) = dirty else { return true };
        let held = mirrored.status.state().journals[lead.index()].held.len();
        if held == 0 {
            return true;
        }
        let why = format!("{held} rows of the {lead}'s journal that could not be shipped: see SHOW JOURNAL");
        if !std::mem::replace(&mut self.waited, true) {
            mirrored.leads.count("waited");
        }
        wait(&mirrored.leads, group, Some(&why));
        false
    }

    fn begins(&mut self, group: &Group) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            if !self.turns {
                let repository = group.names.join(",");
                tracing::info!(repository, wanted = %self.wanted, "the lead of writes is to move");
            }
        }
    }

    /// An attempt has ended so.
    fn ends(&mut self, attempt: &Result<Attempt, Failed>, leads: &Leads, group: &Group) {
        let (repository, wanted) = (group.names.join(","), self.wanted);
        self.again = Instant::now() + jitter(self.tries.pause(attempt.as_ref().ok()));
        match attempt {
            Ok(Attempt::Nothing | Attempt::Elsewhere) => {}
            Ok(Attempt::Waits(why)) => {
                let why = why.to_string();
                if self.is_news("waits") {
                    tracing::info!(repository, %wanted, "the lead of writes waits for {why}");
                }
                wait(leads, group, Some(&why));
            }
            Ok(Attempt::Moved { from, to, sequences, stalled }) => {
                wait(leads, group, None);
                let took = self.since.take().map_or(*stalled, |since| since.elapsed());
                let (took_ms, stalled_ms) = (took.as_millis(), stalled.as_millis());
                self.said = None;
                if self.turns {
                    tracing::debug!(repository, %from, %to, sequences, took_ms, stalled_ms, "the other side's turn");
                } else {
                    tracing::info!(repository, %from, %to, sequences, took_ms, stalled_ms, "the lead of writes has moved");
                }
            }
            Err(error) => {
                let why = error.to_string();
                if self.is_news(&why) {
                    if matches!(error, Failed::Unfit(_)) {
                        tracing::error!(repository, %wanted, error = why, "the lead of writes cannot move");
                    } else {
                        tracing::warn!(repository, %wanted, error = why, "the lead of writes could not be moved yet");
                    }
                }
                wait(leads, group, Some(&why));
            }
        }
    }

    /// Was it not said within the last minute?
    fn is_news(&mut self, what: &str) -> bool {
        let known = self.said.as_ref().is_some_and(|(at, text)| text == what && at.elapsed() < AGAIN);
        if !known {
            self.said = Some((Instant::now(), what.to_owned()));
        }
        !known
    }
}

fn wait(leads: &Leads, group: &Group, why: Option<&str>) {
    for name in &group.names {
        leads.wait(name, why.map(str::to_owned));
    }
}

/// What earlier attempts tell of the next one.
#[derive(Debug, Default, Eq, PartialEq)]
struct Tries {
    /// In vain, one after another.
    failed: u32,
    /// Journal rows that were in the way.
    rows: Option<i64>,
    /// They do not get fewer by themselves: writers are held back while they are shipped.
    pressing: bool,
}

impl Tries {
    /// An attempt has ended so (`None`: with an error): how long to leave writers alone.
    fn pause(&mut self, attempt: Option<&Attempt>) -> Duration {
        let rows = match attempt {
            Some(Attempt::Nothing | Attempt::Moved { .. }) => {
                *self = Self::default();
                return Duration::ZERO;
            }
            Some(Attempt::Elsewhere) => return PAUSE,
            Some(Attempt::Waits(Wait::Journal(_, rows))) => Some(*rows),
            Some(Attempt::Waits(Wait::Writers(..))) | None => None,
        };
        let fewer = matches!((rows, self.rows), (Some(now), Some(before)) if now < before);
        let stuck = rows.is_some() && self.rows.is_some() && !fewer;
        self.rows = rows;
        if fewer {
            // The repairer is winning, or it is while writers are held back: then they had better not catch up.
            self.failed = 0;
            return if self.pressing { SHORT } else { PAUSE };
        }
        // What does not get less by pressing is not in want of time.
        self.pressing = stuck && !self.pressing;
        self.failed += 1;
        PAUSE * (1 << (self.failed - 1).min(2))
    }
}

/// So often repositories whose leads are to move at the same time are tried together; then what can goes.
const TOGETHER: u32 = 3;
/// Between attempts: writers run on meanwhile. Up to four times as long when they are in vain.
const PAUSE: Duration = Duration::from_millis(1200);
/// The same while a journal that grows faster than it is shipped gets shorter only in between.
const SHORT: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(rows: i64) -> Attempt {
        Attempt::Waits(Wait::Journal(Side::Source, rows))
    }

    #[test]
    fn a_journal_that_does_not_get_shorter_is_pressed() {
        let mut tries = Tries::default();
        // Rows that are left, pause before the next attempt, and whether that one presses.
        for (rows, pause_ms, pressing) in [
            (5_000, 1_200, false),
            (4_000, 1_200, false), // the repairer is winning
            (4_500, 1_200, true),  // it is not
            (3_000, 300, true),
            (1_500, 300, true),
            (1_500, 1_200, false), // pressing does not help: a row that cannot be shipped
            (1_500, 2_400, true),
            (1_500, 4_800, false),
            (1_500, 4_800, true),
            (1_400, 300, true),
        ] {
            let pause = tries.pause(Some(&journal(rows)));
            assert_eq!((pause.as_millis(), tries.pressing), (pause_ms, pressing), "{rows}");
        }
        let moved =
            Attempt::Moved { from: Side::Source, to: Side::Target, sequences: 0, stalled: Duration::ZERO };
        assert_eq!(tries.pause(Some(&moved)), Duration::ZERO);
        assert_eq!(tries, Tries::default());
    }

    #[test]
    fn attempts_in_vain_leave_writers_alone_for_longer() {
        let mut tries = Tries::default();
        let writers = Attempt::Waits(Wait::Writers(Side::Source, vec![1], 0));
        let pauses: Vec<_> = (0..5).map(|_| tries.pause(Some(&writers)).as_millis()).collect();
        assert_eq!(pauses, [1_200, 2_400, 4_800, 4_800, 4_800]);
        assert_eq!(tries.pause(None).as_millis(), 4_800, "an error");
    }
}
