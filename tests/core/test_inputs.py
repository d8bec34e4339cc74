"""Every accepted picture becomes the right RGB pixels; every other one a plain error."""

import base64
import contextlib
import errno
import io
import os
import struct
import tracemalloc
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import RED, encoded, painted, pixels, png_header
from PIL import Image

from abc_embed import errors
from abc_embed.inputs import (
    ImageInput,
    Item,
    Kind,
    _unquote,
    as_item,
    is_single,
    open_image,
    read_header,
    warn_of_paths,
)

WHITE = (255, 255, 255)


def test_every_way_to_hand_over_a_picture_gives_its_pixels(tmp_path: Path) -> None:
    picture = painted()
    data = encoded(picture)
    path = tmp_path / "a picture ü.png"
    path.write_bytes(data)
    base = base64.b64encode(data).decode()
    ways: list[ImageInput] = [
        *(path, str(path), data, picture, np.asarray(picture)),
        *(f"data:image/png;base64,{base}", f"DATA:;base64,{base[:40]}\n {base[40:]}"),
        f"data:image/png,{quote_from_bytes(data)}",
    ]
    for way in ways:
        np.testing.assert_array_equal(pixels(way), np.asarray(picture))


def transparent_palette() -> Image.Image:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, *RED])
    picture.putpixel((0, 0), 0)
    return picture


@pytest.mark.parametrize(
    ("picture", "kind", "options", "first", "last"),
    [
        (Image.new("L", (8, 8), 99), "PNG", {}, (99,) * 3, (99,) * 3),
        (Image.new("1", (8, 8), 1), "PNG", {}, WHITE, WHITE),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG", {}, WHITE, WHITE),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "WEBP", {"lossless": True}, *2 * [(127,) * 3]),
        (Image.new("LA", (8, 8), (0, 51)), "PNG", {}, (204,) * 3, (204,) * 3),
        (transparent_palette(), "PNG", {}, (0, 0, 0), RED),
        (transparent_palette(), "PNG", {"transparency": 0}, WHITE, RED),
        (transparent_palette(), "GIF", {"transparency": 0}, WHITE, RED),
        (Image.new("RGB", (8, 8), RED), "PNG", {"transparency": RED}, WHITE, WHITE),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", {}, (255, 0, 0), (255, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", {}, (254, 0, 0), (254, 0, 0)),
        (Image.new("I;16", (8, 8), 0x8080), "PNG", {}, (128,) * 3, (128,) * 3),
        (Image.new("I;16B", (8, 8), 0xFFFF), "TIFF", {}, WHITE, WHITE),
        (Image.new("I", (8, 8), 0x8080), "PPM", {}, (128,) * 3, (128,) * 3),
        (Image.new("F", (8, 8), 0.5), "TIFF", {}, (128,) * 3, (128,) * 3),
    ],
)
def test_colour_modes(
    picture: Image.Image,
    kind: str,
    options: dict[str, object],
    first: tuple[int, ...],
    last: tuple[int, ...],
) -> None:
    data = encoded(picture, kind, **options)
    got = pixels(data)
    np.testing.assert_allclose(got[0, 0].astype(int), first, atol=1)
    np.testing.assert_allclose(got[-1, -1].astype(int), last, atol=1)


