"""psycopg2: libpq's simple protocol, named cursors, COPY, notices, autocommit and not."""
import contextlib, decimal, io

import psycopg2
import psycopg2.extras
from psycopg2 import errors, sql

from common import DOCUMENTS, DSN, KINDS, USERS, Run, canonical

run = Run("psycopg2")
WHO = "current_setting('cluster_name') AS who"
# Composite and range are read as text, since without registering psycopg2 has no types for them.
COLUMNS = """id, owner_id, title, kind, kinds, state, json_build_array((size).width, (size).height, (size).state) AS size,
             json_build_array(lower(pages), upper(pages)) AS pages, price, ratio, meta, digest, uid::text AS uid, day, created_at, note"""
ONE = f"SELECT {COLUMNS}, {WHO} FROM documents WHERE id = %s"


def connect():
    connection = psycopg2.connect(DSN, cursor_factory=psycopg2.extras.RealDictCursor)
    with connection.cursor() as cursor:  # arrays of enums come as text until their OID is registered
        cursor.execute("SELECT typarray FROM pg_type WHERE typname = 'doc_kind'")
        oid = cursor.fetchone()["typarray"]
    connection.rollback()
    psycopg2.extensions.register_type(psycopg2.extensions.new_array_type((oid,), "DOC_KIND[]", psycopg2.STRING), connection)
    return connection


def anyone():
    return run.dice.randint(1, len(DOCUMENTS))


def query(connection, statement, parameters=()):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else cursor.rowcount


def whole_rows(connection):
    connection.autocommit = True
    for _ in range(10):
        run.document(query(connection, ONE, [anyone()])[0])
    kinds = run.dice.sample(KINDS, 3)
    rows = query(connection, f"SELECT {COLUMNS}, {WHO} FROM documents WHERE kind = ANY (%s::doc_kind[])", [kinds])
    run.equal(sorted(run.document(row) and row["id"] for row in rows), [i for i, d in DOCUMENTS.items() if d["kind"] in kinds], "by array of enum")


def transaction_of_reads(connection):
    side = run.document(query(connection, ONE, [anyone()])[0])
    for _ in range(5):
        run.equal(run.document(query(connection, ONE, [anyone()])[0]), side, "side within a transaction")
    for row in query(connection, "SELECT * FROM users WHERE id < %s", [anyone()]):
        run.equal(canonical(row), USERS[row["id"]], "user")
    connection.commit()


def reads_then_writes(connection):
    n = run.next()
    run.document(query(connection, ONE, [anyone()])[0])
    run.equal(query(connection, "INSERT INTO organization_scratch (run, n, kind, amount, data) VALUES (%s, %s, %s, %s, %s)",
                    [run.name, n, "memo", decimal.Decimal("9.90"), psycopg2.Binary(b"\0'\\")]), 1, "rowcount")
    run.equal(run.document(query(connection, ONE, [anyone()])[0]), "source", "side after the write")
    connection.commit()
    row = query(connection, "SELECT kind, amount, data FROM organization_scratch WHERE run = %s AND n = %s", [run.name, n])[0]
    run.equal(canonical(row), {"kind": "memo", "amount": "9.90", "data": b"\0'\\".hex()}, "written row")
    connection.rollback()


