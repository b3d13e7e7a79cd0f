//! What each relayed statement costs beside the system calls: cutting frames, finding the plan.

use bytes::BytesMut;
use crossfade::{
    catalog::Catalog,
    proxy::plans::{PlanLimits, Plans},
    wire::frame::{self, Backend},
};

fn main() {
    divan::main();
}

/// A result of 100 rows, by headers alone.
#[divan::bench]
fn frames(bencher: divan::Bencher<'_, '_>) {
    let mut answer = BytesMut::new();
    for _ in 0..100 {
        frame::put(&mut answer, b'D', |row| row.extend_from_slice(&[0; 96]));
    }
    bencher.bench(|| {
        let (mut rest, mut rows) = (divan::black_box(&answer[..]), 0);
        while let Ok(Some((tag, length))) = frame::header(rest) {
            rows += u32::from(Backend::from_tag(tag) == Some(Backend::Relayed));
            rest = &rest[length..];
        }
        rows
    });
}

/// The same text again, and the same text with other literals.
#[divan::bench(args = ["exact", "literals"])]
fn cached_plan(bencher: divan::Bencher<'_, '_>, layer: &str) {
    let limits = PlanLimits { cache_bytes: 1 << 20, statement_bytes: 1 << 20 };
    let (mut plans, catalog) = (Plans::default(), Catalog::default());
    let context = plans.context(None, true, true);
    let texts: Vec<String> = (0..1000)
        .map(|n| match layer {
            "exact" => "SELECT abalance FROM pgbench_accounts WHERE aid = $1".to_owned(),
            _ => format!("SELECT abalance FROM pgbench_accounts WHERE aid = {n}"),
        })
        .collect();
    let mut turn = 0;
    bencher.bench_local(move || {
        turn = (turn + 1) % texts.len();
        plans.get(divan::black_box(texts[turn].as_bytes()), &context, &catalog, limits)
    });
}
