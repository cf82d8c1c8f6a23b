"""Files of prompts become rows, rows and flags become jobs."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from hidream.commands import jobs, prompt_rows
from hidream.commands.jobs import Axis
from hidream.commands.prompt_rows import Row
from hidream.errors import InvalidInput


def rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return [dict(row.parameters) for row in prompt_rows.read_rows(tmp_path / name)]


def test_lines_jsonl_and_csv_say_the_same(tmp_path, monkeypatch):
    expected = [{"prompt": "a fox, red", "seed": 7, "num_inference_steps": 8}, {"prompt": "an owl"}]
    jsonl = '{"prompt": "a fox, red", "seed": 7, "steps": 8}\n\n{"prompt": "an owl", "seed": null}\n'
    assert rows(tmp_path, "p.jsonl", jsonl) == expected
    assert rows(tmp_path, "p.txt", jsonl) == expected  # by its content
    assert rows(tmp_path, "p.csv", 'prompt,seed,num_inference_steps\n"a fox, red",7,8\nan owl,,\n') == expected
    assert rows(tmp_path, "p.tsv", "\ufeffPrompt\tseed\tsteps\na fox, red\t7\t8\nan owl\n") == expected
    assert rows(tmp_path, "p.txt", "# foxes\n  a fox  \n\nan owl\n") == [{"prompt": "a fox"}, {"prompt": "an owl"}]
    assert rows(tmp_path, "p.jsonl", '"a fox"\n') == [{"prompt": "a fox"}]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(jsonl.encode())))
    assert [dict(row.parameters) for row in prompt_rows.read_rows(Path("-"))] == expected


def test_any_parameter_may_stand_in_a_row(tmp_path):
    (row,) = rows(
        tmp_path,
        "p.csv",
        "prompt,size,guidance,sampler,loras,image,enable_safety_checker,output_format,negative\n"
        "a fox,512x256,4.5,Euler,ink:0.5;snow,fox.png,true,JPG,red\n",
    )
    assert row == {
        "prompt": "a fox",
        "size": "512*256",
        "guidance_scale": 4.5,
        "sampler": "euler",
        "loras": [{"name": "ink", "scale": 0.5}, {"name": "snow", "scale": 1.0}],
        "image": str(tmp_path / "fox.png"),  # relative to the file that names it
        "enable_safety_checker": True,
        "output_format": "jpeg",
        "negative_prompt": "red",
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.jsonl", '{"prompt": "x"}\n{"prompt": 7}\n', "p.jsonl line 2: prompt is 7; accepted: a text"),
        ("p.jsonl", "{\n", "p.jsonl line 1 is not JSON"),
        ("p.jsonl", "[1]\n", r"p.jsonl line 1 is \[1\]; accepted: an object such as"),
        (
            "p.jsonl",
            '{"prompt": "x", "steps": 0}\n',
            "p.jsonl line 1: steps is 0; accepted: a whole number from 1 to 200",
        ),
        (
            "p.jsonl",
            '{"prompt": "x", "steps": 1, "steps": 2}',
            "p.jsonl line 1: 'steps' is given twice; accepted: once",
        ),
        (
            "p.jsonl",
            '{"prompt": "x", "steps": 1, "num_inference_steps": 2}',
            "line 1: 'num_inference_steps' is given twice",
        ),
        ("p.csv", "prompt,prompt\nx,y\n", "p.csv line 1: 'prompt' is given twice"),
        ("p.csv", "prompt,seed\nx,1,2\n", "p.csv line 2 has more cells than the head"),
        ("p.csv", "prompt,seed\nx,often\n", "p.csv line 2: seed: 'often' is not a whole number"),
        ("p.csv", "prompt,enable_sync_mode\nx,true\n", "'enable_sync_mode' is no parameter"),
        ("p.txt", "# nothing\n", "p.txt has no prompt; accepted: one prompt per line, JSONL, or CSV with a head"),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, text, said):
    with pytest.raises(InvalidInput, match=said):
        rows(tmp_path, name, text)


@pytest.mark.parametrize("name", ["\0", "\ud800", "a" * 5000, "."])
def test_an_image_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "x", "image": name}))
    with pytest.raises(InvalidInput, match="cannot be read"):
        jobs.plan(prompt_rows.read_rows(path), {}, identity={})


def test_a_file_of_prompts_may_not_be_endless(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_rows, "PROMPTS_MAX_BYTES", 10)
    (tmp_path / "p.txt").write_text("12345678901")
    with pytest.raises(InvalidInput, match=r"p.txt has more than 10 bytes; accepted: fewer"):
        prompt_rows.read_rows(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_text("1234567890")
    assert len(prompt_rows.read_rows(tmp_path / "p.txt")) == 1


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidInput, match=r"p.txt is not UTF-8 \(byte 3\); accepted: text in UTF-8"):
        prompt_rows.read_rows(tmp_path / "p.txt")


def plan(rows, base=None, **options):
    return jobs.plan([Row(row) for row in rows], base or {}, **{"identity": {}} | options)


def test_a_row_is_stronger_than_a_flag_and_seeds_follow_each_other():
    planned = plan([{"prompt": "a fox", "seed": 5}, {"prompt": "an owl"}], {"seed": 9_999_999_999, "num_images": 2})
    assert [(job.parameters["prompt"], job.parameters["seed"]) for job in planned] == [
        ("a fox", 5),
        ("a fox", 6),
        ("an owl", 9_999_999_999),
        ("an owl", 0),
    ]
    assert [job.file for job in planned][::2] == ["0001-a-fox.png", "0003-an-owl.png"]
    assert all("num_images" not in job.parameters for job in planned)


def test_a_key_finds_the_same_request_again_and_tells_repetitions_apart():
    first = plan([{"prompt": "a fox"}, {"prompt": "a fox"}, {"prompt": "a fox", "seed": 7}])
    again = plan([{"prompt": "an owl"}, {"prompt": "a fox", "seed": 7}, {"prompt": "a fox"}, {"prompt": "a fox"}])
    assert len({job.key for job in first}) == 3
    assert {job.key for job in first} < {job.key for job in again}
    seeds = [[job.parameters["seed"] for job in jobs.settled(first, salt)] for salt in ("one", "one", "two")]
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0])) == 3
    assert seeds[0][2] == 7
    others = [plan([{"prompt": "a fox"}], identity={"model": "m"}), plan([{"prompt": "a fox"}], {"size": "256*256"})]
    assert not {job.key for other in others for job in other} & {job.key for job in first}


def test_the_content_of_an_image_is_part_of_the_key(tmp_path):
    keys = []
    for content in (b"one", b"two", b"one"):
        (tmp_path / "a.png").write_bytes(content)
        keys += [job.key for job in plan([{"prompt": "a fox", "image": str(tmp_path / "a.png")}])]
    assert keys[0] == keys[2] != keys[1]


def test_a_grid_is_the_product_of_its_axes():
    axes = [Axis.parse("steps=8,16"), Axis.parse("prompt=a fox, red|an owl")]
    planned = plan([{"prompt": "x"}], {"seed": 7}, axes=axes)
    assert [(job.cell, job.parameters["num_inference_steps"], job.parameters["prompt"]) for job in planned] == [
        (("8", "a fox, red"), 8, "a fox, red"),
        (("8", "an owl"), 8, "an owl"),
        (("16", "a fox, red"), 16, "a fox, red"),
        (("16", "an owl"), 16, "an owl"),
    ]


def test_file_names_are_plain_on_every_system():
    names = [
        job.file
        for job in plan([{"prompt": text} for text in ("../../etc/passwd", "ein Füchslein: rot?", "狐", "CON")])
    ]
    assert names == ["0001-etc-passwd.png", "0002-ein-f-chslein-rot.png", "0003-image.png", "0004-con.png"]