def test_modes_that_no_file_has() -> None:
    assert tuple(pixels(Image.new("La", (4, 4), (0, 51)))[0, 0]) == (204,) * 3
    assert tuple(pixels(Image.new("RGBa", (4, 4), (0, 0, 0, 51)))[0, 0]) == (204,) * 3
    assert tuple(pixels(Image.new("YCbCr", (4, 4), (255, 128, 128)))[0, 0]) == WHITE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as written:
        assert getattr(written, "n_frames", 1) == 3
    assert tuple(pixels(data)[4, 4]) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind: str, orientation: int) -> None:
    """The stored picture is turned so that undoing the tag gives the upright one back."""
    turn = Image.Transpose
    undo = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM}
    undo |= {5: turn.TRANSPOSE, 6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    upright = painted()
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    got = pixels(encoded(stored, kind, exif=exif, **options.get(kind, {})))
    np.testing.assert_allclose(got.astype(int), np.asarray(upright).astype(int), atol=6)


def test_an_opened_picture_is_rotated_too_and_left_as_it_was() -> None:
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(io.BytesIO(encoded(painted(), "PNG", exif=exif))) as picture:
        assert open_image(picture).size == (20, 30)
        assert picture.size == (30, 20)
        assert picture.getexif()[274] == 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # what Pillow says of it
def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(painted(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert pixels(data).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.full((4, 5), 77, np.uint8), (77,) * 3),
        (np.full((4, 5, 1), 77, np.uint8), (77,) * 3),
        (np.full((4, 5, 3), RED, np.uint8), RED),
        (np.full((4, 5, 4), (*RED, 0), np.uint8), WHITE),
        (np.full((4, 5), 65535, np.uint16), WHITE),
        (np.full((4, 5, 3), 257, np.uint16), (1, 1, 1)),
        (np.full((4, 5), 383, np.dtype(">u2")), (1, 1, 1)),
        (np.ones((4, 5), bool), WHITE),
        (np.full((4, 5, 3), 0.2, np.float32), (51,) * 3),
        (np.full((4, 5, 3), 1.0, np.float16), WHITE),
        (np.full((4, 10, 3), RED, np.uint8)[:, ::-2], RED),
    ],
)
def test_arrays(array: np.ndarray, value: tuple[int, ...]) -> None:
    got = pixels(array)
    assert got.shape == (4, 5, 3)
    assert tuple(got[2, 2]) == value


REFUSED = [
    ("nowhere/at/all.png", errors.ImageNotFoundError, "there is no file 'nowhere"),
    ("", errors.ImageNotFoundError, "empty"),
    ("a\0b.png", errors.ImageNotFoundError, "cannot be opened"),
    ("x" * 5000, errors.ImageNotFoundError, "cannot be opened"),
    (Path(__file__).parent, errors.ImageNotFoundError, "is a folder"),
    (Path(__file__), errors.NotAnImageError, "not an image of a known format"),
    (b"", errors.NotAnImageError, "is empty"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", errors.NotAnImageError, "not an image of a known format"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", errors.NotAnImageError, "convert it to PNG"),
    ("http://example.com/dog.jpg", errors.RemoteImageError, "nothing is fetched"),
    ("HTTPS://example.com/dog.jpg", errors.RemoteImageError, "nothing is fetched"),
    ("s3://bucket/dog.jpg", errors.RemoteImageError, "nothing is fetched"),
    ("data:image/png;base64", errors.NotAnImageError, "no comma"),
    ("data:image/png;base64,%%%", errors.NotAnImageError, "base64"),
    ("data:,hello", errors.NotAnImageError, "not an image"),
    (png_header(60_000, 60_000), errors.ImageTooLargeError, "60000 x 60000 = 3,600,000,000 pixels"),
    (png_header(100, 100), errors.TruncatedImageError, "damaged or cut short"),
    (np.zeros((3, 8, 9), np.uint8), errors.NotAnImageError, "shape 3x8x9"),
    (np.zeros((8,), np.uint8), errors.NotAnImageError, "height x width"),
    (np.zeros((0, 8, 3), np.uint8), errors.NotAnImageError, "no pixels"),
    (np.zeros((4, 4), np.int64), errors.NotAnImageError, "holds int64"),
    (np.full((4, 4), 1.5), errors.NotAnImageError, "outside 0 to 1"),
    (np.full((4, 4), np.nan), errors.NotAnImageError, "outside 0 to 1"),
    (np.full((4, 4), 0x7FA00000).astype("<u4").view("<f4"), errors.NotAnImageError, "outside 0"),
    (Image.new("RGB", (0, 5)), errors.NotAnImageError, "no pixels"),
    (Image.new("I", (4, 4), 1 << 20), errors.NotAnImageError, "32-bit"),
    (12, errors.NotAnImageError, "of type int"),
]