def rollback(connection):
    n = run.next()
    query(connection, "INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, n])
    connection.rollback()
    run.equal(query(connection, "SELECT 1 FROM organization_scratch WHERE run = %s AND n = %s", [run.name, n]), [], "rolled back row")
    connection.commit()


def failed_transaction(connection):
    with contextlib.suppress(errors.UndefinedColumn):
        query(connection, "SELECT nothing FROM documents")
        raise AssertionError("no error")
    with contextlib.suppress(errors.InFailedSqlTransaction):
        query(connection, ONE, [1])
        raise AssertionError("no error in a failed transaction")
    connection.commit()  # answers with the tag ROLLBACK
    run.document(query(connection, ONE, [anyone()])[0])
    connection.rollback()


def named_cursor_while_writing(connection):
    with connection.cursor(name="walk") as cursor:
        cursor.itersize = 30
        cursor.execute(f"SELECT {COLUMNS}, {WHO} FROM documents ORDER BY id")
        seen = []
        for row in cursor:
            run.document(row)
            seen.append(row["id"])
            if row["id"] % 50 == 0:
                query(connection, "INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, run.next()])
    run.equal(seen, list(DOCUMENTS), "rows of a named cursor")
    connection.commit()


def several_statements(connection):
    connection.autocommit = True
    n = run.next()
    rows = query(connection, f"INSERT INTO organization_scratch (run, n) VALUES (%(run)s, %(n)s); UPDATE organization_scratch SET who = 'x' "
                             f"WHERE run = %(run)s AND n = %(n)s; SELECT count(*) AS n FROM organization_scratch WHERE run = %(run)s AND n = %(n)s", {"run": run.name, "n": n})
    run.equal(rows[0]["n"], 1, "three statements in one query")
    rows = query(connection, f"BEGIN; SELECT 1; SELECT {COLUMNS}, {WHO} FROM documents WHERE id = %s", [anyone()])
    run.document(rows[0])
    query(connection, "COMMIT; BEGIN; SET LOCAL work_mem = '5MB'")
    run.equal(query(connection, "SHOW work_mem")[0]["work_mem"], "5MB", "SET LOCAL in the second transaction of a query")
    query(connection, "ROLLBACK")


def copy(connection):
    out = io.StringIO()
    with connection.cursor() as cursor:
        cursor.copy_expert("COPY (SELECT id, kind FROM documents ORDER BY id) TO STDOUT WITH CSV HEADER", out)
        run.equal(out.getvalue().splitlines()[1:], [f"{i},{d['kind']}" for i, d in DOCUMENTS.items()], "COPY TO")
        first = run.next()
        lines = [f"{run.name},{n}" for n in [first, *(run.next() for _ in range(1000))]]
        cursor.copy_expert("COPY organization_scratch (run, n) FROM STDIN WITH CSV", io.StringIO("\n".join(lines)))
        run.equal(cursor.rowcount, 1001, "rows of COPY FROM")
    run.equal(query(connection, "SELECT count(*) AS n FROM organization_scratch WHERE run = %s AND n >= %s", [run.name, first])[0]["n"], 1001, "copied rows")
    connection.commit()


def notices(connection):
    del connection.notices[:]
    slug = f"{run.name}-{run.next()}"
    row = query(connection, "INSERT INTO organizations (slug, name) VALUES (%s, 'noted') RETURNING id, kind", [slug])[0]
    run.equal(row["kind"], "memo", "a default that comes back")
    run.equal([line.strip() for line in connection.notices], [f"NOTICE:  organization {slug} created"], "notices")
    query(connection, "DELETE FROM organizations WHERE id = %s", [row["id"]])
    connection.commit()


def batches(connection):
    rows = [(run.name, run.next(), "draft") for _ in range(300)]
    with connection.cursor() as cursor:
        psycopg2.extras.execute_values(cursor, "INSERT INTO organization_scratch (run, n, kind) VALUES %s", rows)
        psycopg2.extras.execute_batch(cursor, "UPDATE organization_scratch SET kind = 'memo' WHERE run = %s AND n = %s AND kind = %s", rows, page_size=50)
    run.equal(query(connection, "SELECT count(*) AS n FROM organization_scratch WHERE run = %s AND n >= %s AND kind = 'memo'", [run.name, rows[0][1]])[0]["n"], 300, "batches")
    connection.commit()


def temporary_table(connection):
    """Pins the session in transaction pooling; the name shadows nothing."""
    connection.autocommit = True
    name = sql.Identifier(f"temp_{run.next()}")
    query(connection, sql.SQL("CREATE TEMP TABLE {} (id int)").format(name))
    query(connection, sql.SQL("INSERT INTO {} VALUES (1), (2)").format(name))
    run.document(query(connection, ONE, [anyone()])[0])
    run.equal(query(connection, sql.SQL("SELECT sum(id) AS s FROM {}").format(name))[0]["s"], 3, "temporary table")
    query(connection, sql.SQL("DROP TABLE {}").format(name))


CHECKS = [whole_rows, transaction_of_reads, reads_then_writes, rollback, failed_transaction, named_cursor_while_writing, several_statements,
          copy, notices, batches, temporary_table]
connection = connect()


def call(check):
    global connection
    try:
        connection.autocommit = False
        check(connection)
        connection.rollback()
    except BaseException:
        connection.close()
        connection = connect()
        raise


run.loop(CHECKS, call)
run.finish()
