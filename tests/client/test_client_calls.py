"""The calls: what they send and give, with servers that delay responses and servers that do not."""

import io
import re
import struct
import zlib
from datetime import UTC, date, datetime

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from world import DONE, TASK, World, in_turn, says

from hidream.client import calls
from hidream.client.connection import connect, model_name
from hidream.client.effects import Response
from hidream.client.prediction import Prediction, Result
from hidream.client.retries import Retry
from hidream.errors import (
    Interrupted,
    InvalidInput,
    MissingInput,
    PromptRefused,
    ServerError,
    TaskFailed,
    TimedOut,
    Unauthorized,
)
from hidream.images import in_memory
from hidream.request import LoraUse
from hidream.types import Size


def image(kind="PNG", size=(8, 6)):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(file, kind)
    return file.getvalue()


FILE = Response(200, {}, image())


def body(**options):
    connection = World(None).connection()
    return calls.submission(connection, "a fox", None, None, None, options).body


def failed(world, call):
    connection = world.connection()
    return world.run(call(connection, connection.deadline(None)))


def test_a_request_says_what_was_given_and_the_format_that_the_library_has():
    assert body() == {"prompt": "a fox", "output_format": "png"}
    assert body(seed=7, shift=None, output_format="jpg") == {"prompt": "a fox", "output_format": "jpeg", "seed": 7}


@pytest.mark.parametrize("size", ["640x480", "640*480", (640, 480), [640, 480], Size(640, 480)])
def test_a_size_has_many_forms(size):
    assert body(size=size)["size"] == "640*480"


@pytest.mark.parametrize("lora", ["ink", ("ink", 1.0), LoraUse("ink"), {"name": "ink"}, {"path": "ink", "scale": 1}])
def test_a_lora_has_many_forms(lora):
    assert body(loras=[lora])["loras"] == body(loras=lora)["loras"] == [{"name": "ink", "scale": 1.0}]


def test_many_loras_have_many_forms_too():
    two = [{"name": "ink", "scale": 0.5}, {"name": "wash", "scale": 2.0}]
    assert body(loras={"ink": 0.5, "wash": 2})["loras"] == body(loras=[("ink", 0.5), {"wash": 2}])["loras"] == two
    assert body(loras=[])["loras"] == []


def test_numbers_of_numpy_are_numbers():
    sent = body(seed=np.int64(7), num_images=np.uint8(2), size=(np.int32(640), 480), loras=("ink", np.float32(0.5)))
    expected = {"seed": 7, "num_images": 2, "size": "640*480", "loras": [{"name": "ink", "scale": 0.5}]}
    assert sent == body() | expected
    assert type(sent["seed"]) is int


