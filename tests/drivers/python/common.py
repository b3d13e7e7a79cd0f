"""What every Python driver shares: where to connect, the rows to expect, the loop, the report."""
import contextlib, datetime, decimal, enum, faulthandler, json, os, random, subprocess, time, traceback, uuid, zlib

HOST, PORT = os.environ["CF_HOST"], int(os.environ["CF_PORT"])
DATABASE, USER, PASSWORD = os.environ["CF_DATABASE"], os.environ["CF_USER"], os.environ["CF_PASSWORD"]
DIRECT_PORT = int(os.environ["CF_DIRECT_PORT"])
MODE, SECONDS, SCRATCH = os.environ["CF_MODE"], float(os.environ["CF_SECONDS"]), os.environ["CF_SCRATCH"]
DSN = f"host={HOST} port={PORT} dbname={DATABASE} user={USER} password={PASSWORD}"
KINDS = ["draft", "report", "letter", "memo", "contract", "minutes", "invoice"]

faulthandler.dump_traceback_later(SECONDS * 3 + 25)  # says where it hangs, shortly before the runner ends it
with open(os.environ["CF_EXPECTED"], encoding="utf-8") as file:
    _all = json.load(file)
DOCUMENTS = {row["id"]: row for row in _all["documents"]}
USERS = {row["id"]: row for row in _all["users"]}
VERSIONS = _all["versions"]
# Ends by itself after some seconds: a cancel request that arrives between two messages is lost, on a plain server too.
SLOW = "SELECT count(*) FROM documents a, documents b, documents c, (VALUES (1), (2), (3), (4)) v"
MANY = 5  # reported errors after which a driver stops


def canonical(value):
    """A driver's value in the form of expected.sql."""
    match value:
        case enum.Enum():
            return value.value
        case None | bool() | int() | float() | str():
            return value
        case decimal.Decimal() | uuid.UUID():
            return str(value)
        case datetime.datetime():
            return round(value.timestamp() * 1000)
        case datetime.date():
            return value.isoformat()
        case bytes() | memoryview() | bytearray():
            return bytes(value).hex()
        case dict():
            return {key: canonical(item) for key, item in value.items()}
        case list() | tuple():
            return [canonical(item) for item in value]
    if hasattr(value, "lower") and hasattr(value, "upper"):
        return [value.lower, value.upper]
    try:
        return [canonical(item) for item in value]
    except TypeError:
        raise TypeError(f"no canonical form of {value!r}") from None


@contextlib.contextmanager
def tables_of_pgbench():
    """Only one driver at a time makes, drops or dumps tables; the lock is the source's, so that it holds across processes."""
    env = {**os.environ, "PGHOST": HOST, "PGPORT": str(DIRECT_PORT), "PGUSER": USER, "PGDATABASE": DATABASE, "PGPASSWORD": PASSWORD}
    with subprocess.Popen(["psql", "-XqAt"], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guard:
        guard.stdin.write("SELECT pg_advisory_lock(7);\n\\echo locked\n")
        guard.stdin.flush()
        while (line := guard.stdout.readline()) and line.strip() != "locked":
            pass
        yield


class Run:
    """Counts operations, who answered and what went wrong."""

    def __init__(self, name):
        self.name = f"{name}-{MODE}-{os.getpid()}"
        seed = zlib.crc32(f"{os.environ['CF_SEED']} {name} {MODE}".encode())
        self.dice = random.Random(seed)
        print(f"{self.name}: seed {seed}")
        self.operations = self.errors = self.n = 0
        self.sides, self.messages = {"source": 0, "target": 0}, []
        self.restart_clock()

    def restart_clock(self):
        self.deadline = time.monotonic() + SECONDS

    def next(self):
        """A number that this run has not used in organization_scratch."""
        self.n += 1
        return self.n

    def who(self, side):
        assert side in self.sides, f"who answered? {side!r}"
        self.sides[side] += 1
        return side

    def document(self, row):
        """Checks a whole row of documents that ends in who answered; returns that."""
        row = dict(row)
        side = self.who(row.pop("who"))
        self.equal({key: canonical(value) for key, value in row.items()}, DOCUMENTS[row["id"]], f"document by {side}")
        return side

    def equal(self, got, expected, what):
        if got != expected:
            if isinstance(got, dict) and got.keys() == expected.keys():
                differing = [key for key in got if got[key] != expected[key]]
                got, expected = {key: got[key] for key in differing}, {key: expected[key] for key in differing}
            raise AssertionError(f"{what}: got {got!r:.500}, expected {expected!r:.500}")
        self.operations += 1

    def failed(self, what, error):
        self.errors += 1
        if len(self.messages) < MANY:
            frame = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename.endswith("_driver.py")), None)
            where = f" at {os.path.basename(frame.filename)}:{frame.lineno}" if frame else ""
            self.messages.append(f"{what}{where}: {type(error).__name__}: {error}")

    def going(self):
        return time.monotonic() < self.deadline and self.errors < MANY

    def loop(self, checks, call):
        """Every check once, then by chance until the time is up. `call` runs one; it may raise anything."""
        queue = list(checks)
        while queue or self.going():
            check = queue.pop(0) if queue else self.dice.choice(checks)
            try:
                call(check)
            except Exception as error:  # noqa: BLE001: whatever a driver raises is the result
                self.failed(check.__name__, error)

    def finish(self):
        print(json.dumps({"operations": self.operations, **self.sides, "errors": self.errors, "messages": self.messages}))
        raise SystemExit(1 if self.errors else 0)
