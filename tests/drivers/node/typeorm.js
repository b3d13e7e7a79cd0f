'use strict'
// TypeORM: entities with enums and relations, query builder, query runner transactions, upsert. Synchronising is off.
require('reflect-metadata')
const { DataSource, EntitySchema, In } = require('typeorm')
const { Run, canonical, connection, documents, users, versions, KINDS, WHO } = require('./common.js')

const run = new Run('typeorm')
const STATES = ['open', 'closed', 'archived']
const ROLES = ['reader', 'editor', 'admin']
const column = (type, more) => ({ type, ...more })
const oneOf = (enumName, values, more) => column('enum', { enum: values, enumName, ...more })
const number = { to: (value) => value, from: (value) => (value === null ? null : Number(value)) }

const User = new EntitySchema({ name: 'User', tableName: 'users', columns: {
  id: column('int', { primary: true }), name: column('text'), email: column('text'), role: oneOf('account_role', ROLES), joined: column('timestamptz'),
  settings: column('json', { nullable: true }), score: column('numeric', { nullable: true }), groups: column('int', { array: true }), group_id: column('int') } })
const Version = new EntitySchema({ name: 'Version', tableName: 'document_versions', columns: {
  document_id: column('bigint', { primary: true, transformer: number }), version: column('int', { primary: true }), state: oneOf('doc_state', STATES), body: column('text') },
  relations: { document: { type: 'many-to-one', target: 'Document', joinColumn: { name: 'document_id' } } } })
const Document = new EntitySchema({ name: 'Document', tableName: 'documents', columns: {
  id: column('bigint', { primary: true, transformer: number }), owner_id: column('int'), title: column('varchar'), kind: oneOf('doc_kind', KINDS),
  kinds: oneOf('doc_kind', KINDS, { array: true, nullable: true }), state: oneOf('doc_state', STATES), price: column('numeric'), ratio: column('float8'), meta: column('jsonb'),
  digest: column('bytea'), uid: column('uuid'), day: column('date'), created_at: column('timestamptz'), note: column('text', { nullable: true }) },
  relations: { owner: { type: 'many-to-one', target: 'User', joinColumn: { name: 'owner_id' } }, versions: { type: 'one-to-many', target: 'Version', inverseSide: 'document' } } })
const Scratch = new EntitySchema({ name: 'Scratch', tableName: 'organization_scratch', columns: {
  id: column('bigint', { primary: true, generated: 'identity' }), run: column('text'), n: column('int'), kind: oneOf('doc_kind', KINDS, { nullable: true }),
  kinds: oneOf('doc_kind', KINDS, { array: true, nullable: true }), amount: column('numeric', { nullable: true }), payload: column('jsonb', { nullable: true }) } })
const Organization = new EntitySchema({ name: 'Organization', tableName: 'organizations', columns: {
  id: column('bigint', { primary: true, generated: 'identity' }), slug: column('text'), name: column('text'), kind: oneOf('doc_kind', KINDS, { default: 'memo' }) },
  relations: { members: { type: 'one-to-many', target: 'Member', inverseSide: 'organization', cascade: true } } })
const Member = new EntitySchema({ name: 'Member', tableName: 'organization_members', columns: {
  id: column('bigint', { primary: true, generated: 'identity' }), name: column('text'), role: oneOf('account_role', ROLES) },
  relations: { organization: { type: 'many-to-one', target: 'Organization', joinColumn: { name: 'organization_id' }, onDelete: 'CASCADE' } } })

const source = new DataSource({ type: 'postgres', ...connection, username: connection.user, synchronize: false, installExtensions: false,
  entities: [User, Version, Document, Scratch, Organization, Member], poolSize: 4, extra: { max: 4 } })

function sameDocument({ owner, versions: loaded, ...got }) {
  const { size, pages, ...expected } = documents.get(got.id)
  run.equal(canonical(got), expected, 'document')
  if (owner) run.user(owner)
  if (loaded) run.equal(loaded.map((v) => ({ ...v })).sort((a, b) => a.version - b.version), versions.filter((v) => v.document_id === got.id), 'versions')
}
const who = async (manager) => run.who((await manager.query(`SELECT ${WHO} FROM documents LIMIT 1`))[0].who)

