"""pg_dump through crossfade | pg_restore into a fresh database of the source's server; then every table is compared.

pg_restore connects to the server itself: crossfade serves one database, and the fresh one is not it.
"""
import os, subprocess

from common import DATABASE, DIRECT_PORT, HOST, PASSWORD, PORT, USER, Run, tables_of_pgbench

run = Run("pg_dump")
FRESH = f"fresh_{os.getpid()}"
# The other drivers write while this runs, so rows are compared for what they leave alone.
STATIC = ["documents", "document_versions", "users", "user_groups", "app_settings"]


def env(port, **more):
    return {**os.environ, "PGHOST": HOST, "PGPORT": str(port), "PGUSER": USER, "PGDATABASE": DATABASE, "PGPASSWORD": PASSWORD, **more}


def command(*args, port=DIRECT_PORT, stdin=None, **more):
    result = subprocess.run(args, env=env(port, **more), input=stdin, capture_output=True)
    if result.returncode:
        raise RuntimeError(f"{args[0]}: exit status {result.returncode}: {result.stderr.decode(errors='replace')[-1500:]}")
    return result.stdout


def psql(sql, **more):
    return command("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql, **more).decode().strip()


def dump_and_restore():
    with tables_of_pgbench():
        dump = command("pg_dump", "--no-sync", "--format=custom", "--exclude-table=pgbench_*", "--exclude-schema=crossfade", port=PORT)
    run.operations += 1
    psql(f"CREATE DATABASE {FRESH} TEMPLATE template0 OWNER {USER}", PGUSER="postgres", PGDATABASE="postgres")
    try:
        command("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={FRESH}", stdin=dump)
        for table in STATIC:
            digest = f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t"
            run.equal(psql(digest, PGDATABASE=FRESH), psql(digest), table)
        for table in ("organizations", "organization_members", "organization_scratch"):
            run.equal(psql(f"SELECT count(*) FROM {table} WHERE {'slug' if table == 'organizations' else 'name' if 'members' in table else 'run'} ~ 'poison|read on the target'",
                           PGDATABASE=FRESH), "0", f"{table} of the source, not of the target")
        schema = ("SELECT string_agg(format('%s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod)), ',' ORDER BY c.relname, a.attnum) FROM pg_class c "
                  "JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace AND c.relname !~ 'pgbench' AND a.attnum > 0")
        run.equal(psql(schema, PGDATABASE=FRESH), psql(schema), "columns")
    finally:
        psql(f"DROP DATABASE IF EXISTS {FRESH}", PGUSER="postgres", PGDATABASE="postgres")


def plain_dump():
    dump = command("pg_dump", "--no-sync", "--data-only", "--inserts", "--table=documents", port=PORT)
    wanted = command("pg_dump", "--no-sync", "--data-only", "--inserts", "--table=documents")
    lines = [[line for line in text.decode().splitlines() if "restrict" not in line] for text in (dump, wanted)]
    run.equal(lines[0], lines[1], "plain dump of documents")


for check in (dump_and_restore, plain_dump):
    try:
        check()
    except Exception as error:  # noqa: BLE001: whatever goes wrong is the result
        run.failed(check.__name__, error)
run.finish()