def test_a_size_may_be_given_by_its_sides():
    assert body(width=640, height=480)["size"] == "640*480"
    with pytest.raises(InvalidInput, match="size and width are given; accepted: one of the two"):
        body(width=640, height=480, size="640x480")


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"seeed": 7}, "seeed", "unknown keyword 'seeed'; the nearest is seed; accepted: size, width"),
        ({"steps": 7}, "steps", "unknown keyword 'steps'; the nearest is num_inference_steps"),
        ({"width": 512}, "height", "height is absent; accepted: width and height together, or size"),
        ({"xyz": 1}, "xyz", "unknown keyword 'xyz'; accepted: size, width, height, seed, "),
        ({"enable_sync_mode": True}, "enable_sync_mode", "unknown keyword 'enable_sync_mode'"),
        ({"seed": -2}, "seed", "seed is -2; accepted: a whole number from -1"),
        ({"size": 1024}, "size", 'size is 1024; accepted: a text such as "1024x1024", or'),
        ({"size": (10, 10)}, "size", "size is '10*10'; accepted: width*height, each 256 to 2048"),
        ({"size": "big"}, "size", "size is 'big'"),
        ({"loras": 7}, "loras", 'loras is 7; accepted: "name", ("name", 0.8)'),
        ({"loras": [("ink", 11)]}, "loras[0].scale", "accepted: a number from -10 to 10"),
        ({"sampler": "ddim"}, "sampler", "accepted: flash, unipc, euler"),
        ({"image": 7}, "image", "image is 7; accepted: a PIL image"),
        ({"seed": 10**5000}, "seed", "seed is a value of int that is too long to show; accepted: a whole number"),
        ({"image": "no such file.png"}, "image", "cannot be read: No such file"),
        ({"image": "a\0b"}, "image", "cannot be read"),
        ({"image": b""}, "image", "image is an empty file"),
        (
            {"mask": np.zeros((4, 4), np.int64)},
            "mask",
            "mask is an array [4, 4] of int64; accepted: a PIL image",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(options, field, said):
    with pytest.raises(InvalidInput) as raised:
        body(**options)
    assert raised.value.field == field
    assert said in raised.value.message


def test_a_prompt_is_needed():
    connection = World(None).connection()
    with pytest.raises(MissingInput, match="prompt is empty"):
        calls.submission(connection, " ", None, None, None, {})
    with pytest.raises(InvalidInput, match="prompt is 7"):
        calls.submission(connection, 7, None, None, None, {})
    with pytest.raises(InvalidInput, match="idempotency_key is 'ü'"):
        calls.submission(connection, "a fox", None, None, "ü", {})


@pytest.mark.parametrize("url", ["https://host/a.png", " http://host/a.png", "data:image/png;base64,aaaa"])
def test_urls_are_sent_as_they_are(url):
    assert body(image=url)["image"] == url.strip()


def test_images_are_uploaded_as_the_files_that_they_are(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(image("JPEG"))
    for value in (tmp_path / "photo.jpg", str(tmp_path / "photo.jpg")):
        assert sent_file(value) == ("photo.jpg", image("JPEG"))
    assert sent_file(image("WEBP")) == ("image", image("WEBP"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I;16"])
def test_pixels_become_a_png(mode):
    name, file = sent_file(Image.new(mode, (5, 4)))
    assert name == "image.png"
    assert Image.open(io.BytesIO(file)).size == (5, 4)


ARRAYS = [
    np.linspace(0, 1, 48).reshape(4, 4, 3),
    np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4),
    np.linspace(0, 1, 16, dtype=np.float16).reshape(4, 4),
    np.arange(16, dtype=np.uint8).reshape(4, 4, 1),
    np.arange(96, dtype=np.uint8).reshape(4, 8, 3)[:, ::2],
    np.eye(4, dtype=bool),
    torch.linspace(0, 1, 48).reshape(4, 4, 3),
    np.zeros((4, 4, 3), np.int16),
    np.zeros((3, 4, 4), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
    np.full((4, 4), 1.5),
    np.full((4, 4), np.nan),
    torch.zeros(4, 4, 3, requires_grad=True),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{list(array.shape)} {array.dtype}")
def test_the_client_takes_the_arrays_that_the_library_takes_as_the_same_image(array):
    try:
        wanted = in_memory.file_bytes("image", array)
    except InvalidInput as error:
        said = error.message.partition("; accepted: ")[0]
        with pytest.raises(InvalidInput, match=re.escape(f"{said}; accepted: ")) as raised:
            sent_file(array)
        assert raised.value.field == "image"
    else:
        assert sent_file(array)[1] == wanted


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_a_png_keeps_the_alpha_of_every_mode(mode):
    whole = Image.new("RGBA", (2, 1), (200, 30, 60, 255))
    whole.putpixel((1, 0), (0, 0, 0, 0))
    given = {"La": lambda: whole.convert("LA").convert("La"), "RGBa": lambda: whole.convert("RGBa")}
    _, file = sent_file(given.get(mode, lambda: whole.convert("PA"))())
    assert [*Image.open(io.BytesIO(file)).getchannel("A").tobytes()] == [255, 0]


@pytest.mark.parametrize(
    ("values", "sent"),
    [
        (np.array([[0, 300, 65535]], np.int32), [0, 300, 65535]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 20.4, 255]], np.float32), [0, 20, 255]),
    ],
)
def test_greys_of_32_bits_are_not_cut(values, sent):
    _, file = sent_file(Image.fromarray(values))
    assert np.asarray(Image.open(io.BytesIO(file))).tolist() == [sent]


@pytest.mark.parametrize("value", [-1, 65536, np.float32("nan"), np.float32(256)])
def test_greys_that_no_png_has_are_refused(value):
    with pytest.raises(InvalidInput, match=r"image is a PIL image of mode [IF] and 1\*1 pixels, which cannot be read"):
        sent_file(Image.fromarray(np.array([[value]], np.float32 if isinstance(value, np.float32) else np.int32)))


def test_a_pil_image_without_pixels_is_refused(tmp_path):
    file = tmp_path / "photo.jpg"
    Image.effect_noise((64, 64), 50).save(file)
    closed, cut = Image.open(file), Image.open(io.BytesIO(file.read_bytes()[:600]))
    closed.close()
    for value in (closed, cut, Image.new("RGB", (0, 0))):
        with pytest.raises(InvalidInput, match="which cannot be read") as raised:
            sent_file(value)
        assert raised.value.field == "image"


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "photo.jpg").write_bytes(image("JPEG"))
    assert sent_file("~/photo.jpg") == ("photo.jpg", image("JPEG"))
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        sent_file("~nobody-has-this-name/photo.jpg")


def test_arrays_become_a_png():
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent_file(array)[1]))), array)


