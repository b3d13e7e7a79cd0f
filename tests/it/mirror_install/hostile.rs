//! Clients that must not get more than they have, and schemas that lie.

use super::{
    Pair,
    capture::{alice, read_set, write_set},
};
use crate::support::cluster::{newest, oldest};

/// Everything that capture uses, made anew to lie, in a schema that stands before `pg_catalog`.
const LIES: &str = "
CREATE SCHEMA evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.caught() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
  RAISE EXCEPTION 'caught: ran as %', current_user; END $$;
CREATE FUNCTION evil.eq_text(a text, b text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught(); SELECT true';
CREATE FUNCTION evil.eq_int(a int, b int) RETURNS boolean LANGUAGE sql AS 'SELECT evil.caught(); SELECT true';
CREATE FUNCTION evil.cat(a text, b text) RETURNS text LANGUAGE sql AS 'SELECT evil.caught(); SELECT a';
CREATE FUNCTION evil.cat_any(a text, b anynonarray) RETURNS text LANGUAGE sql AS 'SELECT evil.caught(); SELECT a';
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq_text);
CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq_text);
CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.eq_int);
CREATE OPERATOR evil.< (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.eq_int);
CREATE OPERATOR evil.> (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.eq_int);
CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.cat);
CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = anynonarray, FUNCTION = evil.cat_any);
CREATE FUNCTION evil.current_setting(a text, b boolean) RETURNS text LANGUAGE sql AS 'SELECT evil.caught(); SELECT a';
CREATE FUNCTION evil.set_config(a text, b text, c boolean) RETURNS text LANGUAGE sql AS 'SELECT evil.caught(); SELECT a';
CREATE FUNCTION evil.replace(a text, b text, c text) RETURNS text LANGUAGE sql AS 'SELECT evil.caught(); SELECT a';
CREATE FUNCTION evil.octet_length(a text) RETURNS int LANGUAGE sql AS 'SELECT evil.caught(); SELECT 0';
CREATE FUNCTION evil.strpos(a text, b text) RETURNS int LANGUAGE sql AS 'SELECT evil.caught(); SELECT 0';
CREATE FUNCTION evil.concat(a anyelement) RETURNS text LANGUAGE sql AS 'SELECT evil.caught(); SELECT 0::text';
CREATE FUNCTION evil.pg_advisory_xact_lock_shared(a int, b int) RETURNS void LANGUAGE sql AS 'SELECT evil.caught()';
CREATE DOMAIN evil.text AS pg_catalog.text CHECK (evil.eq_text(VALUE, ''));
CREATE DOMAIN evil.int4 AS pg_catalog.int4 CHECK (evil.eq_int(VALUE, 0));
CREATE DOMAIN evil.uuid AS pg_catalog.uuid CHECK (evil.eq_int(0, 0));
CREATE TYPE evil.trigger AS (a pg_catalog.int4);
";

