use std::time::Duration;

use proptest::prelude::*;

use super::{
    policy::{Pattern, Repository, Share},
    *,
};
use crate::{
    catalog::Catalog,
    statement::{Context, analyze, sample},
};

const TICKET: u16 = 5_000;
const CONTROL: Block = Block {
    side: Some(Side::Source),
    work: Work::Prologue,
    read: 0,
    isolation: None,
    read_only: None,
    pinned: false,
};

fn repository(name: &str, tables: &[&str], reads: u16, writes: u16) -> Repository {
    let pattern = |text: &&str| {
        let (schema, name) = text.split_once('.').unwrap();
        Pattern { schema: schema.into(), name: name.into() }
    };
    Repository {
        name: name.into(),
        tables: tables.iter().map(pattern).collect(),
        functions: Vec::new(),
        reads: Share::new(reads).unwrap(),
        writes: Share::new(writes).unwrap(),
        mirror: crate::route::policy::Mirror::default(),
    }
}

/// document and user with these shares of the target in percent: (reads, writes).
fn policy(document: (u16, u16), user: (u16, u16)) -> Policy {
    let (d, u) = (document, user);
    Policy {
        generation: 1,
        repositories: vec![
            repository("default", &[], 0, 0),
            repository("document", &["public.document*", "public.events"], d.0 * 100, d.1 * 100),
            repository("user", &["public.users"], u.0 * 100, u.1 * 100),
        ],
        on_unknown: OnUnknown::Refuse,
        transactions: TransactionReads::Weighted,
        sticky: Duration::ZERO,
    }
}

fn footprint(sql: &str, policy: &Policy, catalog: &Catalog) -> Footprint {
    let path = ["public".to_owned()];
    let context =
        Context { catalog, search_path: Some(&path), standard_conforming_strings: true, max_bytes: 1 << 20 };
    Footprint::new(&analyze(sql.as_bytes(), &context).statements, policy, catalog)
}

fn show(decision: &Decision) -> String {
    match decision {
        Decision::Run(side, reason) => format!("run {side} {}", reason.name()),
        Decision::Move(side, reason) => format!("move {side} {}", reason.name()),
        Decision::Refuse(r) => {
            format!("refuse {} [{}] [{}]", r.rule.name(), r.source.join(","), r.target.join(","))
        }
    }
}

#[track_caller]
fn check_state(policy: &Policy, state: &TransactionState, sql: &str, expected: &str) {
    let footprint = footprint(sql, policy, &sample::catalog());
    assert_eq!(show(&decide(&footprint, policy, state, TICKET)), expected, "{sql}\n{footprint:?}");
}

#[track_caller]
fn check(policy: &Policy, sql: &str, expected: &str) {
    check_state(policy, &TransactionState::default(), sql, expected);
}

#[track_caller]
fn check_block(policy: &Policy, block: Block, sql: &str, expected: &str) {
    check_state(
        policy,
        &TransactionState { block: Some(block), ..TransactionState::default() },
        sql,
        expected,
    );
}

const DOCUMENT: &str = "select * from documents";
const BOTH: &str = "select * from documents, users";
const WITH_DEFAULT: &str = "select * from documents, things";
const UPDATE: &str = "update documents set a = 1";