def sent_file(value):
    connection = World(None).connection()
    return calls.submission(connection, "a fox", None, None, None, {"image": value}).files["image"]


def test_an_upload_comes_before_the_task_that_names_it():
    world = World(in_turn(says({"download_url": "http://server/uploads/1"}), says(TASK)))
    connection = world.connection()
    made = calls.submission(connection, "a fox", "full", "https://me/hook", "mine", {"image": image()})
    world.run(calls.submit(connection, made, connection.deadline(None)))
    upload, submission = world.sent
    assert upload.url == "http://server/api/v3/media/upload/binary"
    assert submission.url == "http://server/api/v3/wavespeed-ai/hidream-i1-full"
    assert submission.json["image"] == "http://server/uploads/1"
    assert submission.params == {"webhook": "https://me/hook"}
    assert submission.headers["Idempotency-Key"] == "mine"
    assert submission.headers["Authorization"] == b"Bearer hd_key"


def test_a_server_that_delays_is_asked_again_at_once():
    def answer(request):
        world.now_s += float(request.params["wait_s"])
        return says(DONE if world.now_s > 50 else TASK)

    world = World(answer)
    assert failed(world, lambda connection, end: calls.wait(connection, TASK["id"], end)).status == "completed"
    assert world.slept == []
    assert len(world.sent) == 3


def test_a_server_that_does_not_is_asked_again_after_a_pause():
    world = World(in_turn(*[says(TASK)] * 5, says(DONE)))
    failed(world, lambda connection, end: calls.wait(connection, TASK["id"], end))
    assert world.slept == [0.5, 1, 2, 2, 2]


def test_a_task_that_is_not_finished_in_time_goes_on():
    world = World(in_turn(says(TASK)))
    connection = world.connection()
    with pytest.raises(TimedOut, match="it is still created") as raised:
        world.run(calls.wait(connection, TASK["id"], connection.deadline(10)))
    assert raised.value.task_id == TASK["id"]
    assert world.now_s <= 10


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"status": "failed", "code": 1200, "error": "not allowed"}, PromptRefused),
        ({"status": "failed", "code": 1401, "error": "no such LoRA"}, InvalidInput),
        ({"status": "failed", "code": 1405, "error": "broken"}, TaskFailed),
        ({"status": "failed", "error": ""}, TaskFailed),
        ({"status": "timeout"}, TaskFailed),
        ({"status": "cancelled"}, Interrupted),
        ({"status": "completed", "outputs": []}, ServerError),
    ],
)
def test_a_task_that_has_no_images_raises_why(said, kind):
    world = World(in_turn(says(TASK | said)))
    with pytest.raises(kind) as raised:
        failed(world, lambda connection, end: calls.result(connection, TASK["id"], end))
    assert kind is ServerError or raised.value.task_id == TASK["id"]


def test_images_are_downloaded_without_the_key_or_read_from_the_answer():
    world = World(in_turn(says(DONE), FILE))
    result = failed(world, lambda connection, end: calls.result(connection, TASK["id"], end))
    assert world.sent[-1].url == "http://files/1.png"
    assert "Authorization" not in world.sent[-1].headers
    assert result.files == (image(),)
    assert (result.image.size, result.seed, result.timings.execution_s) == ((8, 6), 7, 1.13)
    for text in ("iVBORw0KGgo=", "data:image/png;base64,iVBORw0KGgo="):
        world = World(in_turn(says(DONE | {"outputs": [text]})))
        assert failed(world, lambda connection, end: calls.result(connection, TASK["id"], end)).files[0][1:4] == b"PNG"


def test_files_are_saved_as_they_came(tmp_path):
    one = Result(Prediction.of(DONE), (image(),))
    assert one.save(tmp_path / "fox.png") == [tmp_path / "fox.png"]
    assert (tmp_path / "fox.png").read_bytes() == image()
    two = Result(Prediction.of(DONE), (image("JPEG"), image("JPEG")))
    assert [path.name for path in two.save(str(tmp_path / "fox.jpg"))] == ["fox-7.jpg", "fox-8.jpg"]
    with pytest.raises(InvalidInput, match=r'is a PNG file; request output_format="jpeg", or name a file.* \.png'):
        one.save(tmp_path / "fox.jpg")
    with pytest.raises(InvalidInput, match=r"ends with \.png, \.jpeg, \.jpg, \.webp, \.avif"):
        one.save(tmp_path / "fox.gif")


