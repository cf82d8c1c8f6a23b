"""Build the site of the documents: `python docs/site/build.py [FOLDER]`, or `make docs`.

It gathers the pages of `docs/` and of the repository's root in a folder of its own, adds the references that come from
the code, and runs zensical on them in strict mode: a broken link or anchor is an error. Then it puts the Markdown of
each page beside it, and `llms.txt` at the top. Without FOLDER the site goes where the server and the wheel find it.
"""

from __future__ import annotations

import os
import posixpath
import pydoc
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import hidream
import http_reference
from hidream.server import model_registry, openapi
from hidream.settings.tables import Models, Server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITE = ROOT / "src" / "hidream" / "server" / "site"
PROJECT = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
"""Pages of the repository's root that are part of the site."""

PUBLIC = [f"hidream.{name}" for name in hidream.__all__ if name != "__version__"]
"""The classes and modules that the Python reference describes."""

_LINK = re.compile(r"\[([^]\n]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```(\w+) .*$", re.MULTILINE)


def main() -> int:
    """Build the site, and return the exit status."""
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pages = gather(work / "docs")
        shutil.copy(HERE / "zensical.toml", work)
        (work / "src").symlink_to(ROOT / "src")
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict"], cwd=work, env=os.environ | {"NO_COLOR": "1"}
        )
        if done.returncode:
            return done.returncode
        beside(work / "site", pages)
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(work / "site", site)
    size_mb = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
    print(f"{site}: {len(pages)} pages, {size_mb:.1f} MB")
    return 0


def gather(docs: Path) -> dict[str, str]:
    """Write all pages and images below `docs`, and return the Markdown of each page by its path in the site."""
    places = {f"docs/{path.relative_to(ROOT / 'docs')}": path for path in sorted((ROOT / "docs").rglob("*.*"))}
    images = {name: path for name, path in places.items() if path.suffix in (".png", ".jpg")}
    sources = {name: path for name, path in places.items() if path.suffix == ".md"}
    sources |= {name: ROOT / name for name in PROJECT}
    site_paths = {name: in_site(name) for name in [*images, *sources]}
    pages = {site_paths[name]: adapted(name, path.read_text(), site_paths) for name, path in sources.items()}
    models = model_registry.served(Models())
    described = openapi.document("http://127.0.0.1:8000", models, Server().upload_max_bytes)
    pages["reference/http.md"] = http_reference.page(described)
    pages["reference/python.md"] = python_page(lambda path: f"::: {path}")
    for name, text in pages.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(text)
    for name, path in images.items():
        (docs / site_paths[name]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, docs / site_paths[name])
    return pages


def in_site(name: str) -> str:
    """Say where a file of the repository is in the site."""
    if name == "README.md":  # by its own name it would become an index
        return "project/overview.md"
    return name.removeprefix("docs/") if name.startswith("docs/") else f"project/{name}"


def adapted(name: str, text: str, site_paths: dict[str, str]) -> str:
    """Adapt the Markdown of a page to the site: its links, and code blocks whose first line says how they are tested.

    A link to a file that is no page becomes its path in the repository. Raises FileNotFoundError if there is none.
    """

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if path in site_paths:
            return f"[{words}]({posixpath.relpath(site_paths[path], posixpath.dirname(in_site(name)) or '.')}{anchor})"
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{name} links to {target}, which does not exist")
        return f"`{path}`" if words.strip("`") in (path, f"{path}/") else f"{words} (`{path}`)"

    return _LINK.sub(link, _FENCE.sub(r"```\1", text))


def python_page(describe: Callable[[str], str]) -> str:
    """Render the Python reference; `describe` turns the path of a module or class into its description."""
    lines = ["# Python reference", "", "The names that `import hidream` offers; [the library](../LIBRARY.md) and"]
    lines += ["[the clients](../CLIENTS.md#hidream) have examples.", ""]
    return "\n".join([*lines, *(f"{describe(path)}\n" for path in PUBLIC)])


def plain(path: str) -> str:
    """Render a module or class as the text that `help` shows, for readers of the Markdown."""
    shown = getattr(hidream, path.removeprefix("hidream."))
    return f"## {path}\n\n```text\n{pydoc.plain(pydoc.render_doc(shown)).strip()}\n```"


def beside(site: Path, pages: dict[str, str]) -> None:
    """Write the Markdown of each page beside it, and `llms.txt`: a list of all pages for language models."""
    pages = pages | {"reference/python.md": python_page(plain)}
    for name, text in pages.items():
        (site / name).write_text(text)
    project = tomllib.loads((HERE / "zensical.toml").read_text())["project"]
    lines = [f"# {project['site_name']}", "", f"> {project['site_description']}"]
    for part in project["nav"]:
        ((title, entries),) = part.items()
        lines += ["", f"## {title}", ""]
        for entry in [part] if isinstance(entries, str) else entries:
            ((words, path),) = entry.items()
            lines.append(f"- [{words}]({path}): {summary(pages[path])}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n")


def summary(text: str) -> str:
    """Return the first sentence of a page's first paragraph."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    paragraph = next(part for part in map(str.strip, prose.split("\n\n")) if part[:1] not in ("#", "!", "<", "|", ""))
    return re.split(r"(?<=[.:])\s", " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", paragraph).split()))[0].rstrip(":")


if __name__ == "__main__":
    sys.exit(main())