#[test]
fn autocommit_reads() {
    check(&policy((0, 0), (0, 0)), DOCUMENT, "run source only_side");
    check(&policy((100, 0), (0, 0)), DOCUMENT, "run target weighted");
    check(&policy((50, 0), (0, 0)), DOCUMENT, "run source weighted");
    check(&policy((51, 0), (0, 0)), DOCUMENT, "run target weighted");
    check(&policy((60, 0), (60, 0)), BOTH, "run target weighted");
    check(&policy((60, 0), (10, 0)), BOTH, "run source agreed");
    check(&policy((100, 0), (10, 0)), BOTH, "run target agreed");
    check(&policy((60, 0), (0, 0)), BOTH, "run source only_side");
    check(&policy((100, 100), (0, 0)), BOTH, "refuse no_side [user] [document]");
    check(&policy((100, 0), (0, 0)), BOTH, "run source only_side");
    check(&policy((100, 100), (100, 100)), BOTH, "run target only_side");
    check(&policy((60, 0), (0, 0)), WITH_DEFAULT, "run source only_side");
    check(&policy((100, 100), (0, 0)), WITH_DEFAULT, "refuse no_side [default] [document]");
    check(&policy((100, 0), (0, 0)), "select * from things", "run source only_side");
    check(&policy((100, 0), (0, 0)), "select * from events_2024_01", "run target weighted");
    check(&policy((100, 0), (0, 0)), "select * from documents, pg_class", "run source home");
    check(&policy((100, 100), (0, 0)), "select * from documents, pg_class", "run target only_side");
    check(&policy((100, 0), (0, 0)), "select 1", "run source home");
    check(&policy((100, 0), (0, 0)), "select * from pg_class", "run source home");
    check(&policy((100, 0), (0, 0)), "show all", "run source home");
    check(&policy((100, 0), (0, 0)), "begin", "run source home");
    check(&policy((100, 0), (0, 0)), "", "run source home");
    check(&policy((100, 0), (0, 0)), "explain update documents set a = 1", "run target weighted");
    check(&policy((100, 0), (0, 0)), "copy documents to stdout", "run target weighted");
}

#[test]
fn writes_go_to_the_lead() {
    let split = policy((100, 100), (0, 0));
    for (sql, expected) in [
        (UPDATE, "run target lead"),
        ("explain analyze update documents set a = 1", "run target lead"),
        ("select * from documents for update", "run target lead"),
        ("lock documents", "run target lead"),
        ("copy documents from stdin", "run target lead"),
        ("truncate documents", "run target lead"),
        ("alter table documents add a int", "run target lead"),
        ("vacuum documents", "run target lead"),
        ("insert into events_2024 values (1)", "run target lead"),
        ("copy (select * from documents for update) to stdout", "run target lead"),
        ("update users set a = 1", "run source lead"),
        ("update things set a = 1", "run source lead"),
        ("create temp table t as select * from users", "run source lead"),
        ("create temp table t as select * from documents", "refuse no_side [default] [document]"),
        ("insert into documents select * from users", "refuse no_side [user] [document]"),
        (
            "with a as (delete from users returning 1), b as (delete from documents) select 1",
            "refuse two_leads [user] [document]",
        ),
        ("update documents set a = 1; update users set a = 1", "refuse two_leads [user] [document]"),
        ("begin; update documents set a = 1; commit", "run target lead"),
        ("create table unknown_table (id int)", "run source lead"),
    ] {
        check(&split, sql, expected);
    }
    check(&policy((0, 0), (100, 0)), "insert into documents select * from users", "run source lead");
    check(&policy((0, 100), (50, 0)), "insert into documents select * from users", "run target lead");
}

#[test]
fn what_is_not_known() {
    let source = policy((50, 0), (50, 0));
    let mut split = policy((100, 100), (0, 0));
    for sql in
        ["do $$ $$", "select touch(1)", "call unknown()", "create type t as enum ()", "select nextval($1)"]
    {
        check(&source, sql, "run source all_led_there");
        check(&split, sql, "refuse unknown [default,user] [document]");
    }
    check(&source, "select lookup(1)", "run source all_led_there");
    check(&source, "select lookup(id) from documents", "run source all_led_there");
    check(&split, "select lookup(1)", "refuse unknown [default,user] [document]");
    check(&split, "select add_tax(1)", "run source home");
    check(&split, "selec 1", "run source home");
    check(&split, &format!("select {}1", "(".repeat(500)), "refuse unknown [default,user] [document]");
    split.on_unknown = OnUnknown::Source;
    check(&split, "select touch(1)", "run source on_unknown");
    check(&split, "select touch(1) from documents", "refuse no_side [] [document]");
    split.on_unknown = OnUnknown::Target;
    check(&split, "select touch(1)", "run target on_unknown");
    check(&split, "select touch(1) from documents", "run target on_unknown");
    check(&split, "select touch(1) from things", "refuse no_side [default] []");
    split.on_unknown = OnUnknown::Refuse;
    split.repositories[1].functions = vec![Pattern { schema: "public".into(), name: "touch".into() }];
    check(&split, "select touch(1)", "run target lead");
    check(&split, "call touch(1)", "run target lead");
    check(&split, "select touch(1), work(2)", "refuse unknown [default,user] [document]");
    split.repositories[1].functions = vec![Pattern { schema: "public".into(), name: "l*".into() }];
    check(&split, "select lookup(1)", "run target only_side");
}