@pytest.mark.parametrize(("image", "error", "words"), REFUSED)
def test_what_cannot_be_opened_is_said_plainly(
    image: ImageInput, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        open_image(image)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message


def test_a_colour_mode_that_pillow_cannot_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", refuse)  # LAB, before Pillow 12
    with pytest.raises(errors.NotAnImageError, match="colour mode LAB"):
        open_image(Image.new("LAB", (4, 4)))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(painted()))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(errors.ImageError, match="may not be read"):
        open_image(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(errors.ImageNotFoundError, match="no ordinary file"):
        open_image(tmp_path / "pipe.png")


def test_the_decode_limit_is_in_pixels_and_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = painted(30, 20)
    for image in (encoded(picture), picture):
        with pytest.raises(errors.ImageTooLargeError, match="limit of 599 pixels"):
            open_image(image, decode_limit=599)
        assert open_image(image, decode_limit=600).size == (30, 20)
    # Pillow's own limit belongs to the process: it neither warns nor stops us here.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_image(encoded(picture), decode_limit=600).size == (30, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_half_a_file_is_called_damaged(kind: str, tmp_path: Path) -> None:
    data = encoded(painted(90, 60), kind)
    path = tmp_path / f"half.{kind.lower()}"
    for part in (data[: len(data) // 2], data[:17]):
        path.write_bytes(part)
        with pytest.raises(errors.TruncatedImageError, match=path.name):
            open_image(path)


@pytest.mark.parametrize(
    "problem",
    [
        *(OSError(), SyntaxError("broken"), RuntimeError("AVIF"), struct.error("short")),
        *(AssertionError(), ZeroDivisionError("timescale"), RecursionError("deep"), SystemError()),
    ],
)
def test_whatever_pillow_raises_on_damage_becomes_one_error(problem: Exception) -> None:
    class Damaged(Image.Image):
        def load(self) -> None:
            raise problem

        size = property(lambda self: (4, 4))  # type: ignore[assignment]

    with pytest.raises(errors.TruncatedImageError, match=str(problem) or type(problem).__name__):
        open_image(Damaged())


FORMATS = (
    *("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "PPM", "QOI"),
    *("ICO", "JPEG2000", "AVIF"),
)
SOUND = {kind: encoded(painted(24, 18), kind) for kind in FORMATS}
SOUND["PNG palette"] = encoded(painted(24, 18).quantize(), "PNG")
SOUND["TIFF packed"] = encoded(painted(24, 18), "TIFF", compression="tiff_lzw")


@given(
    st.sampled_from(sorted(SOUND)),
    st.integers(0, 2000),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4))),
)
@example("PNG", 2, [])  # too short for Pillow's own checks of the first bytes
def test_no_damage_gives_anything_but_a_picture_or_an_image_error(
    kind: str, length: int, damage: list[tuple[int, bytes]]
) -> None:
    data = bytearray(SOUND[kind][: length or None])
    for place, patch in damage:
        place %= len(data)
        data[place : place + len(patch)] = patch
    with contextlib.suppress(errors.ImageError):
        assert open_image(bytes(data), decode_limit=100_000).mode == "RGB"


def test_percent_codes_cost_no_more_than_they_hold() -> None:
    data = encoded(painted(600, 400), "BMP")
    url = "data:image/bmp," + "".join(f"%{byte:02x}" for byte in data)
    tracemalloc.start()
    assert open_image(url).size == (600, 400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(url)
    body = b"a%4" * 70_000 + b"%%41%zz" * 30_000 + b"%"
    assert _unquote(body) == unquote_to_bytes(body)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_header_says_how_large_a_picture_is_seen(kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    for data in (encoded(painted(), kind, exif=exif), encoded(painted(), kind)):
        header = read_header(data)
        assert (header.width, header.height) == open_image(data).size
        assert header.format == kind


def test_an_error_of_the_disk_is_the_pictures_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("abc_embed.inputs.open_file", lambda _: Disk())
    with pytest.raises(errors.ImageError, match=r"'a.png' cannot be read \(Input/output error\)"):
        open_image("a.png")


def test_items_know_their_kind() -> None:
    assert as_item("a dog").kind is Kind.TEXT
    assert Item(image="x").kind is Kind.IMAGE
    assert Item(image=np.zeros((2, 2)), instruction="what?").kind is Kind.INSTRUCTED
    item = Item("a dog")
    assert as_item(item) is item


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, errors.InputError, "is empty"),
        ({"text": "a", "image": "b"}, errors.InputError, "not both"),
        ({"text": "a", "instruction": "b"}, errors.InputError, "not both"),
        ({"instruction": "b"}, errors.InputError, "needs an image"),
        ({"text": ""}, errors.EmptyTextError, "text is empty"),
        ({"text": " \n\t"}, errors.EmptyTextError, "text is empty"),
        ({"image": "b", "instruction": " "}, errors.EmptyTextError, "leave it out"),
        ({"text": 5}, errors.TextError, "of type int"),
        ({"text": "half \ud83d"}, errors.TextError, "Unicode"),
    ],
)
def test_impossible_items(arguments: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Item(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [Path("dog.jpg"), b"bytes", 3, None, np.zeros((2, 2))])
def test_what_may_be_no_image_must_be_wrapped(value: object) -> None:
    assert is_single(value)
    with pytest.raises(errors.InputError, match=r"Item\(image="):
        as_item(value)


def test_pictures_that_can_be_nothing_else_are_items(tmp_path: Path) -> None:
    picture = painted()
    data = encoded(picture)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    with path.open("rb") as file:
        ways: list[object] = [
            *(picture, file, io.BytesIO(data), array, tensor, (tensor / 255).requires_grad_()),
            *({"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, {"path": path}),
        ]
        for way in ways:
            assert is_single(way)
            for _ in range(2):  # a file too can be embedded twice
                item = as_item(way)
                assert item.kind is Kind.IMAGE and item.image is not None
                np.testing.assert_array_equal(pixels(item.image), array)
    assert pixels((tensor[:1] / 255).bfloat16()).shape == (20, 30, 3)
    with pytest.raises(errors.ImageError, match="closed file"):
        open_image(file)
    with path.open(encoding="latin-1") as text:
        assert not is_single(text)
        with pytest.raises(errors.NotAnImageError, match="'rb'"):
            open_image(text)
    with pytest.raises(errors.NotAnImageError, match="neither bytes nor a path"):
        open_image({"bytes": None, "path": None})


def test_arrays_of_words_and_of_pictures_are_many_items() -> None:
    for many in (
        *(np.array(["a", "b"]), np.array(["a", "b"], dtype=object), (name for name in "ab")),
        *(np.zeros((2, 8, 8, 3), np.uint8), torch.zeros(2, 3, 8, 8)),
    ):
        assert not is_single(many)
        assert len([as_item(value) for value in many]) == 2
    assert as_item(np.array("a dog")).text == as_item(np.str_("a dog")).text == "a dog"


class Table(list[str]):
    """As DataFrames are: their names come where rows are meant."""

    columns = ("caption",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"image": "a.png", "instruction": "b"}, r"dict \(of image, instruction\); give Item"),
        ({}, "give Item"),
        (Table(["caption"]), "type Table; give one of its columns"),
        ({"a", "b"}, "no order"),
        (np.zeros((5, 7)), r"shape \(5, 7\)"),
        (torch.zeros(5, 7), r"Tensor and shape \(5, 7\)"),
    ],
)
def test_containers_that_are_no_lists_are_refused_by_name(value: object, words: str) -> None:
    assert is_single(value)
    with pytest.raises(errors.InputError, match=words):
        as_item(value)


def test_a_text_that_names_a_picture_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.PNG"
    path.write_bytes(encoded(painted()))
    values = ["a dog", str(path), Item(str(path)), "b.png", "\0.png", "x" * 5000 + ".png", 3]
    assert list(warn_of_paths(values)) == values
    assert [record.getMessage() for record in caplog.records] == [
        f"{str(path)!r} is embedded as words, though there is an image file of that name; "
        f"to embed the picture, give Item(image={str(path)!r})"
    ]