const SCHEMA: &str = "
CREATE TABLE ids (id uuid PRIMARY KEY, m mood, v text);
CREATE TABLE moods (m mood, t text COLLATE \"C\", v text, PRIMARY KEY (m, t));
CREATE TABLE secrets (id int PRIMARY KEY, v text);
CREATE TABLE nokey (a text, b int);
INSERT INTO secrets VALUES (1, 'hush');
GRANT INSERT, UPDATE, DELETE ON secrets TO PUBLIC;
GRANT ALL ON ids, moods, nokey TO PUBLIC;
";

#[test]
fn search_path_cannot_hijack() {
    let pair = Pair::new("hostile_path", &format!("{SCHEMA}{LIES}"));
    pair.install();
    for (cluster, side) in [(oldest(), "source"), (newest(), "target")] {
        let mut admin = pair.admin(cluster);
        admin.run("BEGIN");
        admin.run(&format!("UPDATE crossfade.repositories SET lead = '{side}'"));
        // Known by its whole name: the lies would catch the test itself.
        let statements = [
            format!("SELECT crossfade.arm('{{1}}', '{side}')"),
            "INSERT INTO public.users VALUES (1, 'a')".to_owned(),
            "INSERT INTO public.ids VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ok', 'x')".to_owned(),
            "INSERT INTO public.moods VALUES ('ok', 'a\"b', 'x')".to_owned(),
            "UPDATE public.moods SET t = 'c'".to_owned(),
            "UPDATE public.users SET name = 'b'".to_owned(),
            "INSERT INTO public.nokey VALUES ('a', 1)".to_owned(),
            "DELETE FROM public.users".to_owned(),
            "TRUNCATE public.documents".to_owned(),
            "SELECT crossfade.spill_armed()".to_owned(),
            "INSERT INTO public.users VALUES (2, 'b')".to_owned(),
        ];
        for path in ["SET search_path = evil, pg_catalog, public", "SET search_path = pg_catalog, public"] {
            admin.run("SAVEPOINT s");
            admin.run(path);
            for sql in &statements {
                admin.run(sql);
            }
            admin.run("SET search_path = pg_catalog, public");
            let entries = "SELECT pg_catalog.count(*) FROM crossfade.journal, pg_catalog.unnest(entries)";
            assert_eq!(admin.run(entries).as_deref(), Some("10"), "{path}");
            admin.run("ROLLBACK TO s");
        }
        admin.run(&statements[0]);
        for sql in &statements[1..4] {
            admin.run(sql);
        }
        let token = pair.admin(cluster).run("SELECT value FROM crossfade.meta WHERE key = 'token'").unwrap();
        admin.run("SET search_path = evil, pg_catalog, public");
        let set = read_set(&mut admin, &token).unwrap();
        assert_eq!(set.changes.len(), 3, "{set:?}");
        assert_eq!(set.changes[2].image.as_deref(), Some(&b"(ok,\"a\"\"b\",x)"[..]));
    }
}

#[test]
fn a_client_gets_no_more_than_it_has() {
    let pair = Pair::new("hostile_client", SCHEMA);
    pair.install();
    let mut alice = alice(&pair, oldest());
    // It writes what it may not read; the proxy gets the row, the client does not.
    alice.run("BEGIN; SELECT crossfade.arm('{1}', 'source')");
    alice.run("INSERT INTO secrets VALUES (2, 'mine')");
    let error = read_set(&mut alice, "guess").unwrap_err();
    assert_eq!(error.sqlstate, "42501");
    alice.run("ROLLBACK");
    for sql in [
        "SELECT * FROM crossfade.meta",
        "SELECT * FROM crossfade.journal",
        "SELECT * FROM crossfade.tables",
        "UPDATE crossfade.repositories SET lead = 'target'",
        "INSERT INTO crossfade.journal (xid, sync, entries) VALUES ('1', false, '{}')",
        "SELECT * FROM crossfade.collect(NULL)",
        "SELECT * FROM crossfade.write_set(NULL)",
        "CREATE TABLE crossfade.mine ()",
        "CREATE TABLE mine (id int); CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION crossfade.c1_i()",
    ] {
        let error = alice.query(sql).unwrap_err();
        assert_eq!(error.sqlstate, "42501", "{sql}: {error:?}");
    }
    // With row security that hides the row from all but superusers.
    for cluster in [oldest(), newest()] {
        pair.admin(cluster).run(
            "ALTER TABLE secrets ENABLE ROW LEVEL SECURITY; ALTER TABLE secrets FORCE ROW LEVEL SECURITY; \
             CREATE POLICY w ON secrets FOR INSERT WITH CHECK (true)",
        );
    }
    let mut admin = pair.admin(oldest());
    admin.run("SET SESSION AUTHORIZATION alice; BEGIN; SELECT crossfade.arm('{1}', 'source')");
    admin.run("INSERT INTO secrets VALUES (3, 'hidden'); RESET SESSION AUTHORIZATION");
    assert_eq!(write_set(&mut admin, &pair, oldest())[1..], ["secrets I 3 (3,hidden)"]);
}

/// A deferred trigger runs before `write_set` reads, as the client and with its settings.
#[test]
fn deferred_triggers_run_as_the_client() {
    let schema = "
CREATE TABLE late (id int PRIMARY KEY, who text, path text);
GRANT ALL ON late TO PUBLIC;
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE late SET who = current_user, path = current_setting('search_path') WHERE id = NEW.id; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
";
    let pair = Pair::new("hostile_deferred", schema);
    pair.install();
    let token = pair.admin(oldest()).run("SELECT value FROM crossfade.meta WHERE key = 'token'").unwrap();
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let mut alice = alice(&pair, oldest());
        alice.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT crossfade.arm('{{1}}', 'source')"));
        alice.run("SET search_path = public; INSERT INTO late VALUES (1)");
        let set = read_set(&mut alice, &token).unwrap();
        assert_eq!(*set.changes[0].operations, *b"IU", "{set:?}");
        assert_eq!(set.changes[0].image.as_deref(), Some(&b"(1,alice,public)"[..]), "{set:?}");
    }
}