#[test]
fn names_that_the_catalog_does_not_have() {
    let mut policy = policy((100, 100), (0, 0));
    check(&policy, "select * from document_new", "run target only_side");
    check(&policy, "select * from brand_new", "run source only_side");
    policy.repositories[2].tables.push(Pattern { schema: "other".into(), name: "document_new".into() });
    check(&policy, "select * from document_new", "refuse unknown [default,user] [document]");
    check(&policy, "select * from other.document_new", "run source only_side");
    let state = TransactionState { temporary: true, ..TransactionState::default() };
    check_state(
        &self::policy((100, 0), (0, 0)),
        &state,
        "select * from document_new",
        "run source temporary",
    );
    check_state(&self::policy((100, 0), (0, 0)), &state, DOCUMENT, "run source temporary");
}

#[test]
fn side_effects_happen_at_home() {
    let mut split = policy((100, 100), (0, 0));
    check(&split, "select pg_advisory_lock(1)", "run source home");
    check(&split, "notify x", "run source home");
    check(&split, "select pg_advisory_lock(id) from documents", "refuse no_side [] [document]");
    check_block(&split, CONTROL, "select pg_advisory_xact_lock(1)", "run source home");
    let wrote = Block { side: Some(Side::Target), work: Work::Written, ..CONTROL };
    check_block(&split, wrote, "select pg_advisory_xact_lock(1)", "refuse block_wrote [] []");
    split.on_unknown = OnUnknown::Target;
    check_block(&split, wrote, "select pg_advisory_xact_lock(1)", "run target block");
    let locking = "with l as (select pg_advisory_xact_lock(1)) update documents set a = 1";
    check(&split, locking, "run target lead");
    split.on_unknown = OnUnknown::Refuse;
    check(&split, locking, "refuse no_side [] [document]");
    let state = TransactionState { last_write: Some(Side::Target), ..TransactionState::default() };
    check_state(&split, &state, "select lastval()", "run target sequence_state");
    check(&split, "select lastval()", "run source home");
}

#[test]
fn blocks() {
    let half = policy((60, 0), (60, 0));
    let split = policy((100, 100), (0, 0));
    let at = |side, work, read| Block { side: Some(side), work, read, ..CONTROL };
    let (source, target) = (Side::Source, Side::Target);
    for (policy, block, sql, expected) in [
        (&half, Block { side: None, ..CONTROL }, DOCUMENT, "run target weighted"),
        (&half, CONTROL, DOCUMENT, "move target weighted"),
        (&half, CONTROL, "select 1", "run source block"),
        (&half, CONTROL, "savepoint a", "run source block"),
        (&half, CONTROL, "set local a = 'b'", "run source block"),
        (&half, CONTROL, UPDATE, "run source lead"),
        (&half, Block { pinned: true, ..CONTROL }, DOCUMENT, "run source block"),
        (&half, at(target, Work::Read, 2), DOCUMENT, "run target weighted"),
        (&half, at(source, Work::Read, 2), DOCUMENT, "run source block"),
        (&half, at(target, Work::Read, 2), UPDATE, "move source lead"),
        (&half, at(target, Work::Read, 2), "select * from things", "move source only_side"),
        (&half, at(target, Work::Read, 2), "select 1", "run target block"),
        (&half, at(target, Work::Read, 2), "commit", "run target block"),
        (&half, at(source, Work::Written, 0), DOCUMENT, "run source block"),
        (&half, at(target, Work::Failed, 0), UPDATE, "run target failed"),
        (
            &half,
            Block { pinned: true, ..at(target, Work::Read, 2) },
            UPDATE,
            "refuse block_read [document] []",
        ),
        (&split, at(source, Work::Written, 0), UPDATE, "refuse block_wrote [] [document]"),
        (&split, at(source, Work::Written, 0), DOCUMENT, "refuse block_wrote [] [document]"),
        (&split, at(target, Work::Written, 0), "update users set a = 1", "refuse block_wrote [user] []"),
        (&split, at(source, Work::Read, 1), UPDATE, "move target lead"),
        (&split, at(source, Work::Read, 1), DOCUMENT, "move target only_side"),
        (&split, at(target, Work::Read, 3), "select * from things", "move source only_side"),
        (&split, at(target, Work::Read, 2), "do $$ $$", "refuse unknown [default,user] [document]"),
    ] {
        check_block(policy, block, sql, expected);
    }
    // The user repository was read on its lead; on the target its rows might be older.
    let behind = policy((100, 100), (50, 0));
    check_block(&behind, at(source, Work::Read, 4), UPDATE, "refuse block_read [] [document]");
}

