"""Runs in a client's own process: does what each line of stdin asks, and writes the result as a line to stdout.

The other end is `driven.py`. What the client itself prints goes to stderr.
"""

import inspect
import json
import os
import sys


def answer(functions):
    """Serve `{name: function}` until stdin ends."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            said = {"gives": functions[asked["do"]](**asked["with"])}
        except Exception as error:
            kinds = [kind.__name__ for kind in inspect.getmro(type(error))]
            said = {"raises": kinds, "says": str(error)}
        print(json.dumps(said), file=told, flush=True)
