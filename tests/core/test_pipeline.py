"""Many items: memory that stays flat, pictures encoded once, bad items, threads that end."""

import gc
import io
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import golden_parts
import numpy as np
import pytest
import torch
from PIL import Image

from abc_embed import errors
from abc_embed import pipeline as pipeline_module
from abc_embed.embedder import Embedder
from abc_embed.inputs import Item, Skipped, image_key, is_stable_key
from abc_embed.pipeline import EmbeddingPipeline, LRUCache
from abc_embed.processor import Batch

FEW = 4 * 28 * 28


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(*golden_parts.shared())


@pytest.fixture
def encoded(model: Embedder) -> Iterator[list[int]]:
    """How many pictures each call of the vision encoder was given."""
    calls: list[int] = []
    real = model.model.backbone.encode_images

    def counting(pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        calls.append(len(grid_thw))
        return real(pixel_values, grid_thw)

    with mock.patch.object(model.model.backbone, "encode_images", counting):
        yield calls


def pictures(count: int, size: int = 30) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (size, size, 3), np.uint8) for _ in range(count)]


# -- memory ----------------------------------------------------------------------------------------


def test_what_pictures_leave_free_is_given_back(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "WINDOW_VISUAL_TOKENS", 8)  # two pictures per window
    given_back: list[int] = []
    monkeypatch.setattr(pipeline_module, "trim_memory", lambda: given_back.append(1))
    for _ in model.stream(["a dog"] * 100):
        pass
    assert not given_back
    for _ in model.stream([Item(image=p) for p in pictures(12)], max_pixels=FEW):
        pass
    assert 4 <= len(given_back) <= 12
    given_back.clear()
    model.embed(Item(image=pictures(1)[0]), max_pixels=FEW)
    assert not given_back  # a single picture has nothing to wait for


def test_what_is_skipped_holds_no_picture(model: Embedder) -> None:
    line = Image.new("L", (30_000, 100))
    with io.BytesIO() as stream:
        line.save(stream, "PNG")
        thin = stream.getvalue()
    with io.BytesIO() as stream:
        line.save(stream, "BMP")
        cut = stream.getvalue()[:-500]
    items = [Item(image=data) for data in (thin, cut)] + [Item(image="\udcff" * 1200)]
    vectors, skipped = model.embed([Item("a dog"), *items], on_error="skip")
    assert len(vectors) == 1 and [bad.index for bad in skipped] == [1, 2, 3]
    for bad in skipped:
        assert bad.error.__traceback__ is bad.error.__context__ is bad.error.__cause__ is None
    held = [value for value in gc.get_objects() if issubclass(type(value), Image.Image)]
    assert not [value for value in held if value.width == 30_000 and value is not line]


def test_a_stream_of_a_million_items_reads_and_holds_a_bounded_number(model: Embedder) -> None:
    alive = read = most_alive = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def items() -> Iterator[Item]:
        nonlocal alive, read, most_alive
        for number in range(1_000_000):
            image = np.full((28, 28, 3), number % 251, np.uint8)
            weakref.finalize(image, gone)
            alive, read = alive + 1, read + 1
            most_alive = max(most_alive, alive)
            yield Item(image=image)

    batch_size = 2
    window = pipeline_module.WINDOW_BATCHES * batch_size
    stream = model.stream(items(), batch_size=batch_size, max_pixels=FEW)
    for handed_out, _ in zip(range(1, 6 * window), stream, strict=False):
        assert read - handed_out <= 2 * window
    assert read <= 8 * window
    assert most_alive <= 2 * window + 1
    del stream
    gc.collect()
    assert alive <= 1  # the one in the generator's own frame


def test_a_stream_reads_nothing_before_it_is_asked(model: Embedder) -> None:
    read: list[int] = []
    stream = model.stream((read.append(n) or "a dog" for n in range(10)), batch_size=1)
    assert read == []
    next(stream)
    assert read


