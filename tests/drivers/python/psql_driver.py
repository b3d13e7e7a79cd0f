"""psql: what it prints through crossfade is, byte for byte, what it prints on the source."""
import os, re, subprocess, tempfile

from common import DATABASE, DIRECT_PORT, HOST, MODE, PASSWORD, PORT, USER, Run

run = Run("psql")
VERSION = int(re.search(r"(\d+)", subprocess.run(["psql", "--version"], text=True, capture_output=True).stdout)[1])

# name -> script. `:run` is another one for each execution, `:dir` a directory of its own; neither may be printed.
SCRIPTS = {
    "describe": r"""
\d documents
\d+ document_versions
\d users
\dt+ document*
\di+ documents*
\dT+
\d organization_scratch
\l app
\df organization_notice
\dn
\dp users
\sf organization_notice
\d nothing_of_this_name
""",
    "who": "SELECT id, kind, current_setting('cluster_name') AS who FROM documents WHERE id <= 3 ORDER BY id;\n" * 6,
    "several statements": r"""
SELECT 1 AS a\; SELECT kind, size, pages FROM documents WHERE id = 5\; SELECT role, settings FROM users WHERE id = 7;
BEGIN\; SELECT 2\; COMMIT\; SELECT kinds FROM documents WHERE id < 4 ORDER BY id;
SELECT 'a' AS first \; SELECT 1 / 0 \; SELECT 'never';
SELECT title FROM documents WHERE id = 9 \gx
""",
    "variables": r"""
\set id 17
SELECT kind AS my_kind, owner_id AS my_owner FROM documents WHERE id = :id \gset
SELECT count(*) FROM documents WHERE kind = :'my_kind';
SELECT name FROM users WHERE id = :my_owner;
\if :{?my_kind}
\echo kind :my_kind
\endif
SELECT format('SELECT %L AS made, count(*) FROM documents WHERE id < %s', kind, id) FROM documents WHERE id BETWEEN 20 AND 23 ORDER BY id \gexec
SELECT kind, state, id FROM documents WHERE id < 20 ORDER BY id \crosstabview kind state id
SELECT * FROM documents WHERE false \gdesc
""",
    "settings": r"""
SET search_path = public, pg_catalog;
SHOW search_path;
SET datestyle = 'German, DMY';
SELECT day FROM documents WHERE id = 3;
SET timezone = 'Asia/Kolkata';
SELECT created_at FROM documents WHERE id = 3;
SET extra_float_digits = -10; SET bytea_output = escape; SET intervalstyle = iso_8601;
SELECT ratio, digest, interval '1 day 2 hours' FROM documents WHERE id IN (3, 4) ORDER BY id;
BEGIN;
SET LOCAL timezone = 'America/New_York';
SELECT created_at FROM documents WHERE id = 3;
ROLLBACK;
SELECT created_at FROM documents WHERE id = 3;
RESET ALL;
SELECT day, created_at, ratio FROM documents WHERE id = 3;
SELECT set_config('datestyle', 'SQL, MDY', false);
SELECT day FROM documents WHERE id = 3;
DISCARD ALL;
SELECT day FROM documents WHERE id = 3;
\encoding LATIN1
SELECT title FROM documents WHERE id = 3;
""",
    "copy": r"""
\copy (SELECT id, kind, note FROM documents ORDER BY id) TO ':dir/out.csv' CSV HEADER
\copy document_versions (document_id, version, state) TO PROGRAM 'sort | md5sum'
COPY (SELECT id, kinds, size FROM documents WHERE id < 5 ORDER BY id) TO STDOUT;
CREATE TEMP TABLE mine (id int, kind doc_kind, note text);
\copy mine FROM ':dir/out.csv' CSV HEADER
SELECT count(*), count(note), min(kind), md5(string_agg(note, '' ORDER BY id)) FROM mine;
COPY organization_scratch (run, n, kind) FROM STDIN;
:run	1	memo
:run	2	draft
\.
SELECT n, kind FROM organization_scratch WHERE run = ':run' ORDER BY n;
COPY organization_scratch (run, n) FROM STDIN;
:run	x
\.
SELECT 'still here';
""",
    "prepared": r"""
PREPARE one (bigint) AS SELECT kind, kinds, size FROM documents WHERE id = $1;
EXECUTE one (1);
EXECUTE one (2);
BEGIN;
EXECUTE one (3);
INSERT INTO organization_scratch (run, n) VALUES (':run', 1);
EXECUTE one (4);
COMMIT;
DEALLOCATE one;
EXECUTE one (5);
PREPARE one AS SELECT 'another';
EXECUTE one;
DEALLOCATE ALL;
""",
    "transactions": r"""
BEGIN;
SELECT kind FROM documents WHERE id = 1;
SAVEPOINT a;
INSERT INTO organization_scratch (run, n, kind) VALUES (':run', 1, 'memo');
SAVEPOINT b;
INSERT INTO organization_scratch (run, n) VALUES (':run', 1);
SELECT 'skipped';
ROLLBACK TO b;
SELECT n, kind FROM organization_scratch WHERE run = ':run';
ROLLBACK TO a;
SELECT count(*) FROM organization_scratch WHERE run = ':run';
COMMIT;
BEGIN; SELECT 1 / 0; COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT count(*) FROM documents;
DELETE FROM organization_scratch WHERE run = ':run';
ROLLBACK;
COMMIT;
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id, kind FROM documents ORDER BY id;
FETCH 2 FROM c;
INSERT INTO organization_scratch (run, n) VALUES (':run', 2);
FETCH BACKWARD 1 FROM c;
MOVE 10 IN c;
FETCH c;
END;
WITH gone AS (DELETE FROM organization_scratch WHERE run = ':run' RETURNING n) SELECT * FROM gone;
SELECT n FROM organization_scratch WHERE run = ':run';
""",
    "fetch count": "\\set FETCH_COUNT 40\nSELECT id, title, kind FROM documents ORDER BY id;\n",
    "default": "SELECT * FROM app_settings ORDER BY key;\nSELECT 1 + 1 AS two;\nSELECT version() LIKE 'PostgreSQL%' AS postgres;\nSHOW server_version;\nVALUES (1), (2);\n",
    "errors": "SELECT nothing FROM documents;\nSELECT 1 FROM nowhere;\nSELEC;\nSELECT 'x'::doc_kind;\n\\errverbose\nINSERT INTO organization_members (organization_id, name, role) VALUES (-1, '', 'admin');\nSELECT kind FROM documents WHERE id = 1;\n",
}
if MODE != "transaction":  # where a server connection also holds what other clients prepared
    SCRIPTS["prepared"] += "PREPARE two (int) AS SELECT $1;\nSELECT name, parameter_types FROM pg_prepared_statements;\nDEALLOCATE two;\n"
