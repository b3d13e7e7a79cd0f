'use strict'
// node-postgres: pool, named queries, types by OID, cursors, streams, transactions.
const { Pool, types } = require('pg')
const Cursor = require('pg-cursor')
const QueryStream = require('pg-query-stream')
const { Run, canonical, connection, documents, users, versions, KINDS, COLUMNS, WHO } = require('./common.js')

const run = new Run('node-postgres')
const ONE = `SELECT ${COLUMNS}, ${WHO} FROM documents WHERE id = $1`
const oids = {}
const pool = new Pool({ ...connection, max: 5 })
pool.on('error', (error) => run.failed('idle client', error))

async function transaction(work) {
  const client = await pool.connect()
  try {
    await client.query('BEGIN')
    const result = await work(client)
    await client.query('COMMIT')
    client.release()
    return result
  } catch (error) {
    client.release(true)
    throw error
  }
}

async function wholeRows() {
  run.document((await pool.query(ONE, [run.anyone()])).rows[0])
  const { rows } = await pool.query(`SELECT ${COLUMNS}, ${WHO} FROM documents WHERE id BETWEEN $1 AND $1 + 20`, [run.anyone()])
  rows.forEach((row) => run.document(row))
}

async function namedQueries() {
  for (let k = 0; k < 5; k++) {
    run.document((await pool.query({ name: 'one document', text: ONE, values: [run.anyone()] })).rows[0])
    const role = ['reader', 'editor', 'admin'][run.dice(3)]
    const { rows } = await pool.query({ name: 'users by role', text: 'SELECT * FROM users WHERE role = $1 ORDER BY id', values: [role] })
    run.equal(rows.map((row) => row.id), [...users.values()].filter((u) => u.role === role).map((u) => u.id), 'users by role')
    rows.forEach((row) => run.user(row))
  }
}

async function oidsAreThoseOfTheCatalog() {
  for (let k = 0; k < 5; k++) {
    const { fields, rows } = await pool.query(`SELECT kind, kinds, state, size, pages, ${WHO} FROM documents WHERE id = $1`, [run.anyone()])
    const side = run.who(rows[0].who)
    run.equal(fields.slice(0, 5).map((f) => f.dataTypeID), [oids.doc_kind, oids._doc_kind, oids.doc_state, oids.doc_size, oids.page_range], `type OIDs by ${side}`)
    run.equal(fields[0].tableID, oids.documents, `table OID by ${side}`)
  }
}

async function arraysAndEnums() {
  const kinds = [KINDS[run.dice(7)], KINDS[run.dice(7)]]
  const { rows } = await pool.query('SELECT id FROM documents WHERE kind = ANY ($1) ORDER BY id', [kinds])
  run.equal(rows.map((r) => Number(r.id)), [...documents.values()].filter((d) => kinds.includes(d.kind)).map((d) => d.id), 'by array of enum')
}

const readsThenWrites = () => transaction(async (client) => {
  const n = run.next()
  const first = run.document((await client.query(ONE, [run.anyone()])).rows[0])
  run.equal(run.document((await client.query(ONE, [run.anyone()])).rows[0]), first, 'side within a transaction')
  await client.query('SAVEPOINT a')
  const inserted = await client.query({ name: 'insert', text: 'INSERT INTO organization_scratch (run, n, kind, kinds, payload, data) VALUES ($1, $2, $3, $4, $5, $6) RETURNING n, kind, kinds, payload, data',
    values: [run.name, n, 'memo', ['memo', 'draft'], { a: 1 }, Buffer.from([0, 255])] })
  run.equal(canonical(inserted.rows[0]), { n, kind: 'memo', kinds: ['memo', 'draft'], payload: { a: 1 }, data: '00ff' }, 'RETURNING')
  run.equal(run.document((await client.query(ONE, [run.anyone()])).rows[0]), 'source', 'side after the write')
  await run.fails('23505', 'second insert', client.query('INSERT INTO organization_scratch (run, n) VALUES ($1, $2)', [run.name, n]))
  await client.query('ROLLBACK TO SAVEPOINT a')
  run.equal((await client.query('SELECT 1 FROM organization_scratch WHERE run = $1 AND n = $2', [run.name, n])).rowCount, 0, 'rolled back')
})

const cursorWhileWriting = () => transaction(async (client) => {
  const cursor = client.query(new Cursor(`SELECT ${COLUMNS}, ${WHO} FROM documents ORDER BY id`))
  const seen = []
  for (let rows; (rows = await cursor.read(50)).length;) {
    rows.forEach((row) => { run.document(row); seen.push(Number(row.id)) })
  }
  await cursor.close()
  run.equal(seen, [...documents.keys()], 'rows of a cursor')
  await client.query('INSERT INTO organization_scratch (run, n) VALUES ($1, $2)', [run.name, run.next()])
})

async function abandonedCursor() {
  const client = await pool.connect()
  const cursor = client.query(new Cursor(`SELECT ${COLUMNS}, ${WHO} FROM documents ORDER BY id`))
  run.equal((await cursor.read(10)).map((row) => run.document(row)).length, 10, 'first rows of a cursor')
  await cursor.close()
  run.document((await client.query(ONE, [run.anyone()])).rows[0])
  client.release()
}

async function stream() {
  const client = await pool.connect()
  let k = 0
  for await (const row of client.query(new QueryStream('SELECT document_id::int, version, state, body FROM document_versions ORDER BY 1, 2', [], { batchSize: 40 }))) {
    run.equal(row, versions[k++], 'streamed row')
  }
  run.equal(k, versions.length, 'streamed rows')
  client.release()
}

async function severalStatements() {
  const results = await pool.query(`SET application_name = 'node'; SELECT ${COLUMNS}, ${WHO} FROM documents WHERE id = ${run.anyone()}; RESET application_name`)
  run.equal(results.map((r) => r.command), ['SET', 'SELECT', 'RESET'], 'commands of one query')
  run.document(results[1].rows[0])
}

async function errorsLeaveTheClientUsable() {
  const client = await pool.connect()
  await run.fails('42703', 'unknown column', client.query('SELECT nothing FROM documents'))
  await run.fails('22012', 'division', client.query('SELECT 1 / (id - $1) FROM documents WHERE id = $1', [7]))
  await run.fails('22P02', 'no such label', client.query('SELECT * FROM documents WHERE kind = $1', ['nothing']))
  run.document((await client.query(ONE, [run.anyone()])).rows[0])
  client.release()
}

async function main() {
  const { rows } = await pool.query(`SELECT typname AS name, oid FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typname IN ('doc_kind', '_doc_kind', 'doc_state', 'doc_size', 'page_range')
    UNION ALL SELECT 'documents', 'public.documents'::regclass::oid`)
  rows.forEach(({ name, oid }) => { oids[name] = oid })
  types.setTypeParser(oids._doc_kind, types.getTypeParser(1009)) // as an array of text
  types.setTypeParser(20, (text) => text) // bigint stays text
  const checks = [wholeRows, namedQueries, oidsAreThoseOfTheCatalog, arraysAndEnums, readsThenWrites, cursorWhileWriting, abandonedCursor, stream, severalStatements, errorsLeaveTheClientUsable]
  await run.loop(checks, 5)
  await pool.end()
  run.finish()
}
main().catch((error) => { run.failed('main', error); run.finish() })
