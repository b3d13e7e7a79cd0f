//! One line a case: `SQL => what it is`, in `cases/*.txt` beside this file.

use super::*;

/// A plan in one line, as the case files have it.
fn summary(plan: &Plan) -> String {
    plan.statements.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all others print as they are")]
fn one(s: &Statement) -> String {
    let mut line = match &s.kind {
        Kind::Prepare { name, inner } => format!("Prepare({name}: {})", one(inner)),
        Kind::Transaction(control) => format!("{control:?}"),
        kind => format!("{kind:?}"),
    }
    .replace('"', "'");
    let names = |tables: &BTreeSet<Table>| {
        let name = |t: &Table| {
            if t.schema == "public" { t.name.clone() } else { format!("{}.{}", t.schema, t.name) }
        };
        tables.iter().map(name).collect::<Vec<_>>().join(",")
    };
    for (label, tables) in [("r:", &s.reads), ("w:", &s.writes), ("f:", &s.functions)] {
        if !tables.is_empty() {
            line = format!("{line} {label}{}", names(tables));
        }
    }
    if s.introspects {
        line.push_str(" introspects");
    }
    for (hazard, name) in [
        (Hazards::CLOCK, "clock"),
        (Hazards::RANDOM, "random"),
        (Hazards::SEQUENCE, "sequence"),
        (Hazards::SESSION, "session"),
        (Hazards::VOLATILE, "volatile"),
        (Hazards::SIDE_EFFECT, "side-effect"),
        (Hazards::INDETERMINATE, "indeterminate"),
        (Hazards::PHYSICAL, "physical"),
    ] {
        if s.hazards.contains(hazard) {
            line = format!("{line} {name}");
        }
    }
    for effect in &s.effects {
        line = format!("{line} {}", format!("{effect:?}").replace('"', "'"));
    }
    if s.total_order { line } else { format!("{line} unordered") }
}

fn plan(sql: &str, search_path: Option<&[String]>, standard_conforming_strings: bool) -> Plan {
    let catalog = sample::catalog();
    let context = Context { catalog: &catalog, search_path, standard_conforming_strings, max_bytes: 4 << 20 };
    analyze(sql.as_bytes(), &context)
}

fn path() -> Vec<String> {
    vec!["missing".into(), "public".into()]
}

/// Compares every case of a file; with `CROSSFADE_WRITE_CASES` set the file is written anew instead.
#[track_caller]
fn check_file(file: &str, cases: &str, plan: impl Fn(&str) -> Plan) {
    let mut written = String::new();
    let mut wrong = Vec::new();
    for line in cases.lines() {
        let (sql, expected) = line.rsplit_once(" => ").unwrap_or((line, ""));
        if sql.is_empty() || sql.starts_with("# ") {
            written = format!("{written}{line}\n");
            continue;
        }
        let found = summary(&plan(&sql.replace("\\n", "\n").replace("\\t", "\t")));
        if found != expected {
            wrong.push(format!("{sql}\n   expected {expected}\n   found    {found}"));
        }
        written = format!("{written}{sql} => {found}\n");
    }
    if std::env::var_os("CROSSFADE_WRITE_CASES").is_some() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/statement/cases").join(file);
        std::fs::write(path, written).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{} cases of {file}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn queries() {
    check_file("queries.txt", include_str!("cases/queries.txt"), |sql| plan(sql, Some(&path()), true));
}

#[test]
fn utilities() {
    check_file("utilities.txt", include_str!("cases/utilities.txt"), |sql| plan(sql, Some(&path()), true));
}

#[test]
fn names_without_a_search_path() {
    check_file("no_path.txt", include_str!("cases/no_path.txt"), |sql| plan(sql, None, true));
}

#[test]
fn names_behind_a_change_of_the_search_path() {
    for (first, known) in [
        ("select 1", true),
        ("set work_mem = '1MB'", true),
        ("begin", true),
        ("savepoint s", true),
        ("release s", true),
        ("set search_path = other", false),
        ("set local search_path to other, public", false),
        ("begin; set local \"search_path\" = other", false),
        ("reset search_path", false),
        ("select set_config('Search_Path', 'other', false)", false),
        ("select 1, set_config('search_path', 'other', true)", false),
        ("set role someone", false),
        ("reset role", false),
        ("set session authorization someone", false),
        ("set local session authorization default", false),
        ("reset all", false),
        ("discard all", false),
        ("commit", false),
        ("rollback", false),
        ("rollback to s", false),
    ] {
        let plan = plan(
            &format!(
                "insert into things values (0); {first}; insert into things values (1); insert into users values (2)"
            ),
            Some(&path()),
            true,
        );
        let schemas = plan.statements.iter().flat_map(|s| &s.writes).map(|t| &*t.schema);
        let behind = if known { "public" } else { "" };
        assert_eq!(schemas.collect::<Vec<_>>(), ["public", behind, "public"], "{first}");
    }
}

#[test]
fn backslashes_escape_when_strings_do_not_conform() {
    check_file("escapes.txt", include_str!("cases/escapes.txt"), |sql| plan(sql, Some(&path()), false));
}

#[test]
fn plans_that_depend_on_a_literal() {
    for (sql, expected) in [
        ("select * from documents where id = 1", false),
        ("select * from documents limit 10", false),
        ("select * from documents order by 1", true),
        ("select set_config('a.b', 'c', true)", true),
        ("select nextval('documents_id_seq')", true),
        ("select '2024-01-01'::date", true),
        ("set local a.b = 'c'", true),
        ("set a.b = 'c'", false),
        ("explain (analyze 'on') select 1", true),
        ("explain analyze select 1", false),
        ("prepare p as select set_config('a', 'b', true)", true),
    ] {
        assert_eq!(plan(sql, Some(&path()), true).literal_dependent, expected, "{sql}");
    }
}

#[test]
fn spans_leave_out_the_semicolon() {
    let check = |sql: &str, expected: &[&str]| {
        let plan = plan(sql, None, true);
        let found: Vec<&str> = plan.statements.iter().map(|s| &sql[s.span.clone()]).collect();
        assert_eq!(found, expected, "{sql}");
    };
    check("select 1", &["select 1"]);
    check(" select 1 ; ; select 'é;' ;\n", &["select 1", "select 'é;'"]);
    check("select 1; select 2 -- end", &["select 1", "select 2 -- end"]);
    check("/* a */ select 1 /* b */; /* c */", &["select 1 /* b */"]);
    check("-- nothing", &[]);
    check("", &[]);
    check(";;;", &[]);
    let body = "create function f() returns int begin atomic select 1; select 2; end";
    check(&format!("{body}; select 3"), &[body, "select 3"]);
    check(
        "create rule r as on insert to a do (select 1; select 2); select 3",
        &["create rule r as on insert to a do (select 1; select 2)", "select 3"],
    );
}

#[test]
fn what_is_not_understood_says_why() {
    let why = |sql: &[u8], max_bytes| {
        let catalog = sample::catalog();
        let context =
            Context { catalog: &catalog, search_path: None, standard_conforming_strings: true, max_bytes };
        let plan = analyze(sql, &context);
        match plan.statements.as_slice() {
            [Statement { kind: Kind::Unknown(why), span, .. }] if *span == (0..sql.len()) => Some(*why),
            _ => None,
        }
    };
    assert_eq!(why(b"selec 1", 100), Some(Unknown::Syntax));
    assert_eq!(why(b"select 1", 7), Some(Unknown::TooLong));
    assert_eq!(why(b"select '\xff'", 100), Some(Unknown::Encoding));
    assert_eq!(why(b"select 1\0", 100), Some(Unknown::Encoding));
    assert_eq!(why("(".repeat(5_000).as_bytes(), 100_000), Some(Unknown::TooDeep));
    assert_eq!(why("select 'é'".as_bytes(), 100), None);
}

/// Run on the 2 MiB stack of a test thread. Whatever the answer, it comes and nothing overflows.
#[test]
fn deep_and_long_text_ends() {
    let nested = |open: &str, close: &str, n: usize| format!("select {}1{}", open.repeat(n), close.repeat(n));
    for (sql, understood) in [
        (format!("select 1{}", " + 1".repeat(4_900)), true),
        (format!("select 1{}", " + 1".repeat(200_000)), false),
        (format!("select {}1", "- ".repeat(3_000)), true),
        (format!("select {} true", "not ".repeat(3_000)), true),
        (format!("select 1{}", " and true".repeat(50_000)), true),
        (format!("select 1{}", " union all select 1".repeat(4_000)), true),
        (format!("select 1 from a{}", " cross join a".repeat(1_000)), true),
        (nested("(", ")", 390), true),
        (nested("(select ", ")", 200), true),
        (nested("f(", ")", 390), true),
        (nested("array[", "]", 390), true),
        (nested("case when true then ", " end", 1_000), true),
        (format!("select x{}", "::int".repeat(4_900)), true),
        (format!("select * from {}", "a,".repeat(50_000) + "a"), true),
        (format!("insert into a values {}", "(1, 'b', now()),".repeat(5_000) + "(1, 'b', now())"), true),
        (format!("select {}1{}", "/*".repeat(10_000), "*/".repeat(10_000)), false),
    ] {
        let plan = plan(&sql, None, true);
        let unknown = matches!(plan.statements.as_slice(), [Statement { kind: Kind::Unknown(_), .. }]);
        assert_eq!(
            !unknown,
            understood,
            "{} ...: {:?}",
            &sql[..40],
            plan.statements.first().map(|s| &s.kind)
        );
    }
}

/// What is read on the caller's stack must fit into a small one, unoptimised.
#[test]
fn shallow_text_needs_little_stack() {
    let texts: Vec<String> = [
        ("select ", "(select ", "1", ")"),
        ("select * from ", "(select * from ", "a", ") x"),
        ("select ", "case when true then ", "1", " end"),
        ("select ", "f(", "1", ")"),
        ("select 1", " + 1", "", ""),
        ("select 1", " + .5", "", ""),
        ("select ", "- ", "1", ""),
        ("select ", "not ", "true", ""),
        ("select 1", " is null", "", ""),
        ("select 1", " union select 1", "", ""),
        ("select * from a", " join a on b", "", ""),
        ("select ", "array[", "1", "]"),
        ("select ", "json_array(select ", "1", ")"),
        ("select ", "xmlelement(name a, ", "1", ")"),
        ("with a as (", "with a as (", "select 1", ") select 1"),
        ("select * from ", "(a join ", "a", " on true)"),
        ("explain select ", "exists (select 1 where ", "true", ")"),
    ]
    .iter()
    .map(|(head, open, middle, close)| {
        let text = |n: usize| format!("{head}{}{middle}{}", open.repeat(n), close.repeat(n));
        let shallow = |n: &usize| guard::depth(text(*n).as_bytes(), true).unwrap() <= SHALLOW;
        text((1..=SHALLOW).take_while(shallow).last().unwrap())
    })
    .collect();
    let read = move || texts.iter().for_each(|sql| assert!(!plan(sql, None, true).statements.is_empty()));
    std::thread::Builder::new().stack_size(2 << 20).spawn(read).unwrap().join().unwrap();
}

/// Every seed of the fuzzer, whole and cut short at each byte.
#[test]
fn the_corpus_of_the_fuzzer_replays() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/statement");
    let mut seeds = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        fuzz_statement(&bytes);
        for end in (0..bytes.len()).step_by(7) {
            fuzz_statement(&bytes[..end]);
        }
        seeds += 1;
    }
    assert!(seeds >= 10, "{seeds} seeds");
}
