"""asyncpg: statement cache, type introspection and codecs, cursors, savepoints, COPY both ways, many tasks."""
import asyncio, csv, decimal, io, json, time

import asyncpg

from common import DATABASE, DOCUMENTS, HOST, KINDS, PASSWORD, PORT, SLOW, USER, USERS, VERSIONS, Run, canonical

run = Run("asyncpg")
WHO = "current_setting('cluster_name') AS who"
ONE = f"SELECT *, {WHO} FROM documents WHERE id = $1"


async def init(connection):
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


def anyone():
    return run.dice.randint(1, len(DOCUMENTS))


async def whole_rows(connection):
    run.document(await connection.fetchrow(ONE, anyone()))
    for row in await connection.fetch(f"SELECT *, {WHO} FROM documents WHERE id BETWEEN $1 AND $1 + 20", anyone()):
        run.document(row)


async def user_types_as_parameters(connection):
    kinds, expected = run.dice.sample(KINDS, 2), DOCUMENTS[anyone()]
    rows = await connection.fetch(f"SELECT *, {WHO} FROM documents WHERE kind = $1 OR kind = ANY ($2::doc_kind[])", kinds[0], kinds)
    run.equal(sorted(row["id"] for row in rows), [i for i, d in DOCUMENTS.items() if d["kind"] in kinds], "by enum and array of enum")
    run.document(run.dice.choice(rows))
    rows = await connection.fetch(f"SELECT *, {WHO} FROM documents WHERE size = $1::doc_size", tuple(expected["size"]))
    run.equal([row["id"] for row in rows], [expected["id"]], "by composite")
    low, high = expected["pages"]
    rows = await connection.fetch(f"SELECT *, {WHO} FROM documents WHERE pages = $1", asyncpg.Range(low, high))
    run.equal([row["id"] for row in rows], [expected["id"]], "by range")
    rows = await connection.fetch("SELECT id, kinds FROM documents WHERE kinds = $1 ORDER BY id", expected["kinds"] or ["memo", "minutes"])
    run.equal([r["id"] for r in rows], [i for i, d in DOCUMENTS.items() if d["kinds"] == (expected["kinds"] or ["memo", "minutes"])], "by array")


async def users_and_join(connection):
    rows = await connection.fetch("SELECT * FROM users WHERE role = $1 ORDER BY id", run.dice.choice(["reader", "editor", "admin"]))
    for row in rows:
        run.equal({k: canonical(v) for k, v in row.items()}, USERS[row["id"]], "user")
    rows = await connection.fetch(
        f"SELECT d.id, d.kind, u.role, u.score, {WHO} FROM documents d JOIN users u ON u.id = d.owner_id WHERE u.id = $1", run.dice.randint(1, 50))
    for row in rows:
        run.who(row["who"])
        user = USERS[DOCUMENTS[row["id"]]["owner_id"]]
        run.equal([row["kind"], row["role"], canonical(row["score"])], [DOCUMENTS[row["id"]]["kind"], user["role"], user["score"]], "join")


async def prepared_statements_live_on(connection):
    statement = await connection.prepare(f"SELECT kind, kinds, size, pages, {WHO} FROM documents WHERE id = $1")
    for _ in range(8):
        i = anyone()
        row = await statement.fetchrow(i)
        run.who(row["who"])
        run.equal(canonical(list(row.values())[:4]), [DOCUMENTS[i][k] for k in ("kind", "kinds", "size", "pages")], "prepared")
        await asyncio.sleep(0.01)


async def reads_then_writes(connection):
    i, n = anyone(), run.next()
    async with connection.transaction():
        first = run.document(await connection.fetchrow(ONE, i))
        run.equal(run.document(await connection.fetchrow(ONE, anyone())), first, "side within a transaction")
        await connection.execute("INSERT INTO organization_scratch (run, n, who, kind, kinds, role, size, pages, amount, payload) "
                                 "SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10",
                                 run.name, n, first, "memo", ["memo", "draft"], "editor", (1, None, "archived"), asyncpg.Range(1, 3),
                                 decimal.Decimal("1.50"), {"a": [1, None]})
        run.equal(run.document(await connection.fetchrow(ONE, i)), "source", "side after the write")
    row = await connection.fetchrow("SELECT * FROM organization_scratch WHERE run = $1 AND n = $2", run.name, n)
    run.equal(canonical(list(row.values())[4:11]),
              ["memo", ["memo", "draft"], "editor", [1, None, "archived"], [1, 3], "1.50", {"a": [1, None]}], "written row")


async def repeatable_read_keeps_its_side(connection):
    async with connection.transaction(isolation="repeatable_read"):
        first = run.document(await connection.fetchrow(ONE, anyone()))
        await connection.execute("INSERT INTO organization_scratch (run, n) VALUES ($1, $2)", run.name, run.next())
        run.equal(run.document(await connection.fetchrow(ONE, anyone())), first, "side of a snapshot")
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        first = run.document(await connection.fetchrow(ONE, anyone()))
        run.equal(run.document(await connection.fetchrow(ONE, anyone())), first, "side of a read-only snapshot")


async def savepoints(connection):
    kept, lost = run.next(), run.next()
    async with connection.transaction():
        run.document(await connection.fetchrow(ONE, anyone()))
        try:
            async with connection.transaction():
                await connection.execute("INSERT INTO organization_scratch (run, n) VALUES ($1, $2)", run.name, lost)
                await connection.fetchval("SELECT 1 / (id - id) FROM documents LIMIT 1")
        except asyncpg.DivisionByZeroError:
            pass
        await connection.execute("INSERT INTO organization_scratch (run, n) VALUES ($1, $2)", run.name, kept)
    rows = await connection.fetch("SELECT n FROM organization_scratch WHERE run = $1 AND n = ANY ($2)", run.name, [kept, lost])
    run.equal([row["n"] for row in rows], [kept], "after a rolled back savepoint")


