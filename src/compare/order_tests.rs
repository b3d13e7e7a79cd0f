use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::compare::{
    record::Recorder,
    rules::{Json, Numeric},
};

/// A result as a test writes it: `id:int4 name:text` and rows of texts.
#[derive(Clone, Debug)]
struct Answer {
    columns: Vec<(String, u32)>,
    rows: Vec<Vec<Option<String>>>,
    tag: String,
    sqlstate: Option<&'static str>,
}

fn answer(columns: &str, rows: &[&str]) -> Answer {
    let oid = |name: &str| match name {
        "int4" => 23,
        "numeric" => 1700,
        "float8" => 701,
        "timestamptz" => 1184,
        "json" => 114,
        "jsonb" => 3802,
        "text[]" => 1009,
        "numeric[]" => 1231,
        "record" => 2249,
        _ => 25,
    };
    let column = |column: &str| {
        let (name, of) = column.split_once(':').unwrap();
        (name.to_owned(), oid(of))
    };
    let row = |row: &&str| row.split('|').map(|v| (v != "NULL").then(|| v.to_owned())).collect();
    Answer {
        columns: columns.split(' ').map(column).collect(),
        rows: rows.iter().map(row).collect(),
        tag: format!("SELECT {}", rows.len()),
        sqlstate: None,
    }
}

fn row_body(row: &[Option<String>]) -> Vec<u8> {
    let mut body = i16::try_from(row.len()).unwrap().to_be_bytes().to_vec();
    for value in row {
        let length = value.as_ref().map_or(-1, |v| i32::try_from(v.len()).unwrap());
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
    }
    body
}

fn profile(answer: &Answer, rules: &Rules, key: &[String], focus: Option<Focus>, most: usize) -> Profile {
    let mut recorder = Recorder::new(rules, key, focus, most, 5);
    let mut body = i16::try_from(answer.columns.len()).unwrap().to_be_bytes().to_vec();
    for (name, oid) in &answer.columns {
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&oid.to_be_bytes());
        body.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0]);
    }
    recorder.take(b'T', &body);
    for row in &answer.rows {
        recorder.take(b'D', &row_body(row));
    }
    match answer.sqlstate {
        Some(code) => recorder.take(b'E', format!("SERROR\0C{code}\0\0").as_bytes()),
        None => recorder.take(b'C', format!("{}\0", answer.tag).as_bytes()),
    }
    let profile = recorder.finish();
    assert!(profile.kept_bytes() <= most, "{} of {most}", profile.kept_bytes());
    profile
}

/// As the engine does it: again with a focus as long as one is asked for.
fn found(a: &Answer, s: &Answer, total: bool, rules: &Rules, key: &[&str], most: usize) -> Found {
    let key: Vec<String> = key.iter().map(ToString::to_string).collect();
    let mut focus = None;
    for _ in 0..3 {
        let of = |answer| profile(answer, rules, &key, focus.clone(), most);
        match compare(&of(a), &of(s), total, rules) {
            Found::Look(next) => focus = Some(next),
            found
            @ (Found::Same | Found::OrderOnly | Found::Ignored | Found::Differ(_) | Found::Unfit(_)) => {
                return found;
            }
        }
    }
    panic!("it never has enough");
}

/// In a few words: class, column, key and both values of each difference.
fn words(found: &Found) -> String {
    match found {
        Found::Differ(differences) => {
            let one = |d: &Difference| {
                let parts = [&d.column, &d.key, &d.answering, &d.shadow];
                let texts: Vec<&str> = parts.iter().map(|p| p.as_deref().unwrap_or("-")).collect();
                format!("{} {}", d.class.name(), texts.join(" "))
            };
            differences.iter().map(one).collect::<Vec<_>>().join("; ")
        }
        Found::Same | Found::OrderOnly | Found::Ignored | Found::Look(_) | Found::Unfit(_) => {
            format!("{found:?}")
        }
    }
}

const BIG: usize = 1 << 20;

const PEOPLE: &str = "id:int4 name:text";

