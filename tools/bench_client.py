"""A client for tools/bench that speaks just enough of the Postgres protocol."""

import base64
import hashlib
import hmac
import secrets
import socket
import struct

PASSWORD = "bench-secret"


class LoginError(Exception):
    """The server's refusal, or an answer that is none."""


def login(port, user="bench", database="bench"):
    """A logged-in socket; SCRAM-SHA-256 or trust, as the server likes."""
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    try:
        startup = struct.pack("!I", 196608) + b"user\0" + user.encode() + b"\0database\0" + database.encode() + b"\0\0"
        client.sendall(struct.pack("!I", len(startup) + 4) + startup)
        reader = client.makefile("rb")
        kind, body = receive(reader)
        if kind == b"R" and body[:4] == struct.pack("!I", 10):
            scram(client, reader)
            kind, body = receive(reader)
        if kind != b"R" or body != bytes(4):
            raise LoginError(f"login answered with {kind!r} {body!r}")
        while receive(reader)[0] != b"Z":
            pass
        return client
    except BaseException:
        client.close()
        raise


def scram(client, reader):
    nonce = base64.b64encode(secrets.token_bytes(18)).decode()
    first = f"n=,r={nonce}"
    client.sendall(frame(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first) + 3) + b"n,," + first.encode()))
    kind, body = receive(reader)
    if kind != b"R" or body[:4] != struct.pack("!I", 11):
        raise LoginError(f"SCRAM answered with {kind!r} {body!r}")
    challenge = body[4:].decode()
    fields = dict(part.split("=", 1) for part in challenge.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    last = f"c=biws,r={fields['r']}"
    signature = hmac.digest(hashlib.sha256(key).digest(), f"{first},{challenge},{last}".encode(), "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature))).decode()
    client.sendall(frame(b"p", f"{last},p={proof}".encode()))
    kind, body = receive(reader)
    if kind != b"R" or body[:4] != struct.pack("!I", 12):
        raise LoginError(f"SCRAM ended with {kind!r} {body!r}")


def query(client, sql):
    client.sendall(frame(b"Q", sql + b"\0"))
    reader = client.makefile("rb")
    while (answer := receive(reader))[0] != b"Z":
        if answer[0] == b"E":
            raise LoginError(f"{sql!r}: {answer[1]!r}")


def frame(kind, body):
    return kind + struct.pack("!I", len(body) + 4) + body


def receive(reader):
    head = reader.read(5)
    if len(head) < 5:
        raise LoginError("the connection was closed")
    body = reader.read(struct.unpack("!I", head[1:])[0] - 4)
    if head[:1] == b"E":
        raise LoginError(body.replace(b"\0", b" ").decode(errors="replace"))
    return head[:1], body