def test_large_pictures_make_smaller_windows(model: Embedder) -> None:
    parts = (model.model, model.processor)
    assert EmbeddingPipeline(*parts).window_images == 16  # of 1024 visual tokens each
    assert EmbeddingPipeline(*parts, max_pixels=FEW).window_images == 4096
    assert EmbeddingPipeline(*parts, max_pixels=28 * 28 * 100_000).window_images == 1


def test_what_was_used_last_is_kept() -> None:
    recent: LRUCache[str, int] = LRUCache(10)
    for key, weight in (("a", 4), ("b", 4)):
        recent.put(key, 1, weight)
    assert recent.get("a") == 1
    recent.put("c", 1, 4)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 1)
    recent.put("too large", 1, 99)
    assert recent.get("too large") == 1
    assert recent.get("a") is recent.get("c") is None


def test_keys_of_pictures() -> None:
    array = np.zeros((4, 4))
    assert image_key("a dog") is image_key(Item("a dog")) is None
    assert image_key(Item(image="a.png")) == image_key(Item(image=Path("a.png")))
    assert image_key(Item(image=b"abc")) == image_key(Item(image=bytes(bytearray(b"abc"))))
    assert image_key(Item(image=array)) == image_key(Item(image=array, instruction="b"))
    assert image_key(Item(image=array)) != image_key(Item(image=array.copy()))
    assert len(image_key(Item(image="data:," + "x" * 10_000))) == 16
    assert not is_stable_key(image_key(Item(image=array)))
    assert is_stable_key(image_key(Item(image="a.png")))


def test_the_first_window_is_one_batch_so_that_the_model_starts_at_once(model: Embedder) -> None:
    sizes: list[int] = []
    real = EmbeddingPipeline._windows

    def windows(self: EmbeddingPipeline, *arguments: Any) -> Any:
        for window in real(self, *arguments):
            sizes.append(len(window.jobs))
            yield window

    with mock.patch.object(EmbeddingPipeline, "_windows", windows):
        model.embed(["a dog"] * 40, batch_size=4)
        assert sizes == [4, 32, 4]
        sizes.clear()
        model.embed([f"a dog {n}" for n in range(700)])  # by the budget of tokens
    tokens = model.processor.features(Item("a dog 100")).tokens
    assert abs(sizes[0] - pipeline_module.CPU_BATCH_TOKENS / tokens) < 3
    assert sum(sizes) == 700