#[test]
fn isolation_and_leads() {
    let half = policy((60, 0), (60, 0));
    let repeatable = Block { isolation: Some(Isolation::RepeatableRead), ..CONTROL };
    check_block(&half, repeatable, DOCUMENT, "run source block_lead");
    check_block(&half, Block { read_only: Some(true), ..repeatable }, DOCUMENT, "move target weighted");
    let read = Block { side: Some(Side::Target), work: Work::Read, read: 2, ..repeatable };
    check_block(&half, read, UPDATE, "refuse block_read [document] []");
    check_block(&half, read, DOCUMENT, "run target block");
    let mut lead = policy((60, 0), (60, 0));
    lead.transactions = TransactionReads::Lead;
    check_block(&lead, CONTROL, DOCUMENT, "run source block_lead");
    check_block(&lead, Block { read_only: Some(true), ..CONTROL }, DOCUMENT, "move target weighted");
    check(&lead, DOCUMENT, "run target weighted");
    let sticky = TransactionState { sticky: true, ..TransactionState::default() };
    check_state(&half, &sticky, DOCUMENT, "run source sticky");
    check_state(&policy((50, 100), (50, 100)), &sticky, BOTH, "run target sticky");
}

#[test]
fn the_weight_is_exact() {
    let policy = policy((25, 0), (0, 0));
    let footprint = footprint(DOCUMENT, &policy, &sample::catalog());
    let target = |&ticket: &u16| {
        let decision = decide(&footprint, &policy, &TransactionState::default(), ticket);
        matches!(decision, Decision::Run(Side::Target, _))
    };
    assert_eq!((0..10_000).filter(target).count(), 2_500);
}

#[test]
fn refusals_name_the_way_out() {
    let policy = policy((100, 100), (0, 0));
    let footprint = footprint(BOTH, &policy, &sample::catalog());
    let Decision::Refuse(refusal) = decide(&footprint, &policy, &TransactionState::default(), 0) else {
        panic!("refused");
    };
    let error = crate::error::ClientError::from(&refusal);
    assert_eq!(error.sqlstate, "0A000");
    assert_eq!(
        error.detail.as_deref(),
        Some("Repositories by the database they need: source: user; target: document.")
    );
}

#[test]
fn warnings() {
    let found =
        |policy: &Policy| check_policy(policy).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(found(&policy((0, 0), (0, 0))), "");
    let stale = found(&policy((10, 0), (0, 0)));
    assert!(stale.contains("reads of document go to the target, its writes to the source"), "{stale}");
    let split = found(&policy((100, 100), (0, 0)));
    assert!(split.contains("no database may answer a query over both default and document"), "{split}");
    assert!(split.contains("no database may answer a query over both document and user"), "{split}");
    assert!(split.contains("document and user are led by different databases"), "{split}");
    assert!(split.contains("routing.on_unknown is \"refuse\""), "{split}");
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let share = prop_oneof![Just(0u16), Just(10_000), 0..=10_000u16];
    let repositories = proptest::collection::vec((share.clone(), share), 1..5);
    let unknown = prop_oneof![Just(OnUnknown::Refuse), Just(OnUnknown::Source), Just(OnUnknown::Target)];
    (repositories, unknown, any::<bool>()).prop_map(|(shares, on_unknown, lead)| {
        let mut policy = policy((0, 0), (0, 0));
        policy.repositories.truncate(1);
        // Whatever the shares of `default` say, it stays on the source.
        policy.repositories[0].reads = Share::ALL;
        for (reads, writes) in shares {
            policy.repositories.push(repository("any", &[], reads, writes));
        }
        policy.on_unknown = on_unknown;
        policy.transactions = if lead { TransactionReads::Lead } else { TransactionReads::Weighted };
        policy
    })
}

