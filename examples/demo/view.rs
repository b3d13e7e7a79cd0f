//! The live view: a table redrawn in place, or plain lines when nobody looks at a terminal.

use std::io::{IsTerminal, Write};

use crossfade::Side;

use crate::tally::{Step, Tally, percent};

/// Draws to stdout.
pub(crate) struct View {
    terminal: bool,
    /// Lines drawn since the last line that stays; on a terminal they are drawn over.
    drawn: usize,
}

impl View {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), drawn: 0 }
    }

    /// A line that stays.
    pub(crate) fn say(&mut self, text: &str) {
        self.drawn = 0;
        println!("{text}");
    }

    /// The state of things: the table up to the present step, or one line of it.
    pub(crate) fn refresh(&mut self, tally: &Tally, configured: &[u8], present: usize) {
        let trouble = format!(
            "errors {}  dropped {}  reconnects {}  wrong rows {}  transactions {}",
            tally.errors, tally.dropped, tally.reconnects, tally.wrong, tally.transactions
        );
        if !self.terminal {
            if self.drawn == 0 {
                println!("{HEADER}");
                self.drawn = 1;
            }
            println!("{}  {trouble}", row(configured[present], &tally.steps[present]));
            return;
        }
        let mut lines = vec![HEADER.to_owned()];
        lines.extend(
            tally.steps.iter().zip(configured).take(present + 1).map(|(step, &percent)| row(percent, step)),
        );
        lines.push(trouble);
        let mut out = std::io::stdout().lock();
        if self.drawn > 0 {
            write!(out, "\x1b[{}A", self.drawn).expect("stdout is open");
        }
        for line in &lines {
            writeln!(out, "\r\x1b[2K{line}").expect("stdout is open");
        }
        self.drawn = lines.len();
        out.flush().expect("stdout is open");
    }
}

const HEADER: &str = "document reads   source   target   measured   source p50/p99 ms   target p50/p99 ms";

fn row(configured: u8, step: &Step) -> String {
    let measured = step.target_percent().map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1} %"));
    let [source, target] = Side::BOTH.map(|side| latencies(step, side));
    format!(
        "target {configured:>3} %   {:>8} {:>8}   {measured:>8}   {source:>17}   {target:>17}",
        step.reads[0], step.reads[1]
    )
}

/// Head of the closing table.
pub(crate) const SUMMARY: &str = "step   configured   by clients   by pg_stat_statements (source + target)   by /metrics   \
                                  transactions   source p50/p99 ms   target p50/p99 ms";

/// One line of the closing table. `counted` is what the servers and crossfade counted, by side.
pub(crate) fn summary(number: usize, configured: u8, step: &Step, counted: &[[u64; 2]; 2]) -> String {
    let share = |reads| percent(reads).map_or_else(|| "-".to_owned(), |percent| format!("{percent:.2} %"));
    let servers = format!("{} ({} + {})", share(counted[0]), counted[0][0], counted[0][1]);
    let [source, target] = Side::BOTH.map(|side| latencies(step, side));
    format!(
        "{number:>4}   {configured:>8} %   {:>10}   {servers:>40}   {:>11}   {:>12}   {source:>17}   {target:>17}",
        share(step.reads),
        share(counted[1]),
        step.draws,
    )
}

fn latencies(step: &Step, side: Side) -> String {
    let at = |quantile| step.latency_us(side, quantile).map(|us| f64::from(us) / 1000.0);
    at(0.5).zip(at(0.99)).map_or_else(|| "-".to_owned(), |(p50, p99)| format!("{p50:.2} / {p99:.2}"))
}
