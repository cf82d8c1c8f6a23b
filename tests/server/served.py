"""The application on a real socket, in the test's own event loop."""

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import uvicorn

from hidream.server.app import create_app
from hidream.server.edge.connections import Connections


@asynccontextmanager
async def served(api):
    """Give a client of an Api's application, with its key."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app, protocol = create_app(api.service), Connections(1000).connection
        config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=url, headers=api.bearer, timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            api.database.changes.stop()
            await running


def told(text):
    """Read server-sent events: (name, id, data) of each, comments left out."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "event" in fields:
            events.append((fields["event"], fields["id"], fields["data"]))
    return events
