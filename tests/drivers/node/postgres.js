'use strict'
// postgres.js: describe first, type fetch at connect, transactions, savepoints, pipelining, cursors, COPY.
const { pipeline } = require('node:stream/promises')
const { Readable } = require('node:stream')
const postgres = require('postgres')
const { Run, canonical, connection, documents, versions, KINDS, COLUMNS, WHO } = require('./common.js')

const run = new Run('postgres.js')
const noticed = []
const sql = postgres({ ...connection, username: connection.user, max: 4, onnotice: (n) => noticed.push(n.message) })
const columns = sql.unsafe(`${COLUMNS}, ${WHO}`)
const one = (on = sql) => on`SELECT ${columns} FROM documents WHERE id = ${run.anyone()}`

async function wholeRows() {
  run.document((await one())[0])
  for (const row of await sql`SELECT ${columns} FROM documents WHERE id = ANY (${[1, run.anyone(), run.anyone()]})`) run.document(row)
}

async function manyAtOnce() { // pipelined on few connections
  const ids = Array.from({ length: 30 }, () => run.anyone())
  const results = await Promise.all(ids.map((id) => sql`SELECT ${columns} FROM documents WHERE id = ${id}`))
  results.forEach(([row], k) => { run.equal(Number(row.id), ids[k], 'order in a pipeline'); run.document(row) })
}

async function enumsAndArrays() {
  const kinds = [KINDS[run.dice(7)], KINDS[run.dice(7)]]
  const rows = await sql`SELECT ${columns} FROM documents WHERE kind = ANY (${kinds}::doc_kind[]) OR kind = ${kinds[0]} ORDER BY id`
  run.equal(rows.map((r) => run.document(r) && Number(r.id)), [...documents.values()].filter((d) => kinds.includes(d.kind)).map((d) => d.id), 'by array of enum')
  const expected = documents.get(run.anyone())
  const found = await sql`SELECT ${columns} FROM documents WHERE kinds = ${expected.kinds ?? ['memo', 'minutes']} ORDER BY id LIMIT 2`
  found.forEach((row) => run.equal(row.kinds, expected.kinds ?? ['memo', 'minutes'], 'by a whole array'))
}

async function unprepared() {
  run.document((await sql.unsafe(`SELECT ${COLUMNS}, ${WHO} FROM documents WHERE id = $1`, [run.anyone()]))[0])
  const results = await sql.unsafe(`SELECT 1 AS a; SELECT ${COLUMNS}, ${WHO} FROM documents WHERE id = ${run.anyone()}`).simple()
  run.equal(results[0][0].a, 1, 'several statements')
  run.document(results[1][0])
}

async function describe() {
  const { types, columns: described } = await sql`SELECT kind, kinds FROM documents WHERE kind = ${'memo'} AND id = ${1}`.describe()
  const [oids] = await sql`SELECT 'doc_kind'::regtype::oid AS kind, 'doc_kind[]'::regtype::oid AS kinds`
  run.equal([types, described.map((c) => c.type)], [[oids.kind, 20], [oids.kind, oids.kinds]], 'described OIDs')
}

async function readsThenWrites() {
  const [kept, lost] = [run.next(), run.next()]
  await sql.begin(async (sql) => {
    const first = run.document((await one(sql))[0])
    run.equal(run.document((await one(sql))[0]), first, 'side within a transaction')
    const row = { run: run.name, n: kept, kind: 'letter', kinds: ['letter'], payload: sql.json({ a: [1] }), data: Buffer.from('\0x'), amount: '1.50' }
    const [got] = await sql`INSERT INTO organization_scratch ${sql(row)} RETURNING kind, kinds, payload, data, amount`
    run.equal(canonical(got), { kind: 'letter', kinds: ['letter'], payload: { a: [1] }, data: '0078', amount: '1.50' }, 'RETURNING')
    await run.fails('23505', 'savepoint', sql.savepoint(async (sql) => {
      await sql`INSERT INTO organization_scratch (run, n) VALUES (${run.name}, ${lost})`
      await sql`INSERT INTO organization_scratch (run, n) VALUES (${run.name}, ${kept})`
    }))
    run.equal(run.document((await one(sql))[0]), 'source', 'side after the write')
  })
  const rows = await sql`SELECT n FROM organization_scratch WHERE run = ${run.name} AND n IN ${sql([kept, lost])}`
  run.equal(rows.map((r) => r.n), [kept], 'after a rolled back savepoint')
}

async function readOnlyTransaction() {
  await sql.begin('isolation level repeatable read read only', async (sql) => {
    const rows = await Promise.all(Array.from({ length: 5 }, () => one(sql))) // pipelined
    run.equal(new Set(rows.map(([row]) => run.document(row))).size, 1, 'sides of a snapshot')
  })
}

async function cursor() {
  const seen = []
  for await (const rows of sql`SELECT ${columns} FROM documents ORDER BY id`.cursor(33)) rows.forEach((row) => { run.document(row); seen.push(Number(row.id)) })
  run.equal(seen, [...documents.keys()], 'rows of a cursor')
  let count = 0
  await sql`SELECT document_id::int, version, state, body FROM document_versions ORDER BY 1, 2`.forEach((row) => run.equal(row, versions[count++], 'row'))
  run.equal(count, versions.length, 'rows one by one')
}

// On a connection of its own: postgres.js pipelines other queries right behind the COPY of a shared one, and so breaks it.
const copy = () => sql.begin(async (sql) => {
  const chunks = []
  for await (const chunk of await sql`COPY (SELECT id, kind FROM documents ORDER BY id) TO STDOUT`.readable()) chunks.push(chunk)
  run.equal(Buffer.concat(chunks).toString(), [...documents.values()].map((d) => `${d.id}\t${d.kind}\n`).join(''), 'COPY TO')
  const numbers = Array.from({ length: 200 }, () => run.next())
  await pipeline(Readable.from(numbers.map((n) => `${run.name}\t${n}\tmemo\n`)), await sql`COPY organization_scratch (run, n, kind) FROM STDIN`.writable())
  const [{ count }] = await sql`SELECT count(*)::int FROM organization_scratch WHERE run = ${run.name} AND n = ANY (${numbers})`
  run.equal(count, 200, 'COPY FROM')
})

async function errors() {
  await run.fails('42703', 'unknown column', sql`SELECT nothing FROM documents`)
  await run.fails('22012', 'division', sql`SELECT 1 / (id - ${7}) FROM documents WHERE id = ${7}`)
  run.document((await one())[0])
}

async function notices() {
  const slug = `${run.name}-${run.next()}`
  await sql`INSERT INTO organizations (slug, name) VALUES (${slug}, 'noted')`
  run.equal(noticed.includes(`organization ${slug} created`), true, 'notice')
}

run.loop([wholeRows, manyAtOnce, enumsAndArrays, unprepared, describe, readsThenWrites, readOnlyTransaction, cursor, copy, errors, notices], 4)
  .then(() => sql.end({ timeout: 5 }))
  .catch((error) => run.failed('main', error))
  .then(() => run.finish())
