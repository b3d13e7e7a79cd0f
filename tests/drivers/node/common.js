'use strict'
// What every Node driver shares: where to connect, the rows to expect, the loop, the report.
const assert = require('node:assert/strict')
const fs = require('node:fs')

const env = process.env
const all = JSON.parse(fs.readFileSync(env.CF_EXPECTED, 'utf8'))
const by = (rows) => new Map(rows.map((row) => [row.id, row]))
const connection = { host: env.CF_HOST, port: Number(env.CF_PORT), database: env.CF_DATABASE, user: env.CF_USER, password: env.CF_PASSWORD }
const KINDS = ['draft', 'report', 'letter', 'memo', 'contract', 'minutes', 'invoice']
const MANY = 5 // reported errors after which a driver stops

// Composite and range come in a form that every client reads alike.
const COLUMNS = `id, owner_id, title, kind, kinds, state, json_build_array((size).width, (size).height, (size).state) AS size,
  json_build_array(lower(pages), upper(pages)) AS pages, price, ratio, meta, digest, uid, day::text AS day, created_at, note`
const WHO = `current_setting('cluster_name') AS who`

class Run {
  constructor(name) {
    this.name = `${name}-${env.CF_MODE}-${process.pid}`
    this.seed = [...`${env.CF_SEED} ${name} ${env.CF_MODE}`].reduce((hash, c) => (Math.imul(hash, 31) + c.charCodeAt(0)) | 0, 7)
    console.log(`${this.name}: seed ${this.seed}`)
    Object.assign(this, { operations: 0, errors: 0, n: 0, sides: { source: 0, target: 0 }, messages: [] })
    this.deadline = Date.now() + Number(env.CF_SECONDS) * 1000
  }

  dice(below) { // mulberry32: Math.random cannot be seeded
    this.seed = (this.seed + 0x6d2b79f5) | 0
    let t = Math.imul(this.seed ^ (this.seed >>> 15), 1 | this.seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % below
  }

  anyone() { return 1 + this.dice(all.documents.length) }
  next() { return ++this.n }

  equal(got, expected, what) {
    try {
      assert.deepEqual(got, expected)
    } catch (error) {
      throw new Error(`${what}: ${error.message.slice(0, 600)}`)
    }
    this.operations++
  }

  who(side) {
    if (!(side in this.sides)) throw new Error(`who answered? ${side}`)
    this.sides[side]++
    return side
  }

  // Checks a whole row of documents that ends in who answered; returns that.
  document({ who, ...row }) {
    const got = canonical(row)
    for (const key of ['id', 'owner_id']) got[key] = Number(got[key])
    this.equal(got, documents.get(got.id), `document by ${who}`)
    return this.who(who)
  }

  user(row) {
    const got = canonical(row)
    this.equal(got, users.get(got.id), 'user')
  }

  async fails(code, what, promise) {
    let error
    await promise.catch((e) => { error = e })
    if (!error) throw new Error(`no error from ${what}`)
    this.equal(error.code ?? error.driverError?.code, code, what)
  }

  failed(what, error) {
    this.errors++
    const where = (error?.stack ?? '').split('\n').find((line) => line.includes('tests/drivers/node') && !line.includes('common.js')) ?? ''
    if (this.messages.length < MANY) this.messages.push(`${what} ${where.trim().split('/').pop()}: ${error?.message ?? error} ${error?.code ?? ''}`)
  }

  // Every check once, then by chance until the time is up, by several workers at once.
  async loop(checks, workers) {
    const queue = [...checks]
    const going = () => Date.now() < this.deadline && this.errors < MANY
    await Promise.all(Array.from({ length: workers }, async () => {
      while (queue.length || going()) {
        const check = queue.shift() ?? checks[this.dice(checks.length)]
        let timer
        const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('hung for 15 s')), 15000) })
        await Promise.race([check(), late]).catch((error) => this.failed(check.name, error))
        clearTimeout(timer)
      }
    }))
  }

  finish() {
    console.log(JSON.stringify({ operations: this.operations, ...this.sides, errors: this.errors, messages: this.messages }))
    process.exit(this.errors ? 1 : 0)
  }
}

function canonical(value) {
  if (value instanceof Date) return value.getTime()
  if (Buffer.isBuffer(value)) return value.toString('hex')
  if (Array.isArray(value)) return value.map(canonical)
  if (value && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, canonical(item)]))
  return value
}

const documents = by(all.documents)
const users = by(all.users)
module.exports = { Run, canonical, connection, documents, users, versions: all.versions, KINDS, COLUMNS, WHO }
