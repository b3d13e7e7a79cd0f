"""psycopg 3: extended protocol, prepared after five uses, binary, registered types, server cursors, COPY, pipelines."""
import contextlib, decimal, enum, itertools, threading

import psycopg
from psycopg import rows as psycopg_rows
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb
from psycopg.types.range import Range, RangeInfo, register_range

from common import DOCUMENTS, DSN, KINDS, SLOW, USERS, VERSIONS, Run, canonical

run = Run("psycopg3")
WHO = "current_setting('cluster_name') AS who"
ONE = f"SELECT *, {WHO} FROM documents WHERE id = %s"
Kind = enum.Enum("Kind", {name: name for name in KINDS})
State = enum.Enum("State", {name: name for name in ("open", "closed", "archived")})
Role = enum.Enum("Role", {name: name for name in ("reader", "editor", "admin")})


def connect():
    """A connection that knows the application's types, whose OIDs it asks the server for, as applications do."""
    connection = psycopg.connect(DSN, row_factory=psycopg_rows.dict_row, autocommit=True)
    for name, python in (("doc_kind", Kind), ("doc_state", State), ("account_role", Role)):
        register_enum(EnumInfo.fetch(connection, name), connection, python)
    register_composite(CompositeInfo.fetch(connection, "doc_size"), connection)
    register_range(RangeInfo.fetch(connection, "page_range"), connection)
    return connection


def anyone():
    return run.dice.randint(1, len(DOCUMENTS))


def whole_rows(connection):
    for binary in (False, True):
        for _ in range(7):  # the sixth is prepared
            run.document(connection.execute(ONE, [anyone()], binary=binary).fetchone())
    with connection.cursor(binary=True) as cursor:
        for row in cursor.execute(f"SELECT *, {WHO} FROM documents WHERE id BETWEEN %s AND %s", [1, anyone()]):
            run.document(row)
    row = connection.execute(ONE, [1]).fetchone()
    run.equal([type(row["kind"]), type(row["kinds"][0]), type(row["size"].state), type(row["pages"])], [Kind, Kind, State, Range], "types of a row")


def user_types_as_parameters(connection):
    expected = DOCUMENTS[anyone()]
    Size = connection.adapters.types["doc_size"].python_type
    size = Size(*expected["size"][:2], State(expected["size"][2]))
    for binary in (False, True):
        place = "%b" if binary else "%s"
        rows = connection.execute(f"SELECT *, {WHO} FROM documents WHERE kind = {place} AND id = %s", [Kind(expected["kind"]), expected["id"]]).fetchall()
        run.equal([run.document(row) and row["id"] for row in rows], [expected["id"]], "by enum")
        kinds = [Kind.memo, Kind.draft]
        rows = connection.execute(f"SELECT id FROM documents WHERE kind = ANY ({place}) ORDER BY id", [kinds]).fetchall()
        run.equal([row["id"] for row in rows], [i for i, d in DOCUMENTS.items() if d["kind"] in ("memo", "draft")], "by array of enum")
        rows = connection.execute(f"SELECT *, {WHO} FROM documents WHERE size = {place}", [size]).fetchall()
        run.equal([run.document(row) and row["id"] for row in rows], [expected["id"]], "by composite")
        rows = connection.execute(f"SELECT *, {WHO} FROM documents WHERE pages = {place}::page_range", [Range(*expected["pages"])]).fetchall()
        run.equal([run.document(row) and row["id"] for row in rows], [expected["id"]], "by range")


def users_and_roles(connection):
    for role in Role:
        for row in connection.execute("SELECT * FROM users WHERE role = %s", [role]).fetchall():
            run.equal(canonical(row), USERS[row["id"]], "user")


