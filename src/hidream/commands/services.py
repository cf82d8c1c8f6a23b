"""`hidream serve`, `api`, `worker` and `mcp`: processes that run until they are told to stop."""

from __future__ import annotations

from hidream.commands.grammar import Command, Flag, Given
from hidream.commands.setting_flags import SettingFlag, address_flags, model_flags
from hidream.commands.threads import let_threads_sleep
from hidream.settings.tables import Settings


def _serve(given: Given, config: Settings) -> int:
    from hidream.server.serve import run

    return run(config, with_worker=True)


def _api(given: Given, config: Settings) -> int:
    from hidream.server.serve import run

    return run(config, with_worker=False)


def _worker(given: Given, config: Settings) -> int:
    let_threads_sleep()
    from hidream.worker.main import run

    return run(config, with_parent=given.with_parent)


def _mcp(given: Given, config: Settings) -> int:
    from hidream.mcp_server import run

    return run(config)


SERVE = Command(
    _serve,
    [*address_flags(), *model_flags()],
    service=True,
    extras="torch,server",
    examples=["hidream serve", "hidream serve --port 8080 --model HiDream-I1-Dev --llama Meta-Llama-3.1-8B-Instruct"],
)
API = Command(_api, address_flags(), service=True, extras="server", examples=["hidream api --host 0.0.0.0"])
WORKER = Command(
    _worker,
    [Flag(["--with-parent"], is_flag=True, help="end when standard input is closed"), *model_flags()],
    service=True,
    extras="torch,server",
    examples=["hidream worker --device cuda:1"],
)
MCP = Command(
    _mcp,
    [SettingFlag("mcp", "url", "base URL of a hidream server")],
    service=True,
    extras="mcp",
    examples=["hidream mcp --url http://127.0.0.1:8000"],
)