async def cursor_over_documents_while_writing(connection):
    seen = []
    async with connection.transaction():
        async for row in connection.cursor(f"SELECT *, {WHO} FROM documents ORDER BY id", prefetch=30):
            run.document(row)
            seen.append(row["id"])
            if row["id"] % 40 == 0:
                await connection.execute("INSERT INTO organization_scratch (run, n) VALUES ($1, $2)", run.name, run.next())
    run.equal(seen, list(DOCUMENTS), "rows of a cursor")


async def copy_out_and_in(connection):
    out = io.BytesIO()
    await connection.copy_from_query("SELECT document_id, version, state, body FROM document_versions WHERE document_id = ANY ($1) ORDER BY 1, 2",
                                     [3, 4], output=out, format="csv")
    rows = [[int(r[0]), int(r[1]), *r[2:]] for r in csv.reader(io.StringIO(out.getvalue().decode()))]
    run.equal(rows, [list(v.values()) for v in VERSIONS if v["document_id"] in (3, 4)], "COPY (query) TO")
    out = io.BytesIO()
    await connection.copy_from_table("documents", columns=["id", "title", "kind"], output=out, format="csv")
    run.equal(sorted((int(r[0]), r[1], r[2]) for r in csv.reader(io.StringIO(out.getvalue().decode()))),
              [(d["id"], d["title"], d["kind"]) for d in DOCUMENTS.values()], "COPY table TO")
    first = run.next()
    text = "".join(f"{run.name}\t{n}\tmemo\t{{draft,memo}}\t(1,2,open)\n" for n in [first, *(run.next() for _ in range(200))])
    run.equal(await connection.copy_to_table("organization_scratch", columns=["run", "n", "kind", "kinds", "size"], source=io.BytesIO(text.encode())),
              "COPY 201", "tag of COPY FROM")
    records = [(run.name, run.next(), "letter", ["letter"], (i, i, "closed"), decimal.Decimal(i)) for i in range(100)]
    await connection.copy_records_to_table("organization_scratch", columns=["run", "n", "kind", "kinds", "size", "amount"], records=records)
    rows = await connection.fetch("SELECT run, n, kind, kinds, size, amount FROM organization_scratch WHERE run = $1 AND n >= $2 ORDER BY n",
                                  run.name, records[0][1])
    run.equal([canonical(list(row.values())) for row in rows][:100], canonical(records), "binary COPY FROM")


async def errors_leave_the_session_usable(connection):
    for sql, code in [("SELECT nothing FROM documents", "42703"), ("SELECT 1 / (id - $1) FROM documents WHERE id = $1", "22012"),
                      ("INSERT INTO organization_members (organization_id, name, role) VALUES (-$1::int, '', 'admin')", "23503")]:
        try:
            await connection.fetch(sql, *([anyone()] if "$1" in sql else []))
            raise AssertionError(f"no error from {sql}")
        except asyncpg.PostgresError as error:
            run.equal(error.sqlstate, code, sql)
    run.document(await connection.fetchrow(ONE, anyone()))


async def default_repository(connection):
    run.equal(await connection.fetchval("SELECT value FROM app_settings WHERE key = $1", "greeting"), "hello", "a table of no repository")


async def cancelled(connection):
    """The driver's timeout sends a cancel request, which must reach the statement wherever it runs, and nothing else."""
    try:
        await connection.fetchval(SLOW, timeout=0.1)
        raise AssertionError("not cancelled")
    except asyncio.TimeoutError:
        run.document(await connection.fetchrow(ONE, anyone()))


async def listen(connection):
    channel, heard = f"drivers_{run.next()}", asyncio.Queue()

    def hear(_connection, _pid, _channel, payload):
        heard.put_nowait(payload)

    await connection.add_listener(channel, hear)
    await connection.execute("SELECT pg_notify($1, 'hello')", channel)
    run.document(await connection.fetchrow(ONE, anyone()))
    run.equal(await asyncio.wait_for(heard.get(), 5), "hello", "notification")
    await connection.remove_listener(channel, hear)


CHECKS = [whole_rows, user_types_as_parameters, users_and_join, prepared_statements_live_on, reads_then_writes,
          repeatable_read_keeps_its_side, savepoints, cursor_over_documents_while_writing, copy_out_and_in,
          errors_leave_the_session_usable, default_repository, cancelled, listen]


async def worker(pool, queue):
    while queue or run.going():
        check = queue.pop(0) if queue else run.dice.choice(CHECKS)
        try:
            async with pool.acquire() as connection:
                await asyncio.wait_for(check(connection), 15)
        except Exception as error:  # noqa: BLE001: whatever a driver raises is the result
            run.failed(check.__name__, error)


async def main():
    began = time.monotonic()
    async with asyncpg.create_pool(host=HOST, port=PORT, user=USER, password=PASSWORD, database=DATABASE, min_size=2, max_size=5, init=init) as pool:
        queue = list(CHECKS)
        await asyncio.gather(*(worker(pool, queue) for _ in range(5)))
    print(f"{time.monotonic() - began:.1f} s")


asyncio.run(main())
run.finish()