def pipeline(connection):
    ids = [anyone() for _ in range(20)]
    with connection.pipeline():
        cursors = [connection.execute(ONE, [i], prepare=i % 2 == 0) for i in ids]
    for i, cursor in zip(ids, cursors):
        row = cursor.fetchone()
        run.equal(row["id"], i, "order in a pipeline")
        run.document(row)
    first, second = run.next(), run.next()
    with connection.pipeline() as pipe, connection.transaction():
        read = connection.execute(ONE, [anyone()])
        connection.execute("INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, first])
        after = connection.execute(ONE, [anyone()])
        pipe.sync()
        connection.execute("INSERT INTO organization_scratch (run, n, kind) VALUES (%s, %s, %s)", [run.name, second, Kind.memo])
    run.document(read.fetchone())
    run.equal(run.document(after.fetchone()), "source", "side after a pipelined write")
    rows = connection.execute("SELECT n FROM organization_scratch WHERE run = %s AND n >= %s ORDER BY n", [run.name, first]).fetchall()
    run.equal([row["n"] for row in rows], [first, second], "rows of a pipeline")


def pipeline_error(connection):
    lost = run.next()
    with contextlib.suppress(psycopg.errors.DivisionByZero), connection.pipeline():
        connection.execute("INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, lost])
        connection.execute("SELECT 1 / (%s::int - id) FROM documents WHERE id = 7", [7])
        connection.execute("INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, lost + 1000000])
    row = connection.execute("SELECT count(*) AS n FROM organization_scratch WHERE run = %s AND n IN (%s, %s)", [run.name, lost, lost + 1000000]).fetchone()
    run.equal(row["n"], 0, "rows of a failed pipeline")
    run.document(connection.execute(ONE, [anyone()]).fetchone())


def server_cursor_while_writing(connection):
    with connection.transaction():
        with connection.cursor(name="walk", scrollable=True) as cursor:
            cursor.itersize = 30
            cursor.execute(f"SELECT *, {WHO} FROM documents ORDER BY id")
            for row in itertools.islice(cursor, 100):
                run.document(row)
                if row["id"] % 25 == 0:
                    connection.execute("INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, run.next()])
            cursor.scroll(-40)
            row = cursor.fetchone()
            run.document(row)
            position = row["id"]
            cursor.scroll(0, mode="absolute")
            run.equal([row["id"] for row in cursor.fetchmany(3)], [1, 2, 3], f"cursor scrolled back from {position}")


def held_cursor(connection):
    with connection.cursor(name="held", withhold=True) as cursor:
        cursor.execute("SELECT id FROM documents ORDER BY id")
        run.equal(len(cursor.fetchmany(50)), 50, "held cursor")
        connection.execute("INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, run.next()])
        run.equal([row["id"] for row in cursor.fetchall()], list(DOCUMENTS)[50:], "rest of a held cursor")


def copy(connection):
    with connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT document_id, version, state::text, body FROM document_versions WHERE document_id <= %s ORDER BY 1, 2) TO STDOUT (FORMAT binary)", [20]) as out:
            out.set_types(["int8", "int4", "text", "text"])
            run.equal([list(row) for row in out.rows()], [list(v.values()) for v in VERSIONS if v["document_id"] <= 20], "binary COPY TO")
        with cursor.copy("COPY documents (id, kind, note) TO STDOUT") as out:
            run.equal(sorted((int(i), kind, note) for i, kind, note in out.rows()), [(d["id"], d["kind"], d["note"]) for d in DOCUMENTS.values()], "COPY TO")
        rows = [(run.name, run.next(), Kind.memo, decimal.Decimal("0.10") * i, Jsonb({"i": i}), b"\0\xff") for i in range(500)]
        with cursor.copy("COPY organization_scratch (run, n, kind, amount, payload, data) FROM STDIN") as into:
            for row in rows:
                into.write_row(row)
        run.equal(cursor.rowcount, 500, "rows of COPY FROM")
    got = connection.execute("SELECT n, kind, amount, payload, data FROM organization_scratch WHERE run = %s AND n BETWEEN %s AND %s ORDER BY n", [run.name, rows[0][1], rows[-1][1]]).fetchall()
    run.equal([canonical(list(r.values())) for r in got], [canonical([*r[1:4], r[4].obj, r[5]]) for r in rows], "copied rows")


def copy_that_fails(connection):
    try:
        with connection.cursor().copy("COPY organization_scratch (run, n) FROM STDIN") as into:
            into.write_row([run.name, run.next()])
            into.write(f"{run.name}\tnot a number\n")
        raise AssertionError("no error from a bad COPY")
    except psycopg.errors.InvalidTextRepresentation:
        run.document(connection.execute(ONE, [anyone()]).fetchone())


def transactions(connection):
    kept = run.next()
    with connection.transaction():
        side = run.document(connection.execute(ONE, [anyone()]).fetchone())
        run.equal(run.document(connection.execute(ONE, [anyone()]).fetchone()), side, "side within a transaction")
        connection.execute("SET LOCAL application_name = 'inside'")
        with contextlib.suppress(psycopg.errors.UniqueViolation), connection.transaction():
            for _ in range(2):
                connection.execute("INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, kept])
        connection.execute("INSERT INTO organization_scratch (run, n) VALUES (%s, %s)", [run.name, kept])
        row = connection.execute(f"SELECT current_setting('application_name') AS name, {WHO} FROM organization_scratch WHERE run = %s LIMIT 1", [run.name]).fetchone()
        run.equal(row, {"name": "inside", "who": "source"}, "SET LOCAL after the move to the lead")
    run.equal(connection.info.transaction_status, psycopg.pq.TransactionStatus.IDLE, "status")
    run.equal(connection.execute("SHOW application_name").fetchone()["application_name"], "", "SET LOCAL is over")
    with contextlib.suppress(ZeroDivisionError), connection.transaction():
        connection.execute("DELETE FROM organization_scratch WHERE run = %s", [run.name])
        raise ZeroDivisionError
    run.equal(connection.execute("SELECT count(*) AS n FROM organization_scratch WHERE run = %s AND n = %s", [run.name, kept]).fetchone()["n"], 1, "rolled back DELETE")


def session_settings(connection):
    connection.execute("SET statement_timeout = '54321ms'")
    for _ in range(5):
        row = connection.execute(f"SELECT current_setting('statement_timeout') AS t, {WHO} FROM documents LIMIT 1").fetchone()
        run.who(row["who"])
        run.equal(row["t"], "54321ms", f"SET on {row['who']}")
    connection.execute("RESET statement_timeout")
    row = connection.execute(f"SELECT current_setting('statement_timeout') AS t, {WHO} FROM documents LIMIT 1").fetchone()
    run.equal(row["t"], "0", f"RESET on {row['who']}")


def cancelled(connection):
    done = threading.Event()

    def cancel():
        while not done.wait(0.1):
            connection.cancel_safe()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        connection.execute(SLOW)
        raise AssertionError("not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    finally:
        done.set()
        canceller.join()
    run.document(connection.execute(ONE, [anyone()]).fetchone())


CHECKS = [whole_rows, user_types_as_parameters, users_and_roles, pipeline, pipeline_error, server_cursor_while_writing, held_cursor, copy,
          copy_that_fails, transactions, session_settings, cancelled]
connection = connect()


def call(check):
    global connection
    try:
        check(connection)
    except BaseException:
        connection.close()
        connection = connect()
        raise


run.loop(CHECKS, call)
run.finish()