if VERSION >= 16:
    SCRIPTS["bind"] = "SELECT kind, size FROM documents WHERE id = $1 \\bind 5 \\g\nSELECT id FROM documents WHERE kind = $1 AND id < $2 ORDER BY id \\bind memo 50 \\g\n"


def psql(port, script):
    """What psql prints, with the names that are unlike in every execution made alike."""
    with tempfile.TemporaryDirectory() as scratch:
        mine = f"{run.name}-{run.next()}"
        env = {**os.environ, "PGHOST": HOST, "PGPORT": str(port), "PGUSER": USER, "PGDATABASE": DATABASE, "PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8"}
        result = subprocess.run(["psql", "-X", "-a", "-f", "-"], env=env, input=script.replace(":run", mine).replace(":dir", scratch).encode(), capture_output=True, timeout=20)
    out = result.stdout + b"\n-- errors\n" + result.stderr
    out = re.sub(rb"^LOCATION: .*\n", b"", out, flags=re.M)  # a line of the server's own code: another one in each major
    return out.decode(errors="backslashreplace").replace(mine, ":run").replace(scratch, ":dir")


expected = {name: psql(DIRECT_PORT, script) for name, script in SCRIPTS.items()}
run.restart_clock()


def check_script(name):
    got = psql(PORT, SCRIPTS[name])
    if name == "who":
        for side in re.findall(r"\| (source|target)", got):
            run.who(side)
        got = re.sub(r"\| target", "| source", got)
    if got != expected[name]:
        pairs = zip(got.splitlines(), expected[name].splitlines())
        number, line, wanted = next(((k, a, b) for k, (a, b) in enumerate(pairs, 1) if a != b), (0, "more or fewer lines", ""))
        errors = got.partition("\n-- errors\n")[2]
        raise AssertionError(f"{name!r}, line {number}: got {line!r}, expected {wanted!r}; errors: {errors[:600]}")
    run.operations += 1


def checks():
    yield from SCRIPTS
    while run.going():
        yield run.dice.choice(["who", "who", *SCRIPTS])


for name in checks():
    try:
        check_script(name)
    except Exception as error:  # noqa: BLE001: whatever goes wrong is the result
        run.failed(name, error)
run.finish()
