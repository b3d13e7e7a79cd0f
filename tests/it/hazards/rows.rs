//! Rows travel exactly: every type, values that text formats lose, columns that differ between the sides.

use std::time::Duration;

use crate::{
    mirror::{MODES, check_equal, start},
    support::{cluster::newest, frames, holds_within, needs_proxy, wait_for},
};

/// A column of a type and its values.
const VALUES: [(&str, &[&str]); 50] = [
    ("smallint", &["-32768", "32767"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    ("real", &["'NaN'", "'-Infinity'", "1e-45", "3.4028235e38", "0.1", "'-0'"]),
    ("float8", &["'NaN'", "'Infinity'", "'-0'", "5e-324", "0.1::float8 + 0.2", "1.7976931348623157e308"]),
    ("numeric", &["'NaN'", "'Infinity'", "'-Infinity'", "1.50", "1e-100", "10 ^ 100"]),
    ("numeric(10,3)", &["1.5"]),
    ("money", &["'-92233720368547758.08'", "12.34"]),
    ("bool", &["true", "false"]),
    ("text", &["''", "'NULL'", "E'a\\tb\\nc\\\\d\"e''f,(){}'", "'ä€😀'", "repeat(E'\\\\\"', 1000)"]),
    ("varchar(5)", &["'ab   '"]),
    ("char(5)", &["'ab'", "''"]),
    ("\"char\"", &["'a'", "''"]),
    ("name", &["'n'"]),
    ("bytea", &["'\\x'", "'\\x00ff5c27'", "decode(repeat('00ff', 5000), 'hex')"]),
    ("date", &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'2024-02-29'"]),
    ("time", &["'24:00'", "'00:00:00.000001'"]),
    ("timetz", &["'23:59:59.999999-15:59'"]),
    ("timestamp", &["'infinity'", "'0044-03-15 12:00 BC'", "'2024-02-29 23:59:59.999999'"]),
    ("timestamptz", &["'-infinity'", "'2024-03-31 02:30:00.123456+02'", "'294276-12-31'"]),
    ("interval", &["'-1 mon +2 days -00:00:00.000001'", "'178000000 years'", "'1 year -1 day'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("json", &["'null'", "'{\"a\":1, \"a\": 2,  \"b\":null}'", "'\"\\u0041\"'"]),
    ("jsonb", &["'null'", "'{\"a\":[1e2,1.50,\"\\\"\"]}'"]),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("xml", &["'<a b=\"c\">&lt;</a>'", "'<?xml version=\"1.0\"?><a/>'", "'text only'", "''"]),
    ("bit(5)", &["B'10101'"]),
    ("varbit", &["B''", "B'1'"]),
    ("inet", &["'10.1.2.3/8'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("point", &["'(NaN,Infinity)'", "'(0.1,-0)'"]),
    ("line", &["'{1,-1,0.1}'"]),
    ("box", &["'(1,1),(0.1,0)'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("circle", &["'<(0,0),0.1>'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'"]),
    ("tstzrange", &["'[2024-01-01 00:00+00,infinity)'"]),
    ("int4multirange", &["'{}'", "'{[1,2),[5,8)}'"]),
    ("tsvector", &["'a:1A fat''s:2,3B'::tsvector"]),
    ("tsquery", &["'fat & !rat:*A'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("int[]", &["'{}'", "'{1,NULL,3}'", "'[0:1]={1,2}'", "'{{1,2},{3,NULL}}'"]),
    ("text[]", &["ARRAY['', 'NULL', NULL, 'a\"b\\c,{}']"]),
    ("public.mood", &["'happy'"]),
    ("public.pair", &["ROW(1, 'a\"b,c')", "ROW(NULL, '')", "ROW(NULL, NULL)"]),
    ("public.pair[]", &["ARRAY[ROW(1, '(,)')::public.pair, NULL]"]),
    ("public.positive", &["7"]),
    ("public.span", &["'[1.5,2.5)'"]),
];

const TYPES: &str = "CREATE TYPE public.pair AS (a int, b text);
  CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
  CREATE TYPE public.span AS RANGE (subtype = numeric);";

/// Every value into a row of its own, in the mode of each repository; the two sides order their columns differently.
#[test]
fn every_type() {
    needs_proxy!();
    for mode in MODES {
        let columns: Vec<_> =
            VALUES.iter().enumerate().map(|(i, (kind, _))| format!("c{i} {kind}")).collect();
        let schema = format!(
            "{TYPES} CREATE TABLE t (id serial PRIMARY KEY, {}); GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC; \
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC",
            columns.join(", ")
        );
        let proxy = start(&format!("h_types_{mode}"), &schema, |s| s.mirror = format!("mirror = {mode:?}"));
        let mut client = proxy.client("alice");
        for settings in [
            "SELECT 1",
            "SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'; SET TimeZone = 'Asia/Tokyo'; \
             SET extra_float_digits = 0; SET bytea_output = 'escape'; SET xmloption = 'content'",
        ] {
            client.run(settings);
            client.run("BEGIN");
            for (i, (kind, values)) in VALUES.iter().enumerate() {
                for value in *values {
                    client.run(&format!("INSERT INTO t (c{i}) VALUES (({value})::{kind})"));
                }
            }
            client.run("COMMIT");
            client.run("INSERT INTO t DEFAULT VALUES");
            client.run("UPDATE t SET c0 = 1 WHERE id % 2 = 0");
            check_equal(&proxy);
        }
    }
}

/// Columns in another order, more of them on the target, generated ones.
#[test]
fn columns_that_differ() {
    needs_proxy!();
    for mode in MODES {
        let grant = "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC";
        let schema = format!(
            "CREATE TABLE t (id int PRIMARY KEY, gone int, a text, b int, g int GENERATED ALWAYS AS (b * 2) STORED, c json); \
             ALTER TABLE t DROP COLUMN gone; {grant}"
        );
        let name = format!("h_columns_{mode}");
        crate::support::cluster::database(&name);
        crate::support::cluster::oldest().admin(&name).run(&schema);
        newest().admin(&name).run(&format!(
            "CREATE TABLE t (c json, g int GENERATED ALWAYS AS (b * 2) STORED, extra text NOT NULL DEFAULT 'here', b int, id int PRIMARY KEY, a text); {grant}"
        ));
        let mut settings = crate::support::proxy::Settings::new(&name);
        settings.tables += ", \"public.t\"";
        settings.mirror = format!("mirror = {mode:?}");
        let proxy = settings.start();
        let mut client = proxy.client("alice");
        client.run(
            "INSERT INTO t (id, a, b, c) VALUES (1, 'x', 2, '{\"k\": 1, \"k\": 2}'), (2, NULL, NULL, 'null')",
        );
        let there = "SELECT string_agg(ROW(id, a, b, g, c, extra)::text, ' ' ORDER BY id) FROM t";
        let expected = r#"(1,x,2,4,"{""k"": 1, ""k"": 2}",here) (2,,,,null,here)"#;
        wait_for("both rows", || newest().admin(&name).run(there).as_deref() == Some(expected));
        newest().admin(&name).run("SET crossfade.role = 'apply'; UPDATE t SET extra = 'theirs' WHERE id = 1");
        client.run("UPDATE t SET b = 5, id = 3 WHERE id = 2; UPDATE t SET b = 7 WHERE id = 1");
        let expected = r#"(1,x,7,14,"{""k"": 1, ""k"": 2}",theirs) (3,,5,10,null,here)"#;
        wait_for("the changes", || newest().admin(&name).run(there).as_deref() == Some(expected));
    }
}

/// 50 MB in one value, and 1,600 columns.
#[test]
fn large_rows() {
    needs_proxy!();
    let wide: Vec<_> = (1..1600).map(|i| format!("c{i} int")).collect();
    let schema = format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE t_wide (id int PRIMARY KEY, {}); \
         GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC",
        wide.join(", ")
    );
    for mode in MODES {
        let proxy = start(&format!("h_large_{mode}"), &schema, |s| {
            s.mirror = format!("mirror = {mode:?}");
            s.mirroring = "apply_timeout = \"60s\"".to_owned();
        });
        let mut client = proxy.client("alice");
        client.run("INSERT INTO t_wide (id, c1, c1599) VALUES (1, 1, 1599), (2, NULL, NULL)");
        client.run("UPDATE t_wide SET c800 = 5");
        client.send(&frames::query(
            "INSERT INTO t SELECT 1, string_agg(md5(g::text), '') FROM generate_series(1, 1600000) g",
        ));
        // Longer than other tests are patient.
        while client.frame(Duration::from_secs(60)).expect("an answer").kind != b'Z' {}
        client.run("INSERT INTO t VALUES (2, 'small')");
        let digest = "SELECT string_agg(id || ':' || length(v) || ':' || md5(v), ' ' ORDER BY id) FROM t";
        let here = client.run(digest);
        let database = &proxy.settings.database;
        let arrived = || newest().admin(database).run(digest) == here;
        assert!(holds_within(Duration::from_secs(60), arrived), "{mode}: the value has not arrived");
        client.run("DELETE FROM t WHERE id = 1");
        check_equal(&proxy);
    }
}