fn any_footprint() -> impl Strategy<Value = Footprint> {
    let flags = proptest::array::uniform6(any::<bool>());
    (0..32u64, 0..32u64, flags, 0..8u8).prop_map(|(reads, writes, flags, rare)| {
        let [writes_unknown, reads_unknown, side_effects, introspects, unresolved, writing] = flags;
        let writes = if writing { writes } else { 0 };
        Footprint {
            generation: 1,
            class: Class::Read,
            reads: reads & !writes,
            writes,
            writes_unknown: writes_unknown && rare == 0,
            reads_unknown: reads_unknown && rare == 1,
            side_effects: side_effects && rare == 2,
            introspects,
            unresolved,
            ..Footprint::default()
        }
    })
}

fn any_state() -> impl Strategy<Value = TransactionState> {
    let side = || prop_oneof![Just(None), Just(Some(Side::Source)), Just(Some(Side::Target))];
    let work = prop_oneof![Just(Work::Prologue), Just(Work::Read), Just(Work::Written), Just(Work::Failed)];
    let isolation = prop_oneof![
        Just(None),
        Just(Some(Isolation::ReadCommitted)),
        Just(Some(Isolation::RepeatableRead)),
        Just(Some(Isolation::Serializable))
    ];
    let read_only = prop_oneof![Just(None), Just(Some(true)), Just(Some(false))];
    let block = (side(), work, 0..32u64, isolation, read_only, any::<bool>()).prop_map(
        |(side, work, read, isolation, read_only, pinned)| Block {
            side,
            work,
            read,
            isolation,
            read_only,
            pinned,
        },
    );
    (proptest::option::of(block), any::<bool>(), any::<bool>(), side(), 0..32u64).prop_map(
        |(block, sticky, temporary, last_write, stale)| TransactionState {
            block,
            sticky,
            temporary,
            last_write,
            holds: false,
            stale,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever the policy, the text and the session: a write runs on the lead, a read where it is
    /// allowed or led, `default` on the source, and a block moves only when nothing can be lost by it.
    #[test]
    fn never_on_the_wrong_side(
        policy in any_policy(),
        footprint in any_footprint(),
        state in any_state(),
        ticket in 0..10_000u16,
    ) {
        let decision = decide(&footprint, &policy, &state, ticket);
        let block = state.block.unwrap_or_default();
        let (side, moved) = match decision {
            Decision::Run(side, _) => (side, false),
            Decision::Move(side, _) => (side, true),
            Decision::Refuse(refusal) => {
                prop_assert!(!refusal.to_string().is_empty());
                return Ok(());
            }
        };
        if block.work == Work::Failed || footprint.is_free() {
            prop_assert!(!moved);
            return Ok(());
        }
        for (index, repository) in policy.repositories.iter().enumerate() {
            let lead = if index == 0 { Side::Source } else { repository.writes.draw(ticket) };
            let current = state.stale >> index & 1 == 0;
            let reads = index != 0 && current && repository.reads.allows(side);
            prop_assert!(footprint.writes >> index & 1 == 0 || lead == side, "wrote where it is not led");
            prop_assert!(footprint.reads >> index & 1 == 0 || lead == side || reads, "read where it may not");
        }
        let led_by_target = policy.repositories.iter().skip(1).any(|r| r.writes.allows(Side::Target));
        if footprint.writes_unknown && policy.on_unknown == OnUnknown::Refuse {
            prop_assert!(!led_by_target && side == Side::Source);
        }
        match block.side {
            Some(here) if moved => {
                prop_assert!(here != side && block.work < Work::Written);
                let snapshot = !matches!(block.isolation, None | Some(Isolation::ReadCommitted));
                let refused = block.read_only == Some(true) && footprint.is_write();
                prop_assert!(refused || block.work == Work::Prologue || !snapshot, "left a snapshot");

                prop_assert!(refused || !block.pinned || block.work == Work::Prologue);
            }
            Some(here) => prop_assert_eq!(here, side),
            None => prop_assert!(!moved),
        }
    }
}
