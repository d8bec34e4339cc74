"""A VLM is asked through the real client: right the first time, and right after every fault."""

import email.utils
import io
import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vlm_parts import Frozen, Waits, client, picture
from vlm_server import KEY, Fault, VlmServer

from abc_embed.errors import (
    AskError,
    EndpointError,
    ImageError,
)
from abc_embed.inputs import open_image
from abc_embed.storage.hashing import sha256, sha256_json
from abc_embed.vlm.client import MAX_FAILURES_IN_A_ROW
from abc_embed.vlm.limits import Limits

pytest.importorskip("openai")


def test_what_is_sent_and_what_comes_back(server: VlmServer) -> None:
    with client(server, max_tokens=77) as vlm:
        reply = vlm.ask(picture(), "What now?")
    (request,) = server.requests
    assert (request.prompt, request.image) == ("What now?", picture())
    assert request.body["temperature"] == 0
    assert request.body["max_tokens"] == 77
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert reply.text == "What is shown there?"
    assert reply.model == "small-vlm-2026"
    assert (reply.input_tokens, reply.output_tokens) == (102, 5)
    assert not reply.cached
    assert reply.refusal is None
    assert not reply.cut_off


def test_without_an_image(server: VlmServer) -> None:
    with client(server) as vlm:
        vlm.ask(None, "Say something.")
    assert server.requests[0].image is None


def test_formats_that_endpoints_do_not_know_are_sent_as_png(server: VlmServer) -> None:
    with client(server) as vlm:
        vlm.ask(picture(form="JPEG"), "one")
        vlm.ask(picture(form="BMP"), "two")
    as_it_is, changed = (request.image for request in server.requests)
    assert as_it_is == picture(form="JPEG")
    assert changed is not None
    assert changed.startswith(b"\x89PNG")


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    packed = io.BytesIO()
    image.save(packed, format=form, **options)
    return packed.getvalue()


def unlike_what_is_seen() -> dict[str, bytes]:
    """Files that other programs may show otherwise than `open_image` does: red left, blue right."""
    shown = Image.new("RGB", (64, 32), (0, 0, 255))
    shown.paste((255, 0, 0), (0, 0, 32, 32))
    turned = Image.Exif()
    turned[0x0112] = 6
    lying = shown.transpose(Image.Transpose.ROTATE_90)
    other = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    frames: dict[str, Any] = {"save_all": True, "append_images": [other]}
    alpha = shown.convert("RGBA")
    alpha.paste((0, 255, 0, 0), (0, 0, 64, 4))  # green, where it would be seen
    return {
        "jpeg": saved(lying, "JPEG", exif=turned, quality=95),
        "png, turned": saved(lying, "PNG", exif=turned),
        "gif": saved(shown, "GIF", **frames),
        "webp": saved(shown, "WEBP", lossless=True, **frames),
        "apng": saved(shown, "PNG", **frames),
        "transparent": saved(alpha, "PNG"),
        "cmyk": saved(shown.convert("CMYK"), "JPEG", quality=95),
    }


@pytest.mark.parametrize("kind", unlike_what_is_seen())
def test_what_is_sent_shows_what_is_seen(server: VlmServer, kind: str) -> None:
    """A region's box is about the upright first frame: that is the picture that is sent."""
    image = unlike_what_is_seen()[kind]
    with client(server) as vlm:
        vlm.ask(image, "What now?")
    sent = server.requests[0].image
    assert sent is not None and sent != image
    with Image.open(io.BytesIO(sent)) as picture:
        assert picture.format == ("JPEG" if kind in ("jpeg", "cmyk") else "PNG")
        assert getattr(picture, "n_frames", 1) == 1
        assert picture.getexif().get(0x0112, 1) == 1
        assert picture.mode == "RGB"
        got, seen = np.asarray(picture, dtype=int), np.asarray(open_image(image), dtype=int)
    assert got.shape == seen.shape == (32, 64, 3)
    assert np.abs(got - seen).max() <= (24 if picture.format == "JPEG" else 0)
    assert got[16, 8, 0] > 200 > 60 > got[16, 8, 2]


def test_replies_about_an_unturned_file_are_not_taken_for_the_turned_picture() -> None:
    image = unlike_what_is_seen()["jpeg"]
    with VlmServer() as server, client(server) as vlm:
        form = [None, None, vlm.max_tokens]
        assert vlm.cache_key(image, "a") != sha256_json(["small-vlm", "a", sha256(image), form])
        plain = picture()
        assert vlm.cache_key(plain, "a") == sha256_json(["small-vlm", "a", sha256(plain), form])