def test_beside_a_gpu_results_are_fetched_a_batch_later(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has the next batch, of the next window too, before a batch is waited for."""
    events: list[tuple[str, int]] = []

    def from_device(vectors: torch.Tensor) -> Any:
        number = sum(what == "launched" for what, _ in events)
        events.append(("launched", number))
        return lambda: events.append(("fetched", number)) or vectors

    texts = [f"a dog {n}" for n in range(45)]
    plain = model.embed(texts, batch_size=4)
    monkeypatch.setattr(pipeline_module, "from_device", from_device)
    pipeline = model.pipeline(batch_size=4)
    pipeline._in_flight = 1
    results = dict(pipeline.run(enumerate(texts)))
    assert list(results) == list(range(45))
    assert np.abs(np.stack(list(results.values())) - plain).max() < 1e-6
    assert len(events) == 2 * 12  # windows of 1, 8 and 3 batches
    for number in range(11):
        assert events.index(("launched", number + 1)) < events.index(("fetched", number))
        assert events.index(("fetched", number)) < events.index(("fetched", number + 1))


def test_the_key_of_a_picture_is_computed_once_a_call(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed: list[object] = []
    real = pipeline_module.image_key
    monkeypatch.setattr(
        pipeline_module, "image_key", lambda value: keyed.append(value) or real(value)
    )
    picture = golden_parts.picture("aligned_560x448.png").image
    content = Path(picture).read_bytes()
    items = [Item(image=content), Item(image=content, instruction="left?"), Item(image=picture)]
    model.embed(items, max_pixels=FEW)
    assert keyed == items


def test_a_slow_picture_does_not_hold_up_the_threads(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second picture is opened while the first one, in another thread, waits for it."""
    monkeypatch.setattr(pipeline_module.os, "cpu_count", lambda: 8)
    second_is_open = threading.Event()
    real = _open()

    def open_image(image: Any, **options: Any) -> Any:
        if image == first:
            assert second_is_open.wait(20)
        else:
            second_is_open.set()
        return real(image, **options)

    first, second = (str(golden_parts.picture(name).image) for name in ("small.png", "large.png"))
    with mock.patch("abc_embed.processor.open_image", open_image):
        model.embed([Item(image=first), Item(image=second)], max_pixels=FEW)


# -- pictures once ---------------------------------------------------------------------------------


def test_a_picture_with_many_instructions_is_opened_and_encoded_once(
    model: Embedder, encoded: list[int]
) -> None:
    items = [golden_parts.picture("small.png", f"what is number {n}?") for n in range(40)]
    items.insert(7, golden_parts.picture("small.png"))
    with mock.patch("abc_embed.processor.open_image", wraps=_open()) as opened:
        vectors = model.embed(items, batch_size=2, max_pixels=FEW)  # 3 windows, 21 batches
    assert encoded == [1]
    assert opened.call_count == 1
    assert len(np.unique(vectors.round(6), axis=0)) == 41


def _open() -> Any:
    from abc_embed.inputs import open_image

    return open_image


def test_so_it_is_in_a_stream(model: Embedder, encoded: list[int]) -> None:
    array = pictures(1)[0]
    items = (Item(image=array, instruction=f"what is number {n}?") for n in range(40))
    assert len(list(model.stream(items, batch_size=2, max_pixels=FEW))) == 40
    assert encoded == [1]


def test_a_list_is_grouped_so_that_far_apart_is_near(
    model: Embedder, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "WINDOW_VISUAL_TOKENS", 8)  # two pictures per window
    arrays = pictures(12)
    items = [Item(image=array) for array in arrays]
    items += [Item(image=array, instruction="left?") for array in arrays]
    model.embed(items, batch_size=4, max_pixels=FEW)
    assert sum(encoded) == 12


def test_equal_pixels_under_two_names_are_encoded_once(model: Embedder, encoded: list[int]) -> None:
    array = pictures(1)[0]
    model.embed([Item(image=array), Item(image=array.copy(), instruction="left?")])
    assert encoded == [1]


def test_an_identity_that_passes_to_another_picture_is_no_trap(model: Embedder) -> None:
    """Arrays are freed on the way, and new ones get their addresses."""
    count = 5 * pipeline_module.WINDOW_BATCHES
    shades = (Item(image=np.full((28, 28, 3), 5 * n, np.uint8)) for n in range(count))
    vectors = list(model.stream(shades, batch_size=1, max_pixels=FEW))
    assert len(np.unique(np.round(vectors, 5), axis=0)) == count


# -- bad items -------------------------------------------------------------------------------------

BAD = [
    ("", errors.EmptyTextError),
    (Item(image="no such file.png"), errors.ImageNotFoundError),
    (Item(image=b"no picture"), errors.NotAnImageError),
    (Item(image=np.zeros((1, 5000, 3), np.uint8), instruction="left?"), errors.AspectError),
    ("dog! " * 5000, errors.TextTooLongError),
    (3, errors.InputError),
]


def test_skipping_costs_only_the_bad_items(model: Embedder) -> None:
    good: list[object] = ["a dog", Item(image=pictures(1)[0]), "a cat", "!"]
    items = list(good)
    for place, (value, _) in enumerate(BAD):
        items.insert(2 * place, value)
    places = [n for n, value in enumerate(items) if not any(value is bad for bad, _ in BAD)]
    vectors, skipped = model.embed(items, on_error="skip", batch_size=2)
    assert [bad.index for bad in skipped] == [n for n in range(len(items)) if n not in places]
    assert [type(bad.error) for bad in skipped] == [error for _, error in BAD]
    assert all(bad.item is items[bad.index] for bad in skipped)
    assert str(skipped[1]).startswith("item 2: there is no file 'no such file.png'")
    np.testing.assert_allclose(vectors, model.embed(good), atol=1e-5)

    results = list(model.stream(iter(items), on_error="skip", batch_size=2))
    assert [n for n, result in enumerate(results) if not isinstance(result, Skipped)] == places
    np.testing.assert_allclose([results[n] for n in places], vectors, atol=1e-5)


@pytest.mark.parametrize(("value", "error"), BAD)
def test_raising_names_the_item_and_loses_nothing_before_it(
    model: Embedder, value: object, error: type[Exception]
) -> None:
    items = ["a", "b", "c", value, "d"]
    got: list[np.ndarray] = []
    with pytest.raises(error, match=r"^item 3: "):
        for vector in model.stream(items, batch_size=2):
            got.append(vector)
    np.testing.assert_allclose(got, model.embed(["a", "b", "c"]), atol=1e-5)
    with pytest.raises(error, match=r"^item 3: "):
        model.embed(items)


def test_an_error_of_the_iterable_itself_passes_through(model: Embedder) -> None:
    def items() -> Iterator[str]:
        yield "a dog"
        raise LookupError("the database went away")

    with pytest.raises(LookupError, match="database"):
        list(model.stream(items()))


def test_numbers_that_overflow_are_an_error_and_no_vector(model: Embedder) -> None:
    nowhere = torch.full((1, model.dim), torch.nan)
    with (
        mock.patch.object(model.model, "embed", return_value=nowhere),
        pytest.raises(errors.NotFiniteError, match="overflowed in float32"),
    ):
        model.embed("a dog")


def test_a_batch_that_does_not_fit_is_halved_and_said_once(
    model: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    real, sizes = model.model.embed, []

    def embed(batch: Batch, visual: torch.Tensor | None) -> torch.Tensor:
        sizes.append(len(batch.input_ids))
        if len(batch.input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch, visual)

    items = [f"a dog {n}" for n in range(10)]
    alone = model.embed(items)
    with mock.patch.object(model.model, "embed", embed):
        vectors = model.embed(items * 2, batch_size=10)
    np.testing.assert_allclose(vectors, np.tile(alone, (2, 1)), atol=1e-5)
    assert sizes[:3] == [10, 5, 2] and max(sizes[-5:]) <= 3
    (record,) = caplog.records
    assert record.message.startswith("cpu has too little memory for 10 items of up to ")


def test_too_little_memory_for_one_item_is_said_plainly(model: Embedder) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")
    for items in ("a dog", ["a dog", "a", "b"]):
        with (
            mock.patch.object(model.model, "embed", side_effect=full),
            pytest.raises(
                errors.OutOfMemoryError, match=r"one item of \d+ tokens; lower max_pixels"
            ),
        ):
            model.embed(items)


# -- threads and modes -----------------------------------------------------------------------------


def preparing() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("abc-embed")]


def test_a_stream_that_is_left_early_ends_its_thread(model: Embedder) -> None:
    stream = model.stream(f"photo {n}" for n in range(10**6))
    next(stream)
    assert preparing()
    del stream
    gc.collect()
    assert not preparing()


def test_a_model_in_training_stays_so_but_embeds_without_dropout() -> None:
    model, processor = golden_parts.published()
    model.train()
    seen: list[bool] = []
    model.head.register_forward_hook(lambda *_: seen.append(model.training))
    Embedder(model, processor).embed("a dog")
    assert seen == [False]
    assert model.training


def test_threads_take_turns(model: Embedder) -> None:
    """The adapter is switched for a whole model: two calls at once would disturb each other."""
    items = [golden_parts.small("left?"), golden_parts.small(), Item("a dog")]
    alone = model.embed(items, max_pixels=FEW)
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        results[number] = np.stack(list(model.stream(items * 6, batch_size=1, max_pixels=FEW)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        np.testing.assert_allclose(results[n], np.tile(alone, (6, 1)), atol=1e-5)


def test_what_a_source_gave_before_it_failed_is_handed_out(model: Embedder) -> None:
    def texts() -> Iterator[str]:
        yield from (f"text {number}" for number in range(30))
        raise RuntimeError("the source broke")

    given = []
    with pytest.raises(RuntimeError, match="the source broke"):
        for vector in model.stream(texts()):
            given.append(vector)
    assert len(given) == 30