/// Columns, key, total order, answering rows, shadow rows, by the strict rules, by the lenient ones.
type Case<'a> = (&'a str, &'a [&'a str], bool, &'a [&'a str], &'a [&'a str], &'a str, &'a str);
const CASES: &[Case<'_>] = &[
    (PEOPLE, &["id"], true, &["1|a", "2|b"], &["1|a", "2|b"], "Same", "Same"),
    (PEOPLE, &["id"], true, &["1|a", "2|b"], &["1|a", "2|c"], "cell name id=2 b c", "cell name id=2 b c"),
    (
        PEOPLE,
        &["id"],
        true,
        &["1|a", "2|b"],
        &["1|a", "2|NULL"],
        "cell name id=2 b NULL",
        "cell name id=2 b NULL",
    ),
    (PEOPLE, &[], false, &["1|a", "2|b"], &["1|a", "2|c"], "cell name - b c", "cell name - b c"),
    (PEOPLE, &[], false, &["1|a", "2|b"], &["2|c", "1|a"], "cell name - b c", "cell name - b c"),
    (
        PEOPLE,
        &["id"],
        true,
        &["1|a", "2|b", "3|c"],
        &["1|a", "3|c"],
        "missing_row - id=2 2, b -",
        "missing_row - id=2 2, b -",
    ),
    (
        PEOPLE,
        &[],
        true,
        &["1|a", "2|b", "3|c"],
        &["1|a", "3|c"],
        "missing_row - - 2, b -",
        "missing_row - - 2, b -",
    ),
    (PEOPLE, &["id"], true, &["1|a"], &["1|a", "2|b"], "extra_row - id=2 - 2, b", "extra_row - id=2 - 2, b"),
    (PEOPLE, &[], false, &["1|a"], &["1|a", "1|a"], "extra_row - - - 1, a", "extra_row - - - 1, a"),
    (
        PEOPLE,
        &["id"],
        true,
        &["1|a", "2|b"],
        &["1|a", "3|b"],
        "missing_row - id=2 2, b -; extra_row - id=3 - 3, b",
        "missing_row - id=2 2, b -; extra_row - id=3 - 3, b",
    ),
    (PEOPLE, &["id"], true, &["1|a", "2|b"], &["2|b", "1|a"], "order - -  ", "order - -  "),
    (PEOPLE, &["id"], false, &["1|a", "2|b"], &["2|b", "1|a"], "OrderOnly", "OrderOnly"),
    (PEOPLE, &["id"], true, &[], &[], "Same", "Same"),
    (PEOPLE, &["id"], true, &[], &["1|a"], "extra_row - id=1 - 1, a", "extra_row - id=1 - 1, a"),
    ("n:int4", &[], true, &["1", "2", "3"], &["1", "3"], "missing_row - - 2 -", "missing_row - - 2 -"),
    ("n:int4", &[], true, &["41"], &["42"], "cell n - 41 42", "cell n - 41 42"),
    ("x:numeric", &[], true, &["1.0"], &["1.00"], "cell x - 1.0 1.00", "Ignored"),
    ("x:numeric", &[], true, &["1.0"], &["1.01"], "cell x - 1.0 1.01", "cell x - 1.0 1.01"),
    (
        "id:int4 x:numeric",
        &["id"],
        true,
        &["1|1.0", "2|5"],
        &["1|1.00", "2|6"],
        "cell x id=1 1.0 1.00; cell x id=2 5 6",
        "cell x id=2 5 6",
    ),
    ("x:float8", &[], true, &["0.1"], &["0.10000000000000001"], "Ignored", "Ignored"),
    ("x:float8", &[], true, &["0.1"], &["0.10000001"], "cell x - 0.1 0.10000001", "Ignored"),
    ("x:float8", &[], true, &["0.1"], &["0.2"], "cell x - 0.1 0.2", "cell x - 0.1 0.2"),
    (
        "id:int4 x:float8",
        &["id"],
        true,
        &["1|1", "2|1"],
        &["2|1.00000001", "1|1.00000001"],
        "cell x id=1 1 1.00000001; cell x id=2 1 1.00000001",
        "order - -  ",
    ),
    (
        "id:int4 x:float8",
        &[],
        false,
        &["1|1", "2|1"],
        &["2|1.00000001", "1|1"],
        "cell x - 1 1.00000001",
        "OrderOnly",
    ),
    (
        "at:timestamptz",
        &[],
        true,
        &["2024-01-01 00:00:00+00"],
        &["2024-01-01 01:00:00+01"],
        "Ignored",
        "Ignored",
    ),
    (
        "at:timestamptz",
        &[],
        true,
        &["2024-01-01 00:00:00+00"],
        &["2024-01-01 00:00:00.0005+00"],
        "cell at - 2024-01-01 00:00:00+00 2024-01-01 00:00:00.0005+00",
        "Ignored",
    ),
    ("j:json", &[], true, &[r#"{"a":1}"#], &[r#"{"a": 1.0}"#], r#"cell j - {"a":1} {"a": 1.0}"#, "Ignored"),
    (
        "j:jsonb",
        &[],
        true,
        &[r#"{"a": 1}"#],
        &[r#"{"a": 2}"#],
        r#"cell j - {"a": 1} {"a": 2}"#,
        r#"cell j - {"a": 1} {"a": 2}"#,
    ),
    ("a:text[]", &[], true, &["{a,b}"], &["{b,a}"], "cell a - {a,b} {b,a}", "cell a - {a,b} {b,a}"),
    ("a:numeric[]", &[], true, &["{1.0}"], &["{1.00}"], "cell a - {1.0} {1.00}", "Ignored"),
    ("r:record", &[], true, &["(1,a)"], &["(1,b)"], "cell r - (1,a) (1,b)", "cell r - (1,a) (1,b)"),
    ("id:int4 seen_at:text", &["id"], true, &["1|x"], &["1|y"], "cell seen_at id=1 x y", "Ignored"),
    (
        "id:int4 seen_at:text",
        &["id"],
        true,
        &["1|x"],
        &["1|y", "2|z"],
        "cell seen_at id=1 x y; extra_row - id=2 - 2, z",
        "extra_row - id=2 - 2, z",
    ),
    ("id:int4 id:int4", &["id"], true, &["1|1"], &["1|2"], "cell id - 1 2", "cell id - 1 2"),
];

#[test]
fn every_kind_of_difference() {
    let lenient = Rules {
        ignore: vec!["seen_*".into()],
        float_tolerance: 1e-6,
        timestamp_tolerance_us: 1_000,
        numeric: Numeric::Value,
        json: Json::Semantic,
    };
    for (columns, key, total, a, s, strict, loose) in CASES {
        let (a, s) = (answer(columns, a), answer(columns, s));
        assert_eq!(words(&found(&a, &s, *total, &Rules::default(), key, BIG)), *strict, "strict {a:?} {s:?}");
        assert_eq!(words(&found(&a, &s, *total, &lenient, key, BIG)), *loose, "lenient {a:?} {s:?}");
    }
}

#[test]
fn columns_types_tags_and_errors() {
    let rules = Rules::default();
    let check = |a: &Answer, s: &Answer, expected: &str| {
        assert_eq!(words(&found(a, s, true, &rules, &[], BIG)), expected);
    };
    let a = answer("id:int4 name:text", &["1|a"]);
    check(&a, &answer("id:int4 nam:text", &["1|a"]), "columns - - id, name id, nam");
    check(&a, &answer("id:int4", &["1"]), "columns - - id, name id");
    check(&a, &answer("id:numeric name:text", &["1|a"]), "type id - type 23 in Text type 1700 in Text");
    check(&a, &Answer { tag: "FETCH 1".into(), ..a.clone() }, "tag - - SELECT 1 FETCH 1");
    let failed = |code| Answer { sqlstate: Some(code), ..a.clone() };
    check(&a, &failed("42501"), "error - - none 42501");
    check(&failed("22012"), &a, "error - - 22012 none");
    check(&failed("22012"), &failed("22003"), "error - - 22012 22003");
    check(&failed("22012"), &Answer { rows: Vec::new(), ..failed("22012") }, "Same");
}

/// Differences in large results are found with a few megabytes.
#[test]
fn large_results() {
    let rules = Rules::default();
    let rows: Vec<String> = (0..60_000).map(|i| format!("{i}|name of {i}")).collect();
    let texts: Vec<&str> = rows.iter().map(String::as_str).collect();
    let a = answer("id:int4 name:text", &texts);
    let mut cell = a.clone();
    cell.rows[50_000][1] = Some("another".into());
    let mut missing = a.clone();
    missing.rows.remove(7);
    let mut swapped = a.clone();
    swapped.rows.swap(10, 59_999);
    for key in [&["id"][..], &[]] {
        let id = |id: &str| if key.is_empty() { "-".to_owned() } else { format!("id={id}") };
        // Without a key the two versions of a row are in two buckets, of which both are looked at.
        let expected = format!("cell name {} name of 50000 another", id("50000"));
        assert_eq!(words(&found(&a, &cell, true, &rules, key, BIG)), expected);
        let expected = format!("missing_row - {} 7, name of 7 -", id("7"));
        assert_eq!(words(&found(&a, &missing, true, &rules, key, BIG)), expected);
        assert_eq!(words(&found(&a, &swapped, true, &rules, key, BIG)), "order - -  ");
        assert_eq!(words(&found(&a, &swapped, false, &rules, key, BIG)), "OrderOnly");
        assert_eq!(words(&found(&a, &a, true, &rules, key, BIG)), "Same");
    }
    let other = answer("id:int4 name:text", &vec!["1|a"; 60_000]);
    match found(&a, &other, true, &rules, &["id"], BIG) {
        Found::Differ(differences) => assert_eq!(differences.len(), MOST_DIFFERENCES),
        found @ (Found::Same | Found::OrderOnly | Found::Ignored | Found::Look(_) | Found::Unfit(_)) => {
            panic!("{found:?}")
        }
    }
    // Of a bag whose rows are all the same, one is kept.
    let fewer = answer("id:int4 name:text", &vec!["1|a"; 59_999]);
    assert_eq!(words(&found(&other, &fewer, false, &rules, &[], BIG)), "missing_row - - 1, a -");
}

#[test]
fn what_cannot_be_kept_is_counted() {
    let rules = Rules::default();
    let rows: Vec<String> = (0..300).map(|i| format!("1|{i}")).collect();
    let a = answer("id:int4 name:text", &rows.iter().map(String::as_str).collect::<Vec<_>>());
    let mut s = a.clone();
    s.rows.pop();
    assert_eq!(words(&found(&a, &s, false, &rules, &["id"], 1_000)), "count - - 300 299");
    s.rows.push(vec![Some("1".into()), Some("x".into())]);
    assert_eq!(words(&found(&a, &s, false, &rules, &["id"], 1_000)), "Unfit(Large)");
}

#[test]
fn marks_tell_the_same_difference_from_another() {
    let of = |a: &[&str], s: &[&str]| {
        let (a, s) = (answer("id:int4 n:int4", a), answer("id:int4 n:int4", s));
        match found(&a, &s, false, &Rules::default(), &["id"], BIG) {
            Found::Differ(differences) => differences.iter().map(|d| d.mark).collect::<BTreeSet<u64>>(),
            found @ (Found::Same | Found::OrderOnly | Found::Ignored | Found::Look(_) | Found::Unfit(_)) => {
                panic!("{found:?}")
            }
        }
    };
    assert_eq!(of(&["1|1", "2|2"], &["1|1", "2|3"]), of(&["2|2", "3|3"], &["3|3", "2|3"]));
    assert_ne!(of(&["2|2"], &["2|3"]), of(&["2|2"], &["2|4"]));
    assert_ne!(of(&["2|2"], &["2|3"]), of(&["3|2"], &["3|3"]));
    assert_ne!(of(&["1|1"], &[]), of(&["1|2"], &[]));
    assert_ne!(of(&["1|1"], &[]), of(&[], &["1|1"]));
}

fn shuffled<T: Clone>(rows: &[T], mut seed: u64) -> Vec<T> {
    let mut rows = rows.to_vec();
    for i in (1..rows.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        rows.swap(i, usize::try_from(seed >> 33).unwrap() % (i + 1));
    }
    rows
}

proptest! {
    #[test]
    fn permuting_rows_never_changes_a_bags_verdict(
        a in proptest::collection::vec(("[0-9]", "[a-c]{0,2}", "[0-9]\\.[0-9]{1,2}"), 0..40),
        b in proptest::collection::vec(("[0-9]", "[a-c]{0,2}", "[0-9]\\.[0-9]{1,2}"), 0..40),
        equal in any::<bool>(),
        lenient in any::<bool>(),
        small in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let rules = if lenient { Rules { numeric: Numeric::Value, ..Rules::default() } } else { Rules::default() };
        let of = |rows: &[(String, String, String)]| {
            let rows: Vec<String> = rows.iter().map(|(a, b, c)| format!("{a}|{b}|{c}")).collect();
            answer("id:int4 name:text x:numeric", &rows.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let b = if equal { a.clone() } else { b };
        let most = if small { 400 } else { BIG };
        let kind = |found: &Found| match found {
            Found::Differ(_) | Found::Unfit(_) => "differ",
            Found::Ignored => "ignored",
            Found::Same | Found::OrderOnly => "same",
            Found::Look(_) => "look",
        };
        let first = found(&of(&a), &of(&b), false, &rules, &[], most);
        let again = found(&of(&shuffled(&a, seed)), &of(&shuffled(&b, !seed)), false, &rules, &[], most);
        // Which rule was needed is not told when the order is another as well.
        prop_assert_eq!(kind(&first) == "differ", kind(&again) == "differ");
        prop_assert_eq!(equal && kind(&again) == "differ", false);
    }

    #[test]
    fn one_changed_cell_is_found(
        rows in proptest::collection::vec(("[a-c]{0,3}", "[0-9]{1,3}"), 1..60),
        keyed in any::<bool>(),
        total in any::<bool>(),
        small in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let rows: Vec<String> = rows.iter().enumerate().map(|(i, (a, b))| format!("{i}|{a}|{b}")).collect();
        let a = answer("id:int4 name:text n:int4", &rows.iter().map(String::as_str).collect::<Vec<_>>());
        let mut s = a.clone();
        let (row, column) = (usize::try_from(seed % 1_000).unwrap() % rows.len(), 1 + usize::try_from(seed >> 60).unwrap() % 2);
        s.rows[row][column] = Some("changed".into());
        if !total {
            s.rows = shuffled(&s.rows, seed);
        }
        let key: &[&str] = if keyed { &["id"] } else { &[] };
        let found = found(&a, &s, total, &Rules::default(), key, if small { 600 } else { BIG });
        let Found::Differ(differences) = &found else { panic!("{found:?}") };
        prop_assert_eq!(differences.len(), 1, "{}", words(&found));
        prop_assert_eq!(differences[0].class, Class::Cell);
        prop_assert_eq!(differences[0].shadow.as_deref(), Some("changed"));
    }
}
