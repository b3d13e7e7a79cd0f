"""SQLAlchemy 2 on psycopg and on asyncpg: ORM, relationships, transactions, savepoints, bulk insert, upsert, reflection."""
import asyncio, contextlib, enum

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from common import DATABASE, DOCUMENTS, HOST, KINDS, PASSWORD, PORT, USER, USERS, VERSIONS, Run, canonical

run = Run("sqlalchemy")
Kind = enum.Enum("Kind", {name: name for name in KINDS})
State = enum.Enum("State", {name: name for name in ("open", "closed", "archived")})
Role = enum.Enum("Role", {name: name for name in ("reader", "editor", "admin")})
KIND, STATE, ROLE = (pg.ENUM(python, name=name, create_type=False) for python, name in ((Kind, "doc_kind"), (State, "doc_state"), (Role, "account_role")))
WHO = sa.func.current_setting("cluster_name").label("who")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    role: Mapped[Role] = mapped_column(ROLE)
    joined = mapped_column(sa.DateTime(timezone=True))
    settings = mapped_column(sa.JSON)
    score = mapped_column(sa.Numeric(8, 2))
    groups = mapped_column(pg.ARRAY(sa.Integer))
    group_id: Mapped[int]


class Version(Base):
    __tablename__ = "document_versions"
    document_id: Mapped[int] = mapped_column(sa.ForeignKey("documents.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[State] = mapped_column(STATE)
    body: Mapped[str]


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    title: Mapped[str]
    kind: Mapped[Kind] = mapped_column(KIND)
    kinds = mapped_column(pg.ARRAY(KIND))
    state: Mapped[State] = mapped_column(STATE)
    price = mapped_column(sa.Numeric(14, 4))
    ratio: Mapped[float]
    meta = mapped_column(pg.JSONB)
    digest: Mapped[bytes]
    uid = mapped_column(sa.Uuid)
    day = mapped_column(sa.Date)
    created_at = mapped_column(sa.DateTime(timezone=True))
    note: Mapped[str | None]
    owner: Mapped[User] = relationship()
    versions: Mapped[list[Version]] = relationship(order_by=Version.version)


class Scratch(Base):
    __tablename__ = "organization_scratch"
    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    run: Mapped[str]
    n: Mapped[int]
    who: Mapped[str | None]
    kind = mapped_column(KIND)
    kinds = mapped_column(pg.ARRAY(KIND))
    amount = mapped_column(sa.Numeric)
    payload = mapped_column(pg.JSONB)


class Member(Base):
    __tablename__ = "organization_members"
    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    organization_id: Mapped[int] = mapped_column(sa.ForeignKey("organizations.id"))
    name: Mapped[str]
    role: Mapped[Role] = mapped_column(ROLE)


class Organization(Base):
    __tablename__ = "organizations"
    id: Mapped[int] = mapped_column(sa.Identity(), primary_key=True)
    slug: Mapped[str]
    name: Mapped[str]
    kind = mapped_column(KIND, server_default="memo")
    members: Mapped[list[Member]] = relationship(cascade="all, delete-orphan")


def anyone():
    return run.dice.randint(1, len(DOCUMENTS))


def same(entity, expected, what):
    run.equal({c.key: canonical(getattr(entity, c.key)) for c in sa.inspect(entity).mapper.column_attrs},
              {c.key: expected[c.key] for c in sa.inspect(entity).mapper.column_attrs}, what)


def who(session):
    return run.who(session.execute(sa.select(WHO).select_from(Document).limit(1)).scalar_one())


def orm_reads(connection):
    session, i = Session(connection), anyone()
    document = session.execute(sa.select(Document).where(Document.id == i).options(selectinload(Document.versions))).scalar_one()
    same(document, DOCUMENTS[i], "document")
    for version, expected in zip(document.versions, [v for v in VERSIONS if v["document_id"] == i], strict=True):
        same(version, expected, "version")
    same(document.owner, USERS[document.owner_id], "owner")
    side = who(session)
    run.equal(who(session), side, "side within a transaction")
    kinds = run.dice.sample(list(Kind), 2)
    found = session.scalars(sa.select(Document).where(Document.kind.in_(kinds), Document.state == State.open).order_by(Document.id)).all()
    run.equal([d.id for d in found], [d["id"] for d in DOCUMENTS.values() if Kind(d["kind"]) in kinds and d["state"] == "open"], "by enums")
    for row in session.execute(sa.select(User.role, sa.func.count()).join(Document, Document.owner_id == User.id).group_by(User.role)):
        run.equal(row[1], sum(USERS[d["owner_id"]]["role"] == row[0].value for d in DOCUMENTS.values()), "join of two repositories")


def orm_writes(connection):
    session, slug = Session(connection), f"{run.name}-{run.next()}"
    same(session.get(Document, i := anyone()), DOCUMENTS[i], "document")
    session.add(Organization(slug=slug, name="Ünit", members=[Member(name="a", role=Role.admin), Member(name="b", role=Role.reader)]))
    session.flush()
    run.equal(who(session), "source", "side after the write")
    session.expire_all()
    organization = session.scalars(sa.select(Organization).where(Organization.slug == slug)).one()
    run.equal([organization.kind, [m.role for m in organization.members]], [Kind.memo, [Role.admin, Role.reader]], "written entities")
    with contextlib.suppress(sa.exc.IntegrityError), session.begin_nested():
        session.add(Organization(slug=slug, name="twice"))
        session.flush()
        raise AssertionError("no error")
    organization.members.pop()
    session.flush()
    run.equal(session.scalar(sa.select(sa.func.count()).select_from(Member).where(Member.organization_id == organization.id)), 1, "orphan deleted")
    session.delete(organization)
    session.flush()


def bulk(connection):
    session = Session(connection)
    rows = [{"run": run.name, "n": run.next(), "kind": run.dice.choice(list(Kind)), "kinds": [Kind.memo], "amount": i, "payload": {"i": [i]}} for i in range(300)]
    ids = session.scalars(sa.insert(Scratch).returning(Scratch.id, sort_by_parameter_order=True), rows).all()
    run.equal(len(set(ids)), 300, "returned keys")
    upsert = pg.insert(Scratch).values(rows[:50])
    session.execute(upsert.on_conflict_do_update(index_elements=["run", "n"], set_={"amount": upsert.excluded.amount + 1}))
    got = session.execute(sa.select(Scratch.n, Scratch.kind, Scratch.kinds, Scratch.amount, Scratch.payload).where(Scratch.id.in_(ids)).order_by(Scratch.n)).all()
    run.equal([canonical(list(row)) for row in got],
              [canonical([r["n"], r["kind"], r["kinds"], str(r["amount"] + (k < 50)), r["payload"]]) for k, r in enumerate(rows)], "bulk rows")


def stream(connection):
    seen = [row.id for row in connection.execution_options(yield_per=30).execute(sa.select(Document.id, Document.kind).order_by(Document.id))]
    run.equal(seen, list(DOCUMENTS), "streamed rows")


def reflection(connection):
    inspector = sa.inspect(connection)
    columns = {c["name"]: c["type"] for c in inspector.get_columns("documents") if c["name"] not in ("size", "pages")}
    run.equal([columns["kind"].name, columns["kind"].enums, columns["kinds"].item_type.name, str(columns["price"])], ["doc_kind", KINDS, "doc_kind", "NUMERIC(14, 4)"], "reflected types")
    run.equal([fk["referred_table"] for fk in inspector.get_foreign_keys("document_versions")], ["documents"], "foreign keys")
    run.equal({"documents", "users", "organizations", "app_settings"} <= set(inspector.get_table_names()), True, "tables")
    table = sa.Table("organization_members", sa.MetaData(), autoload_with=connection)
    run.equal(list(table.primary_key.columns.keys()), ["id"], "primary key")


CHECKS = [orm_reads, orm_writes, bulk, stream, reflection]
URL = {"username": USER, "password": PASSWORD, "host": HOST, "port": PORT, "database": DATABASE}
engine = sa.create_engine(sa.URL.create("postgresql+psycopg", **URL), pool_pre_ping=True)
asynchronous = create_async_engine(sa.URL.create("postgresql+asyncpg", **URL), pool_pre_ping=True)
loop = asyncio.new_event_loop()


async def on_asyncpg(check):
    async with asynchronous.begin() as connection:
        await asyncio.wait_for(connection.run_sync(check), 15)


def call(check):
    with engine.begin() as connection:
        check(connection)
    if check is not stream:  # asyncpg's server-side cursors have an interface of their own
        loop.run_until_complete(on_asyncpg(check))


run.loop(CHECKS, call)
loop.run_until_complete(asynchronous.dispose())
engine.dispose()
run.finish()