def test_a_broken_image_is_never_sent(server: VlmServer) -> None:
    with client(server) as vlm, pytest.raises(ImageError):
        vlm.ask(picture()[:-30], "What now?")
    assert not server.requests


# -- the form of a reply ---------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("mode", "form"), [("schema", "json_schema"), ("object", "json_object"), ("none", None)]
)
def test_a_schema_is_asked_for(server: VlmServer, mode: str, form: str | None) -> None:
    server.answer = lambda request: '```json\n{"a": "b"}\n```'
    with client(server, json_mode=mode) as vlm:
        reply = vlm.ask(picture(), "JSON please", schema=SCHEMA)
    assert reply.json() == {"a": "b"}
    sent = server.requests[0].body.get("response_format")
    assert (sent and sent["type"]) == form
    if form == "json_schema":
        assert sent["json_schema"]["schema"] == SCHEMA
        assert sent["json_schema"]["strict"] is True


@pytest.mark.parametrize("text", ["no JSON", '{"a": "b"', "", "```"])
def test_a_reply_that_is_no_json(server: VlmServer, text: str) -> None:
    server.answer = lambda request: text
    with client(server) as vlm:
        assert vlm.ask(None, "JSON please", schema=SCHEMA).json() is None


@pytest.mark.parametrize(
    "thought",
    [
        "<think>\nLet me see: a dog.\n</think>\n\n",
        "<thinking>a {dog}</thinking>",
        "Let me see.\n</think>\n",
        "[THINK]a dog[/THINK]",
    ],
)
def test_what_a_model_thought_is_no_part_of_its_reply(server: VlmServer, thought: str) -> None:
    server.answer = lambda request: thought + '{"a": "b"}'
    with client(server) as vlm:
        first = vlm.ask(None, "JSON please", schema=SCHEMA)
        again = vlm.ask(None, "JSON please", schema=SCHEMA)
    assert again.cached and not first.cached
    assert first.text == again.text == '{"a": "b"}'
    assert first.json() == {"a": "b"}


def test_a_thought_without_an_end_is_no_reply(server: VlmServer) -> None:
    server.answer = lambda request: "<think>It might be a dog, or"
    with client(server) as vlm:
        assert vlm.ask(None, "What now?").text == ""


def test_refusals_are_told_and_remembered(server: VlmServer) -> None:
    server.faults = [Fault("refuse"), Fault("filter"), Fault("cut_off")]
    with client(server) as vlm:
        refused, filtered, cut = (vlm.ask(None, prompt) for prompt in "abc")
        assert vlm.ask(None, "a").refusal == refused.refusal == "I will not look at this."
    assert filtered.refusal is not None
    assert cut.cut_off
    assert len(server.requests) == 3


def test_a_server_that_does_not_count_tokens(server: VlmServer) -> None:
    server.faults = [Fault("no_usage")]
    with client(server) as vlm:
        assert vlm.ask(picture(), "What now?").input_tokens > 6


# -- faults ----------------------------------------------------------------------------------------

PASSING = [
    Fault("status", 500),
    Fault("status", 503, {"Retry-After": "2"}),
    Fault("status", 429, {"Retry-After": "3"}),
    Fault("status", 408),
    Fault("cut"),
    Fault("hang_up"),
    Fault("malformed"),
    Fault("page"),
    Fault("no_choices"),
    Fault("error_body"),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f.kind}-{f.status}")
def test_a_fault_that_passes(server: VlmServer, fault: Fault) -> None:
    server.faults = [fault, fault]
    with client(server) as vlm:
        assert vlm.ask(picture(), "What now?").text == "What is shown there?"
        assert sum(vlm.report()["faults"].values()) == 2
    assert len(server.requests) == 3
    assert len({json.dumps(request.body) for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("fault", "paid"),
    [(Fault("cut"), True), (Fault("no_choices"), True), (Fault("status", 500), False)],
    ids=["cut", "no_choices", "500"],
)
def test_what_may_have_been_paid_for_counts(server: VlmServer, fault: Fault, paid: bool) -> None:
    """A reply that was lost on the way may be on the bill; one that was refused is not."""
    server.faults = [fault]
    with client(server) as vlm:
        reply = vlm.ask(None, "What now?")
        spent, _ = vlm.budget.spent()
    assert (spent > reply.input_tokens) == paid
    assert paid or spent == reply.input_tokens


@pytest.mark.parametrize(
    "fault", [Fault("slow", seconds=3), Fault("drip", seconds=0.02)], ids=["slow", "drip"]
)
def test_a_reply_that_takes_too_long(server: VlmServer, fault: Fault) -> None:
    server.faults = [fault]
    with client(server, limits=Limits(timeout_s=0.25)) as vlm:
        assert vlm.ask(picture(), "What now?").text == "What is shown there?"
        assert vlm.report()["faults"] == {"timeout": 1}


def test_a_reply_without_end(server: VlmServer) -> None:
    server.faults = [Fault("endless")]
    with client(server) as vlm, pytest.raises(AskError, match="does not end"):
        vlm.ask(picture(), "What now?")


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "7"}, 7.0, 7.0),
        ({"Retry-After": "2.5"}, 2.5, 2.5),
        ({"retry-after-ms": "1500"}, 1.5, 1.5),
        ({"Retry-After": "a date"}, 100.0, 300.0),
        ({}, 0.5, 1.0),
        ({"Retry-After": "soon"}, 0.5, 1.0),
    ],
    ids=["seconds", "fraction", "milliseconds", "date", "none", "nonsense"],
)
def test_the_endpoint_says_how_long_to_wait(
    server: VlmServer, headers: dict[str, str], least: float, most: float
) -> None:
    if headers.get("Retry-After") == "a date":
        headers = {"Retry-After": email.utils.formatdate(time.time() + 300, usegmt=True)}
    server.faults = [Fault("status", 429, headers)]
    clock = Frozen()
    with client(server, clock=clock) as vlm:
        vlm.ask(None, "What now?")
    (waited,) = clock.waits
    assert least <= waited <= most


