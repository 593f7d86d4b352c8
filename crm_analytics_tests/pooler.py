"""A pooler that works by transaction, as PgBouncer does in that mode, and makes sure that every transaction notices.

A client's next transaction always comes to another session than its last one. PgBouncer itself is tried by hand
(docs/scale.md): no package index that the tests install from has it.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import psycopg
from psycopg.conninfo import make_conninfo

_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
#: What a client is told of the server's settings.
_TOLD = ("server_version", "server_encoding", "client_encoding", "DateStyle", "TimeZone", "integer_datetimes",
         "standard_conforming_strings", "IntervalStyle")  # fmt: skip
#: After these messages the server answers and says that it is ready: a query, and the end of a batch of others.
_ANSWERED = (b"Q", b"S")


class Pooler:
    """Gives each transaction of any client the session that was idle for longest.

    Args:
        url: of the database behind it, whose login every client has.
        sessions: how many there are at most.
    """

    def __init__(self, url: str, sessions: int) -> None:
        self._url, self._sessions = url, sessions
        self._idle: queue.Queue[Session] = queue.Queue()
        for _ in range(sessions):
            self._idle.put(Session(url))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        #: As the clients take it; a password isn't asked for.
        self.url = make_conninfo(
            url, host="127.0.0.1", port=self._listener.getsockname()[1], password="", sslmode="disable"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Closes the sessions that are idle and takes no client any more."""
        self._listener.close()
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError, EOFError):
            if not _greeted(client):
                return
            session = self._idle.get()
            try:
                client.sendall(session.greeting)
            finally:
                self._idle.put(session)
            while (message := _read(client))[:1] != b"X":
                session = self._idle.get()
                try:
                    session.transaction(client, message)
                except (OSError, EOFError):
                    session.close()
                    session = Session(self._url)
                    raise
                finally:
                    self._idle.put(session)


class Session:
    """A session of the server, opened by libpq, which knows how to log in, and used without it."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._socket = socket.socket(fileno=self._connection.fileno())
        self._socket.setblocking(True)
        told = ((name, self._connection.info.parameter_status(name)) for name in _TOLD)
        messages = [_message(b"S", f"{name}\0{value}\0".encode()) for name, value in told]
        #: Logged in, the settings, a key with which nothing can be canceled, and ready.
        self.greeting = b"".join(
            [_message(b"R", bytes(4)), *messages, _message(b"K", bytes(8)), _message(b"Z", b"I")]
        )

    def transaction(self, client: socket.socket, message: bytes) -> None:
        """Passes on the client's messages and the server's answers until no transaction is open."""
        while True:
            self._socket.sendall(message)
            if message[:1] in _ANSWERED:
                answer = b""
                while answer[:1] != b"Z":
                    answer = _read(self._socket)
                    client.sendall(answer)
                if answer[5:] == b"I":
                    return
            message = _read(client)
            if message[:1] == b"X":
                raise EOFError

    def close(self) -> None:
        """Ends the session."""
        self._socket.detach()
        self._connection.close()


@contextmanager
def pooled(url: str, sessions: int = 3) -> Iterator[str]:
    """Puts a pooler before a database; gives the address for its clients."""
    pooler = Pooler(url, sessions)
    try:
        yield pooler.url
    finally:
        pooler.close()


def _greeted(client: socket.socket) -> bool:
    """Reads how a client begins; returns whether it wants a session."""
    while True:
        (length,) = struct.unpack("!I", _exactly(client, 4))
        body = _exactly(client, length - 4)
        (code,) = struct.unpack("!I", body[:4])
        if code in (_SSL_REQUEST, _GSS_REQUEST):
            client.sendall(b"N")
        else:
            return bool(code != _CANCEL_REQUEST)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _read(stream: socket.socket) -> bytes:
    """Reads one message: its kind, its length, and what it says."""
    head = _exactly(stream, 5)
    return head + _exactly(stream, struct.unpack("!I", head[1:])[0] - 4)


def _exactly(stream: socket.socket, size: int) -> bytes:
    """Reads `size` bytes.

    Raises:
        EOFError: at the end of the stream.
    """
    found = bytearray()
    while len(found) < size:
        part = stream.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return bytes(found)
