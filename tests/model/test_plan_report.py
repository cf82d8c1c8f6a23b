"""Memory plans in words: the page, the command, and the report if nothing fits."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import pytest
from memory_tables import GGUF_BITS, memory_tables

from hidream import cli
from hidream.model.memory.candidates import Hardware, Options
from hidream.model.memory.footprint import PUBLISHED
from hidream.model.memory.plan import plan
from hidream.model.memory.plan_report import reasons, report, verdict

PAGE = Path(__file__).parents[2] / "docs" / "MEMORY.md"


@pytest.mark.slow
def test_the_page_has_the_tables_of_the_plan():
    found = dict(re.findall(r"<!-- ([\w-]+) -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.DOTALL))
    assert found == memory_tables(), "run `make tables`"


def test_the_bits_of_gguf_are_the_packages():
    for name, bits in GGUF_BITS.items():
        values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert bits == 8 * nbytes / values


def test_every_decision_has_a_line():
    lines = list(reasons(plan(Hardware.card(12, 64), PUBLISHED, Options())))
    assert lines[0].startswith("transformer in int8, streamed: ")
    assert "compute is short of" in lines[0]
    assert "int8 is short of" in lines[0]
    assert [line.split(":")[0] for line in lines[1:4]] == ["modulations and captions", "encoders", "decoding"]
    mapped = list(reasons(plan(Hardware.cpu(24), PUBLISHED, Options())))
    assert "hidream convert" in mapped[-1]


def test_a_verdict_says_what_would_work():
    answer = plan(Hardware.card(8, 16), PUBLISHED, Options())
    text = verdict(answer, PUBLISHED)
    assert text.startswith("does not fit: ")
    assert text.endswith("accepted: a card of 12 GB; 32 GB of host memory")
    assert plan(Hardware.card(12, 16), PUBLISHED, Options()).fits
    assert plan(Hardware.card(8, 32), PUBLISHED, Options()).fits
    assert text in report(answer, PUBLISHED)
    exact = plan(Hardware.card(12, 48), PUBLISHED, Options(fewest_bits=16))
    assert "weights in 4 bits" in verdict(exact, PUBLISHED)
    assert verdict(plan(Hardware.card(12, 64), PUBLISHED, Options()), PUBLISHED).startswith("fits: ")


@pytest.mark.parametrize("machine", [Hardware.cpu(1), Hardware("mps", 0, 2**30), Hardware.card(8, 2)])
def test_memory_that_the_system_takes_is_none_and_never_less(machine):
    assert machine.device_budget == machine.device_bytes
    assert machine.host_budget == 0
    answer = plan(machine, PUBLISHED, Options())
    assert not answer.fits
    assert "0.0 GB available" in report(answer, PUBLISHED)


def test_the_command_prints_a_table_for_several_cards_and_a_report_for_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HIDREAM_HOME", str(tmp_path))
    assert cli.main(["info", "--plan", "--memory", "12,16,24,48,80", "--host-memory", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["memory", "12 GB", "16 GB", "24 GB", "48 GB", "80 GB"]
    assert cli.main(["info", "--plan", "--memory", "24", "--device", "cpu", "--size", "512*512"]) == 0
    assert "transformer in int8, mapped" in capsys.readouterr().out
    assert cli.main(["info", "--plan", "--memory", "16", "--size", "x"]) == 1
    with pytest.raises(SystemExit):
        cli.main(["info", "--plan", "--memory", "12,x"])
    assert "accepted: gigabytes such as 12,16,24" in capsys.readouterr().err
