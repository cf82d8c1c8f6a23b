"""Stand-ins for a bad network: a proxy that cuts connections anywhere, and a server that says what it is told.

Both run in threads on a port of this machine, and answer one connection after the other, each in a thread of its own.
"""

import contextlib
import socket
import struct
import threading

PIECE = 65_536


class Listener:
    """`with Listener() as listener`: calls `talk(connection, number)` for each connection."""

    def __init__(self):
        self.connections = 0
        self._open, self._threads = set(), []

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection, self.connections))
                self.connections += 1
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection, number):
        with connection, contextlib.suppress(OSError):
            self.talk(connection, number)
        self._open.discard(connection)

    def talk(self, connection, number):
        raise NotImplementedError


def reset(connection):
    """Close a connection so that its other end gets an error, not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class CuttingProxy(Listener):
    """Forwards to `target`, but cuts the connections in `cuts`, which has two lengths for the number of a connection.

    It is cut when so many bytes of the request, or of the response, have been forwarded; None is all of it.
    """

    def __init__(self, target, cuts):
        super().__init__()
        host, port = target.removeprefix("http://").split(":")
        self.target, self.cuts = (host, int(port)), cuts
        self.forwarded = {}

    def talk(self, connection, number):
        up, down = self.cuts.get(number, (None, None))
        with socket.create_connection(self.target) as server:
            back = threading.Thread(target=self._back, args=(server, connection, number, down))
            back.start()
            self._forward(connection, server, up, (number, "request"))
            if up is not None:
                reset(connection)
            back.join(30)

    def _back(self, server, connection, number, limit):
        if limit == 0:
            with contextlib.suppress(OSError):
                server.recv(1, socket.MSG_PEEK)  # the server has answered, and nobody hears it
        self._forward(server, connection, limit, (number, "response"))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _forward(self, source, target, limit, name):
        left = limit
        with contextlib.suppress(OSError):
            while left != 0 and (data := source.recv(PIECE if left is None else min(left, PIECE))):
                target.sendall(data)
                self.forwarded[name] = self.forwarded.get(name, 0) + len(data)
                left = None if left is None else left - len(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class RudeServer(Listener):
    """Reads whole requests, and answers each with what `answer(line, headers, body)` gives: pieces of bytes.

    A piece that is None resets the connection there; an event is waited for. Each connection has one request.
    """

    def __init__(self, answer):
        super().__init__()
        self.answer, self.requests = answer, []

    def talk(self, connection, number):
        line, headers, body = read_request(connection)
        self.requests.append((line, headers, body))
        for piece in self.answer(line, headers, body):
            if piece is None:
                return reset(connection)
            if isinstance(piece, threading.Event):
                assert piece.wait(30)
            else:
                connection.sendall(piece)
        return None


def read_request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in fields)}
    while len(body) < int(headers.get("content-length", 0)):
        body += received(connection)
    return line, headers, body


def received(connection):
    data = connection.recv(PIECE)
    if not data:
        raise ConnectionResetError
    return data


def http(body, status="200 OK", content_type="application/json", length=None, **headers):
    """The bytes of a response, after which the connection closes."""
    fields = {"Content-Type": content_type, "Content-Length": str(len(body) if length is None else length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()} | {"Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
