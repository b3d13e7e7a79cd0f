"""pgbench with scripts that check what they read, in one of its three protocols; its own TPC-B tables in `default`."""
import os, pathlib, re, subprocess, sys, tempfile

from common import DATABASE, DIRECT_PORT, HOST, PASSWORD, PORT, SECONDS, USER, Run, tables_of_pgbench

protocol = sys.argv[1]
run = Run(f"pgbench-{protocol}")
ENV = {**os.environ, "PGHOST": HOST, "PGPORT": str(PORT), "PGUSER": USER, "PGDATABASE": DATABASE, "PGPASSWORD": PASSWORD, "LC_ALL": "C"}
# A wrong row makes the script divide by zero, and that aborts its client. `seen` numbers who answered, in a table of
# the source, since pgbench cannot count.
READS = r"""
\set id random(1, 200)
SELECT owner_id AS owner, (kind = (enum_range(NULL::doc_kind))[1 + :id % 7])::int AS kind, (size).height AS height, upper(pages) AS upper,
       (current_setting('cluster_name') = 'target')::int AS side FROM documents WHERE id = :id \gset
\if :owner <> 1 + :id * 7 % 50 or :kind <> 1 or :height <> :id * 2 or :upper <> :id + 10
SELECT 1 / 0 AS wrong_document;
\endif
SELECT count(*) AS versions FROM document_versions WHERE document_id = :id \gset
\if :versions <> 3
SELECT 1 / 0 AS wrong_versions;
\endif
\set user random(1, 50)
SELECT group_id AS team FROM users WHERE id = :user AND role = (enum_range(NULL::account_role))[1 + :user % 3] \gset
\if :team <> 1 + :user % 10
SELECT 1 / 0 AS wrong_user;
\endif
INSERT INTO organization_members (organization_id, name, role) VALUES (@organization@, :side, 'reader');
"""
MOVES = r"""
\set id random(1, 200)
BEGIN;
SELECT (current_setting('cluster_name') = 'target')::int AS first, owner_id AS owner FROM documents WHERE id = :id \gset
SELECT (current_setting('cluster_name') = 'target')::int AS second FROM documents WHERE id = :id \gset
\if :first <> :second or :owner <> 1 + :id * 7 % 50
SELECT 1 / 0 AS side_changed_or_wrong_row;
\endif
INSERT INTO organization_members (organization_id, name, role) VALUES (@organization@, :first, 'editor');
SELECT (current_setting('cluster_name') = 'target')::int AS after FROM documents WHERE id = :id \gset
\if :after <> 0
SELECT 1 / 0 AS not_on_the_lead;
\endif
SELECT count(*) AS mine FROM organization_members WHERE organization_id = @organization@ AND name = '0' \gset
UPDATE organizations SET budget = budget + 1 WHERE id = @organization@ AND random() < 0.01;
END;
"""


def command(*args, env=ENV):
    result = subprocess.run([str(a) for a in args], env=env, text=True, capture_output=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, args[:4]))}: exit status {result.returncode}: {(result.stdout + result.stderr)[-1500:]}")
    return result.stdout, result.stderr


def psql(sql, **more):
    return command("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql, env={**ENV, **more})[0].strip()


def pgbench(*args):
    """Runs pgbench; returns how many transactions it did."""
    out = "".join(command("pgbench", "-n", "-M", protocol, "--random-seed", run.dice.randrange(1 << 30), "-T", max(1, round(SECONDS / 2)), *args))
    done, failed = (re.search(rf"{words}: (\d+)", out) for words in ("transactions actually processed", "failed transactions"))
    if failed and int(failed[1]) or "aborted" in out or not done:
        raise RuntimeError(out[-1500:])
    return int(done[1])


def checked_scripts():
    organization = psql(f"INSERT INTO organizations (slug, name) VALUES ('{run.name}', 'pgbench') RETURNING id")
    with tempfile.TemporaryDirectory() as scratch:
        files = [pathlib.Path(scratch, name) for name in ("reads.sql", "moves.sql")]
        for file, text in zip(files, (READS, MOVES)):
            file.write_text(text.replace("@organization@", organization))
        done = pgbench("-c", 4, "-j", 1, "-f", f"{files[0]}@3", "-f", files[1])
    run.operations += done
    # Asked of the source itself: it holds a row for every transaction.
    source, target = map(int, psql(f"SELECT count(*) FILTER (WHERE name = '0'), count(*) FILTER (WHERE name = '1') FROM organization_members "
                                   f"WHERE organization_id = {organization}", PGPORT=str(DIRECT_PORT)).split("|"))
    run.sides = {"source": source, "target": target}
    run.equal(source + target, done, "rows written by so many transactions")


def tpcb():
    """The built-in script, whose four balances must agree. Its tables have fixed names, so only one protocol makes them."""
    with tables_of_pgbench():
        command("pgbench", "-i", "-q", "-s", 1, "-I", "dtgvpf")
        run.operations += pgbench("-c", 4, "-j", 1)
        run.operations += pgbench("-S", "-c", 2, "-j", 1) if protocol == "simple" else 0
        balances = psql("SELECT (SELECT sum(abalance) FROM pgbench_accounts) = all (ARRAY[(SELECT sum(bbalance) FROM pgbench_branches), "
                        "(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history)])")
    run.equal(balances, "t", "balances of TPC-B")


for check in (checked_scripts, tpcb):
    try:
        check()
    except Exception as error:  # noqa: BLE001: whatever goes wrong is the result
        run.failed(check.__name__, error)
run.finish()
