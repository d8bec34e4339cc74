"""`abc-embed compare` and `quickstart`: rankings, tables, JSON, pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_parts import Cli, picture
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.cli import plot
from abc_embed.cli.quickstart import QUESTIONS, TEXTS, example_picture
from abc_embed.cli.rankings import Ranking

NAMES = ["a dog", "a cat", "[bold]a horse[/bold]"]
ASKED = ["what is on the left?", "what is on the right?"]


def test_one_ranking_per_instruction(cli: Cli, tiny: Path, embedder: Embedder, here: Path) -> None:
    words = [word for asked in ASKED for word in ("--instruction", asked)]
    done = cli("compare", "photo.jpg", *NAMES, *words, "--json", "--model", tiny)
    shown = json.loads(done.out)
    assert shown["image"] == "photo.jpg"
    assert [ranking["instruction"] for ranking in shown["rankings"]] == ASKED
    texts = embedder.embed(NAMES)
    for ranking in shown["rankings"]:
        query = embedder.embed(Item(image="photo.jpg", instruction=ranking["instruction"]))
        expected = dict(zip(NAMES, embedder.similarity(query, texts), strict=True))
        rows = ranking["ranking"]
        assert [row["rank"] for row in rows] == [1, 2, 3]
        assert [row["text"] for row in rows] == sorted(NAMES, key=lambda t: -expected[t])
        for row in rows:
            assert row["score"] == pytest.approx(expected[row["text"]], abs=1e-5)


def test_tables_for_people(cli: Cli, tiny: Path, here: Path) -> None:
    words = [word for asked in ASKED for word in ("--instruction", asked)]
    done = cli("compare", "photo.jpg", *NAMES, *words, "--model", tiny)
    first, second = (done.out.index(asked) for asked in ASKED)
    assert first < second
    assert done.out.count("[bold]a horse[/bold]") == 2
    assert all(line == line.rstrip() for line in done.out.splitlines())
    assert done.err == ""


def test_without_an_instruction_the_image_alone(
    cli: Cli, tiny: Path, embedder: Embedder, here: Path
) -> None:
    done = cli("compare", "photo.jpg", "a dog", "--json", "--model", tiny)
    (ranking,) = json.loads(done.out)["rankings"]
    assert ranking["instruction"] is None
    image, text = embedder.embed([Item(image="photo.jpg"), "a dog"])
    assert ranking["ranking"][0]["score"] == pytest.approx(float(image @ text), abs=1e-5)
    assert "the image alone" in cli("compare", "photo.jpg", "a dog", "--model", tiny).out


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp"])
def test_a_plot(cli: Cli, tiny: Path, here: Path, name: str) -> None:
    done = cli("compare", "photo.jpg", *NAMES, "--plot", name, "--model", tiny)
    assert done.code == 0
    assert done.err == f"drawn in {name}\n"
    with Image.open(name) as drawn:
        assert drawn.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name[4:]]
        assert drawn.width > 900


def test_what_spoke_for_each_answer(cli: Cli, tiny: Path, embedder: Embedder, here: Path) -> None:
    """One panel an instruction, each with the map of its own best text over the photo."""
    words = [word for asked in ASKED for word in ("--instruction", asked)]
    plain = ("compare", "photo.jpg", *NAMES, *words, "--plot", "out.png", "--model", tiny)
    done = cli(*plain, "--explain", "--json")
    assert done.code == 0
    with Image.open("photo.jpg") as opened:
        photo = opened.convert("RGB")
    expected = []
    for ranking in json.loads(done.out)["rankings"]:
        best = ranking["ranking"][0]["text"]
        item = Item(image="photo.jpg", instruction=ranking["instruction"])
        shown = Ranking(
            ranking["instruction"],
            [row["text"] for row in ranking["ranking"]],
            [row["score"] for row in ranking["ranking"]],
        )
        expected.append(plot.draw(embedder.explain(item, best).overlay(photo), [shown]))
    with Image.open("out.png") as drawn:
        assert (np.asarray(drawn) == np.asarray(plot.stack(expected))).all()
    assert (np.asarray(expected[0]) != np.asarray(expected[1])).any()
    refused = cli("compare", "photo.jpg", "a dog", "--explain", "--model", "no-such-model")
    assert refused.code == 2 and "--plot" in refused.err


def test_a_plot_of_a_format_that_is_none(cli: Cli, here: Path) -> None:
    done = cli("compare", "photo.jpg", "a dog", "--plot", "out.svg", "--model", "no-such-model")
    assert done.code == 2
    assert "'out.svg' does not end in .png" in done.error


def test_bars_are_as_long_as_their_scores() -> None:
    ranking = Ranking("left?", ["a", "b", "c"], [0.5, 0.25, -0.1])
    drawn = np.asarray(plot.draw(picture(0), [ranking]))
    best = (drawn == plot.BEST).all(axis=2).sum(axis=1).max()
    others = (drawn == plot.BAR).all(axis=2).sum(axis=1)
    assert best == pytest.approx(plot.BARS, abs=2)
    assert others.max() == pytest.approx(plot.BARS / 2, abs=2)


def test_long_texts_many_texts_and_thin_images_are_drawn_too() -> None:
    texts = ["a very long text " * 20, *(str(number) for number in range(200))]
    ranking = Ranking("why? " * 100, texts, [0.0] * 201)
    drawn = plot.draw(picture(0, (4, 400)), [ranking, Ranking(None, ["x"], [-1.0])])
    assert drawn.height < 2 * plot.MARGIN + plot.MOST_LINES * plot.LINE * (plot.MOST + 6)
    assert drawn.width < 1000


def test_the_quickstart_says_when_nothing_swaps(cli: Cli, tiny: Path) -> None:
    """The small random model sees no difference between left and right."""
    done = cli("quickstart", "--model", tiny)
    assert done.code == 1
    assert [done.out.count(asked) for asked in QUESTIONS] == [1, 1]
    assert done.out.splitlines()[-1].startswith("The ranking does not swap as it should: on the")
    assert done.err == ""


def test_the_quickstart_for_programs(cli: Cli, tiny: Path, here: Path) -> None:
    done = cli("quickstart", "--model", tiny, "--json", "--plot", "quick.png")
    shown = json.loads(done.out)
    assert shown["swaps"] is False
    assert {row["text"] for row in shown["rankings"][0]["ranking"]} == set(TEXTS)
    assert Path("quick.png").is_file()


def test_the_quickstart_swaps_with_the_bundled_model(cli: Cli, bundled_folder: Path) -> None:
    done = cli("quickstart")
    assert done.code == 0, done.out
    verdict = "The ranking swaps: on the left a dog, on the right a cat."
    assert done.out.splitlines()[-1] == verdict


def test_the_example_picture_is_what_its_tool_draws() -> None:
    import importlib.util

    tool = Path(__file__).parents[2] / "tools" / "make_example.py"
    spec = importlib.util.spec_from_file_location("make_example", tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with Image.open(example_picture()) as kept:
        drawn = np.asarray(module.draw(), np.int16)
        assert np.abs(drawn - np.asarray(kept.convert("RGB"), np.int16)).max() <= 2
    assert drawn.shape == (448, 448, 3)
