//! What routing costs: a decision for every statement, a footprint for every plan and policy.

use std::time::Duration;

use crossfade::{
    catalog::Catalog,
    route::{
        Decision, Footprint, TransactionState, decide,
        policy::{OnUnknown, Pattern, Policy, Repository, Share, TransactionReads},
    },
    statement::{Context, Statement, analyze},
};

fn main() {
    divan::main();
}

#[divan::bench]
fn decision(bencher: divan::Bencher<'_, '_>) {
    let policy = policy();
    let footprint = Footprint::new(&statements(), &policy, &Catalog::default());
    let state = TransactionState::default();
    bencher.bench(|| -> Decision { decide(divan::black_box(&footprint), &policy, &state, 1_234) });
}

#[divan::bench]
fn footprint(bencher: divan::Bencher<'_, '_>) {
    let (policy, statements, catalog) = (policy(), statements(), Catalog::default());
    bencher.bench(|| Footprint::new(divan::black_box(&statements), &policy, &catalog));
}

fn statements() -> Vec<Statement> {
    let catalog = Catalog::default();
    let context = Context {
        catalog: &catalog,
        search_path: None,
        standard_conforming_strings: true,
        max_bytes: 1 << 20,
    };
    analyze(b"select * from public.documents d join public.users u on u.id = d.owner", &context).statements
}

fn policy() -> Policy {
    let repository = |name: &str| Repository {
        name: name.into(),
        tables: vec![Pattern { schema: "public".into(), name: format!("{name}*") }],
        functions: Vec::new(),
        reads: Share::new(1_000).expect("10 %"),
        writes: Share::NONE,
        mirror: crossfade::route::policy::Mirror::default(),
    };
    Policy {
        generation: 1,
        repositories: ["default", "document", "user", "organization"].map(repository).into(),
        on_unknown: OnUnknown::Refuse,
        transactions: TransactionReads::Weighted,
        sticky: Duration::ZERO,
    }
}
