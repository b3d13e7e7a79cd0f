//! Who leads when source and target take turns: slices of time, cut by one clock. Pure.

use std::time::Duration;

use super::policy::{Repository, Share};
use crate::Side;

/// How a period is shared: the target leads first, then the source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slices {
    period_us: u64,
    target_us: u64,
}

/// A moment within a period.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slice {
    /// Who is to lead.
    pub lead: Side,
    /// For so long from now on.
    pub left: Duration,
}

impl Slices {
    /// Cuts `period` by the target's share; longer, so that no slice is shorter than [`LEAST`]. `None`: one side leads
    /// all the time.
    pub fn new(period: Duration, target: Share) -> Option<Self> {
        let target = u64::from(target.basis_points());
        let smaller = target.min(WHOLE - target);
        if smaller == 0 {
            return None;
        }
        let least_us = LEAST_US * WHOLE / smaller;
        let period_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX).clamp(least_us, MOST_US);
        // To the microsecond: whole basis points of whole units of ten milliseconds.
        let period_us = period_us.next_multiple_of(WHOLE);
        Some(Self { period_us, target_us: period_us / WHOLE * target })
    }

    /// `clock`: since 1970, by the source's server.
    pub fn at(&self, clock: Duration) -> Slice {
        let now = clock.as_micros() % u128::from(self.period_us);
        let now = u64::try_from(now).expect("less than the period");
        let (lead, end) = if now < self.target_us {
            (Side::Target, self.target_us)
        } else {
            (Side::Source, self.period_us)
        };
        Slice { lead, left: Duration::from_micros(end - now) }
    }

    /// From one of the target's slices to its next.
    pub fn period(&self) -> Duration {
        Duration::from_micros(self.period_us)
    }

    /// What the target has of it.
    pub fn target(&self) -> Duration {
        Duration::from_micros(self.target_us)
    }
}

impl Repository {
    /// How its sides take turns; `None`: one leads, or nothing is mirrored.
    pub fn slices(&self, period: Duration) -> Option<Slices> {
        Slices::new(period, self.writes).filter(|_| self.mirror.mode.is_synchronous())
    }
}

/// No slice is shorter: a change costs writers part of it.
pub const LEAST: Duration = Duration::from_micros(LEAST_US);
const LEAST_US: u64 = 500_000;
/// A day, or what [`LEAST`] asks for.
const MOST_US: u64 = 86_400_000_000;
/// Basis points.
const WHOLE: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(period_ms: u64, target: u16, expected_ms: Option<(u64, u64)>) {
        let slices = Slices::new(Duration::from_millis(period_ms), Share::new(target).unwrap());
        let expected = expected_ms.map(|(a, b)| [a, b].map(Duration::from_millis));
        assert_eq!(slices.map(|s| [s.target(), s.period()]), expected, "{target} of {period_ms} ms");
    }

    #[test]
    fn a_period_is_cut_by_the_weight() {
        check(10_000, 0, None);
        check(10_000, 10_000, None);
        check(10_000, 1_000, Some((1_000, 10_000)));
        check(10_000, 9_000, Some((9_000, 10_000)));
        check(10_000, 5_000, Some((5_000, 10_000)));
        // No slice is shorter than half a second, and the share stays what it is.
        check(10_000, 100, Some((500, 50_000)));
        check(10_000, 9_900, Some((49_500, 50_000)));
        check(10_000, 1, Some((500, 5_000_000)));
        check(1, 5_000, Some((500, 1_000)));
        check(u64::MAX, 5_000, Some((43_200_000, 86_400_000)));
    }

    #[test]
    fn the_share_is_exact_over_time() {
        for (period_ms, target) in
            [(10_000, 1_000), (1_234, 3_333), (10_000, 37), (700, 5_000), (3_601, 9_999)]
        {
            let slices = Slices::new(Duration::from_millis(period_ms), Share::new(target).unwrap()).unwrap();
            let start = Duration::from_secs(1_800_000_000);
            let (mut led, mut now) = (Duration::ZERO, start);
            // From change to change: 2,000 slices, beginning and ending in the middle of the same one.
            let first = slices.at(now);
            for _ in 0..2_000 {
                let slice = slices.at(now);
                led += if slice.lead == Side::Target { slice.left } else { Duration::ZERO };
                now += slice.left;
                assert_ne!(slices.at(now).lead, slice.lead, "it ends when it says so");
            }
            let over = slices.period() * 1_000;
            let rest = (start + over).checked_sub(now).unwrap();
            led += if first.lead == Side::Target { rest } else { Duration::ZERO };
            assert_eq!(led * 10_000, over * u32::from(target), "{target} of {period_ms} ms");
        }
    }
}