def test_a_list_goes_on_where_the_page_before_ended():
    """250 tasks, three in each millisecond; 5 are submitted and 10 deleted between the pages."""
    times = [f"2026-11-30T00:00:00.{999 - n // 3:03}Z" for n in range(250)]
    tasks = [TASK | {"id": f"t{n}", "created_at": at} for n, at in enumerate(times)]

    def answer(request):
        asked = request.json
        bound = datetime.fromisoformat(asked.get("created_before") or "2027-01-01T00:00:00Z")
        found = [task for task in tasks if datetime.fromisoformat(task["created_at"]) <= bound]
        page = found[(asked["page"] - 1) * 100 : asked["page"] * 100]
        tasks[:0] = [TASK | {"id": f"n{len(world.sent)}", "created_at": "2026-12-01T00:00:00.000Z"}] * 5
        del tasks[10:20]
        return says({"items": page})

    world = World(answer)
    connection = world.connection()
    world.run(calls.listing(connection, {}, None))
    assert [each.id for each in world.emitted] == [f"t{n}" for n in range(250)]


def test_a_list_of_one_moment_has_pages_too():
    tasks = [TASK | {"id": f"t{n}", "created_at": "2026-11-30T00:00:00.5Z"} for n in range(250)]
    world = World(lambda request: says({"items": tasks[(request.json["page"] - 1) * 100 :][:100]}))
    connection = world.connection()
    conditions = {
        "model": "dev",
        "status": None,
        "created_after": datetime(2026, 11, 1, tzinfo=UTC),
    }
    world.run(calls.listing(connection, conditions, None))
    assert len(world.emitted) == 250
    assert world.sent[0].json == {
        "model": "dev",
        "created_after": "2026-11-01T00:00:00+00:00",
        "page": 1,
        "page_size": 100,
    }


@pytest.mark.parametrize("created_at", ["2026-01-01T00:00:00.000Z", "", "yesterday"])
def test_a_server_that_repeats_its_pages_is_not_listed_for_ever(created_at):
    page = says({"items": [TASK | {"id": f"{i}", "created_at": created_at} for i in range(calls.PAGE_SIZE)]})
    answers = iter([page] * 10)
    world = World(lambda _: next(answers))
    world.run(calls.listing(world.connection(), {}, None))
    assert [task.id for task in world.emitted] == [f"{i}" for i in range(calls.PAGE_SIZE)]


def test_many_ids_are_deleted_in_pieces():
    world = World(lambda request: says({"deleted_count": len(request.json["ids"])}))
    connection = world.connection()
    assert world.run(calls.delete(connection, [f"t{n}" for n in range(1001)], connection.deadline(None))) == 1001
    assert [len(request.json["ids"]) for request in world.sent] == [500, 500, 1]
    with pytest.raises(InvalidInput, match=r"id is '\.\./x'"):
        world.run(calls.delete(connection, ["../x"], connection.deadline(None)))


def connected(url=None, key=None, **environ):
    return connect(url, key, "dev", 600, Retry(), environ)


def test_address_and_key_come_from_arguments_or_the_environment():
    assert connected(key="a").base_url == "http://127.0.0.1:8000"
    found = connected(HIDREAM_BASE_URL="https://host/x/", HIDREAM_API_KEY="b", WAVESPEED_API_KEY="c")
    assert (found.base_url, found.api_key) == ("https://host/x", "b")
    assert connected("http://host:1/api/v3", "a", HIDREAM_BASE_URL="http://no").base_url == "http://host:1"
    assert connected("https://api.wavespeed.ai", WAVESPEED_API_KEY="c", HIDREAM_API_KEY="b").api_key == "c"
    with pytest.raises(Unauthorized, match="WAVESPEED_API_KEY"):
        connected("https://api.wavespeed.ai", HIDREAM_API_KEY="b")
    with pytest.raises(Unauthorized, match="HIDREAM_API_KEY"):
        connected(WAVESPEED_API_KEY="c")


@pytest.mark.parametrize(
    "url", ["host", "ftp://host", "http://", "http://h:99999", "http://h/?a=1", "http://a b", "http://["]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InvalidInput, match="base_url is"):
        connected(url, "a")


