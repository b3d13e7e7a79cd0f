//! What the kernel says about this process, from `/proc/self`. Names are Prometheus' own.

use std::fs;

use super::metrics::{
    Metric, PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RSS, PROCESS_START_TIME, PROCESS_THREADS,
    PROCESS_VIRTUAL,
};

/// `/proc` counts time in these, on every Linux there is (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads all; what cannot be read (another kernel, a sealed container) is left out.
pub fn read() -> Vec<(&'static Metric, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let kib = |name| first_number(&status, name).map(|v| v * 1024.0);
    let open = fs::read_dir("/proc/self/fd").ok().map(Iterator::count).and_then(|n| u32::try_from(n).ok());
    // Fields are numbered as in proc(5).
    let ticks = |n| stat_field(&stat, n).map(|v| v / TICKS_PER_SECOND);
    let started = first_number(&boot, "btime ").zip(ticks(22)).map(|(boot, up)| boot + up);
    [
        (&PROCESS_CPU, ticks(14).zip(ticks(15)).map(|(user, system)| user + system)),
        (&PROCESS_RSS, kib("VmRSS:")),
        (&PROCESS_VIRTUAL, kib("VmSize:")),
        (&PROCESS_OPEN_FDS, open.map(f64::from)),
        (&PROCESS_MAX_FDS, first_number(&limits, "Max open files")),
        (&PROCESS_THREADS, stat_field(&stat, 20)),
        (&PROCESS_START_TIME, started),
    ]
    .into_iter()
    .filter_map(|(metric, value)| Some((metric, value?)))
    .collect()
}

/// The second field is the command in parentheses and may hold spaces and parentheses itself.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(number.checked_sub(3)?)?.parse().ok()
}

fn first_number(text: &str, prefix: &str) -> Option<f64> {
    text.lines().find_map(|l| l.strip_prefix(prefix))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_itself() {
        let read = read();
        let value = |metric: &Metric| read.iter().find(|(m, _)| *m == metric).map(|(_, v)| *v);
        assert_eq!(read.len(), 7, "{read:?}");
        assert!(value(&PROCESS_RSS).is_some_and(|v| v > 1_000_000.0), "{read:?}");
        assert!(value(&PROCESS_OPEN_FDS).is_some_and(|v| v > 2.0), "{read:?}");
        assert!(value(&PROCESS_START_TIME).is_some_and(|v| v > 1_600_000_000.0), "{read:?}");
    }

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(stat_field("1 (a) b) S 4 5", 4), Some(4.0));
        assert_eq!(stat_field("1 (x", 4), None);
    }
}
