"""PEFT's configuration of an adapter: rank and alpha of each layer, by untrusted patterns.

PEFT matches `rank_pattern` and `alpha_pattern` as regular expressions with Python's `re`, which backtracks: `(a+)+$`
takes 2ⁿ steps for a name of n letters. Here, all patterns of a file become one automaton of RE2, which does not
backtrack and reads each character of a name once. A character costs at most as many steps as the automaton has states.
As counted repetition is refused, it has one state for each character of the patterns, so the time is at most the
letters of the names times PATTERNS_MAX_CHARS. RE2 has no backreferences and no lookaround, so these are refused. Names,
dots, alternatives, classes, `*`, `+` and `?` have the same meaning.

Source: peft 0.21.2, utils/other.py, get_pattern_key; google/re2, re2/set.h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import re2

from hidream.errors import CheckpointError

PATTERNS_MAX_CHARS = 2**17
"""Of all patterns together; the names of all layers of the published model have 65,000."""
MEMORY_BYTES = 2**25
"""That the automaton may take. RE2 begins its states anew when they fill it."""
ACCEPTED = "accepted: names, or regular expressions without {}, references and lookaround"


class PeftSettings:
    """Rank and alpha by layer; without values there is no configuration.

    Raises CheckpointError when a pattern cannot be matched in linear time.
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = values or {}
        self._ranks, self._alphas = (
            _Patterns(name, self._values.get(name)) for name in ("rank_pattern", "alpha_pattern")
        )

    def states(self, key: str) -> bool:
        """Whether the configuration has something to say."""
        return key in self._values

    def get(self, key: str) -> object:
        """What it says; None where it says nothing."""
        return self._values.get(key)

    def rank(self, layer: str) -> float:
        """The rank of a layer. Raises CheckpointError when it is no positive number."""
        return _number("rank", layer, self._ranks.of(layer, self._values.get("r")))

    def alpha(self, layer: str) -> float:
        """The alpha of a layer. Raises CheckpointError when it is no positive number."""
        usual = self._values.get("lora_alpha", self._values.get("alpha"))
        return _number("alpha", layer, self._alphas.of(layer, usual))


class _Patterns:
    """What layers' names match, and the value of the first pattern that does."""

    def __init__(self, name: str, patterns: object) -> None:
        self._name = name
        if not isinstance(patterns or {}, dict):
            raise _unreadable(name, patterns, "it is not an object")
        self._patterns: dict[str, Any] = patterns if isinstance(patterns, dict) else {}
        self._automaton = self._compiled() if self._patterns else None

    def of(self, layer: str, default: object) -> object:
        """The value of a layer."""
        if self._automaton is None:
            return default
        found = self._automaton.Match(layer)
        if len(self._patterns) not in found:  # the last matches anything: without it, RE2 had no memory for an answer
            raise _unreadable(self._name, self._patterns, "it takes too much memory")
        first = min(found)
        return default if first == len(self._patterns) else list(self._patterns.values())[first]

    def _compiled(self) -> Any:  # noqa: ANN401 - re2 has no types
        if sum(map(len, self._patterns)) > PATTERNS_MAX_CHARS:
            raise _unreadable(self._name, self._patterns, f"it has more than {PATTERNS_MAX_CHARS:,} characters")
        options = re2.Options()
        options.max_mem, options.log_errors = MEMORY_BYTES, False
        automaton = re2.Set.FullMatchSet(options)
        for pattern in self._patterns:
            if "{" in pattern:
                raise _unreadable(self._name, self._patterns, f"{pattern!r:.100} repeats a counted number of times")
            try:
                re2.compile(pattern, options)  # alone, so that no bracket of one closes what comes before it
                automaton.Add(rf"(?:.*\.)?(?:{pattern})")
            except (re2.error, UnicodeEncodeError) as error:
                raise _unreadable(self._name, self._patterns, f"{pattern!r:.100} is not understood") from error
        automaton.Add(r"(?s:.*)")
        try:
            automaton.Compile()
        except re2.error as error:
            raise _unreadable(self._name, self._patterns, "it takes too much memory") from error
        return automaton


def _number(name: str, layer: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise CheckpointError(
            f"PEFT's configuration of the LoRA gives {layer} the {name} {value!r:.100}; accepted: a number"
        )
    return float(value)


def _unreadable(name: str, patterns: object, why: str) -> CheckpointError:
    shown = f"the {name} {patterns!r:.100}"
    return CheckpointError(f"PEFT's configuration of the LoRA has {shown}, which cannot be read: {why}; {ACCEPTED}")