@pytest.mark.parametrize("value", ["600", True, float("nan"), 0, -1, httpx.Timeout(3)])
def test_a_time_limit_that_is_none_is_refused_everywhere(value):
    with pytest.raises(InvalidInput, match=r"timeout is .*; accepted: seconds above 0"):
        connect("http://host", "a", "dev", value, Retry(), {})
    with pytest.raises(InvalidInput, match=r"timeout is .*; accepted: seconds above 0"):
        connected("http://host", "a").deadline(value)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [((123, "a"), "base_url"), ((b"http://h", "a"), "base_url"), (("http://h", b"a"), "api_key")],
)
def test_values_of_another_type_are_refused(arguments, field):
    with pytest.raises(InvalidInput) as raised:
        connected(*arguments)
    assert raised.value.field == field
    with pytest.raises(InvalidInput, match="retry is 3; accepted: such as"):
        connect("http://h", "a", "dev", None, 3, {})


@pytest.mark.parametrize("ids", [None, 7, [None], ["a/b"]])
def test_what_is_no_id_is_not_deleted(ids):
    with pytest.raises(InvalidInput, match=r"id is .*; accepted: the id of a task"):
        failed(World(None), lambda connection, deadline: calls.delete(connection, ids, deadline))


def test_a_condition_that_the_api_cannot_say_is_refused():
    for condition in ({"created_after": date(2026, 1, 1)}, {"status": 7}):
        with pytest.raises(InvalidInput, match=f"{next(iter(condition))} is .*; accepted: a text"):
            World(None).run(calls.listing(World(None).connection(), condition, None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"outputs": "abc"},
        {"outputs": {"a": 1}},
        {"outputs": [None]},
        {"outputs": [1]},
        {"seed": "7"},
        {"seed": float("nan")},
        {"status": "failed", "code": [1]},
        {"status": "failed", "error": {"a": 1}},
        {"timings": {"inference": "x"}},
        {"version": 7},
    ],
)
def test_a_task_with_values_of_other_types_is_an_error_of_the_server(wrong):
    world = World(lambda _: says(DONE | wrong))
    with pytest.raises(ServerError, match="the server"):
        failed(world, lambda connection, deadline: calls.result(connection, TASK["id"], deadline))


@pytest.mark.parametrize(
    "call",
    [
        lambda connection, deadline: calls.account(connection, "/balance", "balance", float, deadline),
        lambda connection, deadline: calls.delete(connection, "a", deadline),
        lambda connection, deadline: calls.upload(connection, ("a", b"a"), deadline),
        lambda connection, deadline: calls.listing(connection, {}, None),
    ],
)
@pytest.mark.parametrize("value", [None, "abc", {"a": 1}])
def test_an_answer_with_values_of_other_types_is_an_error_of_the_server(call, value):
    names = ("balance", "deleted_count", "items") + ("download_url",) * (value != "abc")
    with pytest.raises(ServerError, match="the server's answer has no"):
        failed(World(lambda _: says(dict.fromkeys(names, value))), call)


def test_a_file_that_is_no_image_is_an_error_of_the_server(tmp_path):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    result = Result(Prediction("1", "m", "completed"), (b"\x89PNG\r\n\x1a\n" + b"".join(parts),))
    with pytest.raises(ServerError, match="cannot be decoded: Image size"):
        _ = result.image
    assert result.save(tmp_path / "bomb.png")[0].read_bytes() == result.files[0]


def test_no_error_shows_a_key_or_a_password():
    with pytest.raises(InvalidInput, match=r"base_url looks like an API key; .* the key as api_key=") as raised:
        connected("hd_secret_secret_secret")
    assert "secret" not in raised.value.message
    for url, key in (("http://me:secret@host", "a"), ("http://host", "secret\n"), ("http://host", " secret")):
        with pytest.raises(InvalidInput) as raised:
            connected(url, key)
        assert "secret" not in raised.value.message
    assert "secret" not in repr(connected("http://host", "secret"))
    assert "secret" not in repr(calls.api_request(connected("http://host", "secret"), "GET", "/models"))


@pytest.mark.parametrize("name", ["dev", "hidream-i1-dev", "wavespeed-ai/hidream-i1-dev"])
def test_a_model_has_a_short_name(name):
    assert model_name(name) == "wavespeed-ai/hidream-i1-dev"
    assert model_name("other/model") == "other/model"
    for bad in ("", "a b", "../x?", 7):
        with pytest.raises(InvalidInput, match="model is"):
            model_name(bad)