def test_waits_grow(server: VlmServer) -> None:
    server.faults = [Fault("status")] * 5
    clock = Waits()
    with client(server, clock=clock) as vlm:
        vlm.ask(None, "What now?")
    assert all(2.0**i / 2 <= wait <= 2.0**i for i, wait in enumerate(clock.waits))
    assert len(clock.waits) == 5


def test_a_wait_of_hours_ends_the_run(server: VlmServer) -> None:
    server.faults = [Fault("status", 429, {"Retry-After": "7200"})]
    clock = Waits()
    with client(server, clock=clock) as vlm, pytest.raises(EndpointError, match="7200 s; run"):
        vlm.ask(None, "What now?")
    assert not clock.waits


def test_one_request_that_cannot_be_answered(server: VlmServer) -> None:
    with client(server) as vlm:
        assert vlm.ask(None, "first").text
        server.faults = [Fault("status", 400), Fault("status", 413)]
        for prompt in "ab":
            with pytest.raises(AskError, match=r"HTTP 4.*told to fail"):
                vlm.ask(None, prompt)
        assert vlm.ask(None, "c").text
    assert len(server.requests) == 4


def test_a_form_that_is_refused_from_the_beginning_ends_all(server: VlmServer) -> None:
    """An unknown field, say: every request has it. What is refused for its image is one alone."""
    server.faults = [Fault("status", 400, code="content_filter"), Fault("status", 400)]
    with client(server) as vlm:
        with pytest.raises(AskError, match="HTTP 400: told to fail"):
            vlm.ask(picture(), "a")
        with pytest.raises(
            EndpointError, match=r"HTTP 400: told to fail; .*--token-field"
        ) as caught:
            vlm.ask(None, "b")
        assert not isinstance(caught.value, AskError)
        with pytest.raises(EndpointError, match="told to fail"):
            vlm.ask(None, "c")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "fault",
    [Fault("status", 401), Fault("status", 404), Fault("status", 429, code="insufficient_quota")],
    ids=["key", "model", "quota"],
)
def test_what_no_request_can_mend_ends_all(server: VlmServer, fault: Fault) -> None:
    server.faults = [fault]
    with client(server) as vlm:
        with pytest.raises(EndpointError, match="check ") as caught:
            vlm.ask(None, "a")
        assert not isinstance(caught.value, AskError)
        with pytest.raises(EndpointError, match="check "):
            vlm.ask(None, "b")
    assert len(server.requests) == 1


def test_an_endpoint_that_is_down(server: VlmServer) -> None:
    server.when = lambda request, number: Fault("status", 500)
    with client(server, limits=Limits(retries=1, timeout_s=5)) as vlm:
        for number in range(MAX_FAILURES_IN_A_ROW - 1):
            with pytest.raises(AskError, match="2 times"):
                vlm.ask(None, str(number))
        with pytest.raises(EndpointError, match="in a row") as caught:
            vlm.ask(None, "last")
    assert not isinstance(caught.value, AskError)
    assert len(server.requests) == 2 * MAX_FAILURES_IN_A_ROW


def test_nobody_listens() -> None:
    with VlmServer() as gone:
        pass
    with (
        client(gone, limits=Limits(retries=0, timeout_s=5)) as vlm,
        pytest.raises(AskError, match="connection failed"),
    ):
        vlm.ask(None, "What now?")
