"""A client of the Model Context Protocol, as an agent has one."""

import asyncio
import json
from pathlib import Path

from mcp import ClientSession
from mcp.client.stdio import stdio_client


def called(server, tool, **arguments):
    """Call a tool of a server that is started for it; its text, and whether it is an error."""

    async def call():
        with (Path(server.cwd) / "server.log").open("a") as log:
            async with stdio_client(server, errlog=log) as streams, ClientSession(*streams) as session:
                await session.initialize()
                return await session.call_tool(tool, arguments)

    answer = asyncio.run(call())
    return answer.content[0].text, answer.is_error


def said(server, tool, **arguments):
    """Call a tool that answers in JSON."""
    text, error = called(server, tool, **arguments)
    assert not error, text
    return json.loads(text)
