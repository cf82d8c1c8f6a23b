"""What attackers send: small image files that need much work, and sockets that keep others waiting."""

import asyncio
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

from PIL import Image

LARGE_PX = 8192


def thin_png():
    """8000 × 8 pixels: scaled to cover 1024² before it is cut, a million columns."""
    return _saved(Image.new("RGB", (8000, 8), "red"), "PNG")


def large_png():
    """8192² pixels in 8 KB: one colour, in one bit."""
    return _saved(Image.new("1", (LARGE_PX, LARGE_PX)), "PNG", optimize=True)


def many_scans(scans=400):
    """A progressive JPEG of 8192² pixels whose scans come again and again."""
    data = _saved(Image.new("L", (LARGE_PX, LARGE_PX), 128), "JPEG", progressive=True)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    ends = [*starts[1:], len(data) - 2]
    tables = data.rfind(b"\xff\xc4", starts[0], starts[1])
    again = data[tables if tables > 0 else starts[1] : ends[1]]
    return data[: ends[1]] + again * (scans - 2) + data[ends[1] :]


def small_png():
    """An ordinary image."""
    return _saved(Image.new("RGB", (512, 512), "blue"), "PNG")


def _saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def upload(http, data, name="picture"):
    """Upload an image in the old way; the answer as it is."""
    return http.post("/api/v3/media/upload/binary", files={"file": (name, data)})


@contextmanager
def connections(url, count):
    """Open so many connections and say nothing."""
    address = urlsplit(url)
    opened = []
    try:
        for _ in range(count):
            connection = socket.socket()
            opened.append(connection)
            connection.setblocking(False)
            connection.connect_ex((address.hostname, address.port))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def put_unknown(url, megabytes):
    """Begin to put a file to a name that nobody announced, and send on until the server has enough of it."""
    address = urlsplit(url)
    chunk = b"x" * 2**20
    with closing(socket.create_connection((address.hostname, address.port), timeout=60)) as connection:
        head = f"PUT /uploads/{'A' * 43}.png HTTP/1.1\r\nHost: a\r\nContent-Length: {megabytes * 2**20}\r\n\r\n"
        try:
            connection.sendall(head.encode())
            for _ in range(megabytes):
                connection.sendall(chunk)
            return connection.recv(4096)
        except OSError:
            return b""


def put_to_unknown_names(url, megabytes, count):
    """Do so on many connections at once."""
    with ThreadPoolExecutor(count) as together:
        list(together.map(lambda _: put_unknown(url, megabytes), range(count)))


def abandoned_listings(url, key, count):
    """Ask for pages of 100 with all inputs, and hang up."""
    address = urlsplit(url)
    body = json.dumps({"page_size": 100, "include_inputs": True})
    head = f"POST /api/v3/predictions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"

    async def one():
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head.encode())
        await writer.drain()
        writer.close()

    async def all_of_them():
        for start in range(0, count, 100):
            await asyncio.gather(*(one() for _ in range(min(100, count - start))), return_exceptions=True)

    asyncio.run(all_of_them())


def many_values(megabytes):
    """JSON of so many MB that is a million small values."""
    return b'{"prompt": "x", "junk": [' + b"[1]," * (megabytes * 2**18) + b"1]}"


def form_of_one_character(megabytes):
    """Content type and body of a form whose boundary is everywhere."""
    return "multipart/form-data; boundary=a", b"\r\n--a" * (megabytes * 2**20 // 5)