async function entities() {
  sameDocument(await source.manager.findOneByOrFail(Document, { id: run.anyone() }))
  sameDocument(await source.manager.findOneOrFail(Document, { where: { id: run.anyone() }, relations: { owner: true, versions: true } }))
  const kinds = [KINDS[run.dice(7)], KINDS[run.dice(7)]]
  const found = await source.manager.find(Document, { where: { kind: In(kinds), state: 'open' }, order: { id: 'ASC' } })
  run.equal(found.map((d) => d.id), [...documents.values()].filter((d) => kinds.includes(d.kind) && d.state === 'open').map((d) => d.id), 'by enums')
  found.forEach((d) => sameDocument(d))
  await who(source.manager)
}

async function queryBuilder() {
  const role = ROLES[run.dice(3)]
  const [rows, count] = await source.getRepository(Document).createQueryBuilder('d').innerJoinAndSelect('d.owner', 'u')
    .where('u.role = :role', { role }).orderBy('d.id').take(10).getManyAndCount()
  const expected = [...documents.values()].filter((d) => users.get(d.owner_id).role === role)
  run.equal([rows.map((d) => d.id), count], [expected.slice(0, 10).map((d) => d.id), expected.length], 'join')
  rows.forEach(sameDocument)
}

async function transaction() {
  const slug = `${run.name}-${run.next()}`
  await source.transaction(async (manager) => {
    const first = await who(manager)
    sameDocument(await manager.findOneByOrFail(Document, { id: run.anyone() }))
    run.equal(await who(manager), first, 'side within a transaction')
    await manager.save(Organization, { slug, name: 'Ünit', members: [{ name: 'a', role: 'admin' }, { name: 'b', role: 'reader' }] })
    run.equal(await who(manager), 'source', 'side after the write')
  })
  const saved = await source.manager.findOneOrFail(Organization, { where: { slug }, relations: { members: true }, order: { members: { id: 'ASC' } } })
  run.equal([saved.kind, saved.members.map((m) => m.role)], ['memo', ['admin', 'reader']], 'saved entities')
  saved.members[0].role = 'editor'
  await source.manager.save(Organization, saved)
  run.equal((await source.manager.findOneByOrFail(Member, { id: saved.members[0].id })).role, 'editor', 'changed member')
  await source.manager.delete(Organization, { id: saved.id })
  run.equal(await source.manager.countBy(Member, { organization: { id: saved.id } }), 0, 'cascade')
}

async function queryRunner() {
  const runner = source.createQueryRunner()
  const n = run.next()
  try {
    await runner.connect()
    await runner.startTransaction('REPEATABLE READ')
    const first = await who(runner.manager)
    await runner.startTransaction() // a savepoint
    await runner.manager.insert(Scratch, { run: run.name, n })
    await runner.rollbackTransaction()
    run.equal(await who(runner.manager), first, 'side of a snapshot')
    run.equal(await runner.manager.countBy(Scratch, { run: run.name, n }), 0, 'rolled back savepoint')
    await runner.commitTransaction()
  } finally {
    if (runner.isTransactionActive) await runner.rollbackTransaction()
    await runner.release()
  }
}

async function upsert() {
  const rows = Array.from({ length: 20 }, (_, i) => ({ run: run.name, n: run.next(), kind: KINDS[i % 7], kinds: ['memo'], amount: '1', payload: { i } }))
  await source.manager.insert(Scratch, rows.slice(0, 10).map((row) => ({ ...row })))
  await source.manager.upsert(Scratch, rows.map((row) => ({ ...row, amount: '2.5' })), ['run', 'n'])
  const got = await source.manager.find(Scratch, { where: { run: run.name, n: In(rows.map((r) => r.n)) }, order: { n: 'ASC' } })
  run.equal(got.map(({ id, ...row }) => row), rows.map((row) => ({ ...row, amount: '2.5' })), 'upserted rows')
}

async function introspection() {
  const runner = source.createQueryRunner()
  try {
    const table = await runner.getTable('documents')
    run.equal([table.findColumnByName('kind').enum, table.findColumnByName('kinds').isArray], [KINDS, true], 'introspected table')
  } finally {
    await runner.release()
  }
}

source.initialize()
  .then(() => run.loop([entities, queryBuilder, transaction, queryRunner, upsert, introspection], 4))
  .then(() => source.destroy())
  .catch((error) => run.failed('main', error))
  .then(() => run.finish())
