"""Converts argv[1] to argv[2] in the type argv[3], and writes the peak memory beside the mapped files, in bytes.

Less what was in use before: the interpreter and its libraries. A file of its own, so that it is measured alone.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from hidream.formats.convert import convert, format_of
from hidream.formats.targets import ConversionOptions


def anonymous_bytes() -> int:
    """What the system cannot take back: resident pages that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main() -> None:
    source, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options = ConversionOptions(format_of(target), kind, shard_bytes=2**30)
    done = threading.Event()
    before = peak = anonymous_bytes()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    convert(source, target, options, lambda kind, shapes: {}, lambda path, so_far, total: None)
    done.set()
    watcher.join()
    sys.stdout.write(str(peak - before))


if __name__ == "__main__":
    main()
