"""The pages Search and Map as a person uses them, in headless Chromium."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_parts import png, running

from abc_embed import Embedder
from abc_embed.scenes.layout import Placed, Scene
from abc_embed.scenes.render import render
from abc_embed.scenes.things import THINGS
from abc_embed.search import Index
from abc_embed.serve.layout import lay_out

NAMES = ["a dog", "a cat", "a bicycle", "a tree"]
IMAGES = 48
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, bundled: Embedder) -> Index:
    """Pictures of two of four things, side by side; their names say which."""
    photos = tmp_path_factory.mktemp("pages") / "photos"
    photos.mkdir()
    things = {thing.phrase: thing for thing in THINGS}
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        left, right = rng.choice(NAMES, 2, replace=False)
        sides = (Placed(things[left], 0.27, 0.5, 0.4), Placed(things[right], 0.73, 0.5, 0.4))
        scene = Scene(sides, "grey", (200, 200, 205), (0.0, 0.0), 3.0, number)
        render(scene, 112).save(photos / f"{left[2:]} {right[2:]} {number}.png")
    made = Index.create(photos.parent / "photos.index", bundled, model="bundled")
    made.add([photos])
    return made


@pytest.fixture(scope="module")
def address(index: Index, bundled: Embedder) -> Iterator[str]:
    with running(bundled, indexes=(index.folder,)) as (url, _):
        yield url


def labels(page: Any) -> list[str]:
    """Names of the pictures in the grid, best first."""
    page.wait_for_selector("#grid li button")
    buttons = page.query_selector_all("#grid li button")
    return [b.get_attribute("aria-label").split(": ")[1].split(",")[0] for b in buttons]


def search(page: Any, words: str) -> None:
    page.fill("#text", words)
    page.press("#text", "Enter")
    page.wait_for_selector("#grid li button")


# -- search ----------------------------------------------------------------------------------------


def test_words_a_large_view_evidence_and_more_like_this(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/search")
    search(page, "a dog")
    found = labels(page)
    assert all("dog" in name for name in found[:5])
    # By keyboard: to the first picture, its evidence, and back.
    page.focus("#grid li button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view[open]")
    page.focus("#explain")
    page.keyboard.press("Enter")
    page.wait_for_selector("#heat:not([hidden])")
    assert "spoke for “a dog”" in page.inner_text("#view-note")
    large, heat = (page.query_selector(name).bounding_box() for name in ("#large", "#heat"))
    assert heat == pytest.approx(large, abs=1)
    page.keyboard.press("Escape")
    page.wait_for_selector("#view", state="hidden")
    page.wait_for_selector("#grid li:first-child button:focus")
    page.keyboard.press("Enter")
    page.click("#like")
    page.wait_for_selector("#with-picture:not([hidden])")
    assert labels(page)[0] == found[0]
    page.reload()
    assert labels(page)[0] == found[0]
    page.go_back()
    page.wait_for_selector("#with-picture", state="hidden")
    assert labels(page)[:5] == found[:5] and page.input_value("#text") == "a dog"


def test_words_typed_before_the_indexes_are_listed(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/search")
    held: list[Any] = []
    page.route("**/v1/indexes", lambda route: held.append(route))
    page.reload()
    page.fill("#text", "a dog")
    held.pop().continue_()
    page.wait_for_selector("#index option", state="attached")
    assert page.input_value("#text") == "a dog"
    page.reload()
    page.fill("#text", "a cat")
    page.press("#text", "Enter")
    held.pop().continue_()
    assert "cat" in labels(page)[0]


def test_a_picture_under_an_instruction(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/search")
    search(page, "a dog")
    page.click("#grid li button")
    page.fill("#under-words", "what is on the left?")
    page.press("#under-words", "Enter")
    page.wait_for_selector("#with-picture:not([hidden])")
    assert page.input_value("#instruction") == "what is on the left?"
    assert labels(page)


def test_every_picture_is_asked(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/search")
    page.click("summary")
    page.fill("#ask", "what is on the left?")
    page.fill("#budget", "100")
    page.wait_for_selector("#ask-hint:has-text('48 most promising')")
    search(page, "a dog")
    page.wait_for_selector("#status:has-text('Looked at 48 of 48 pictures again')")
    on_the_left = sum(name.startswith("dog") for name in labels(page))
    assert all(name.startswith("dog") for name in labels(page)[: on_the_left - 1])


def test_the_grid_grows_as_one_scrolls(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/search", viewport={"width": 800, "height": 300})
    search(page, "a dog")
    page.mouse.wheel(0, 100_000)
    page.wait_for_selector("#next", state="hidden")
    names = labels(page)
    while len(names) < IMAGES:
        page.mouse.wheel(0, 100_000)
        page.wait_for_timeout(100)
        names = labels(page)
    assert len(set(names)) == IMAGES
    assert "nothing fits" in page.inner_text("#grid .line")


def test_errors_stand_beside_their_fields(
    open_page: OpenPage, address: str, tmp_path: Path
) -> None:
    page = open_page(f"{address}/search")
    page.press("#text", "Enter")
    page.wait_for_selector("#error-text:has-text('Write some words')")
    page.click("summary")
    page.fill("#filter", "colour = 'red'")
    page.fill("#text", "a dog")
    page.press("#text", "Enter")
    page.wait_for_selector("#error-filter:has-text('columns here are')")
    assert page.get_attribute("#filter", "aria-invalid") == "true"
    page.fill("#filter", "width > 5000")
    page.press("#filter", "Enter")
    page.wait_for_selector("#status:has-text('No picture passes the filter')")
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    page.set_input_files("#file", str(notes))
    page.wait_for_selector("#error-image:has-text('That is no picture')")


def test_a_picture_of_ones_own_and_words(open_page: OpenPage, address: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(png(9, (120, 90)))
    page = open_page(f"{address}/search")
    page.set_input_files("#file", str(mine))
    labels(page)
    page.fill("#text", "a dog")
    page.wait_for_selector("#with-both:not([hidden])")
    page.fill("#weight", "0.1")
    page.press("#text", "Enter")
    page.wait_for_selector("#grid li button")
    page.reload()
    labels(page)
    assert page.input_value("#weight") == "0.1"
    page.click("#without")
    page.wait_for_selector("#picture", state="hidden")


def test_without_an_index(open_page: OpenPage, url: str) -> None:
    for name in ("search", "map"):
        page = open_page(f"{url}/{name}")
        page.wait_for_selector("#error-index:has-text('abc-embed serve --index')")


def test_with_a_key(open_page: OpenPage, index: Index, bundled: Embedder) -> None:
    with running(bundled, indexes=(index.folder,), keys=("secret",)) as (url, _):
        page = open_page(f"{url}/search")
        page.wait_for_selector("#key:not([hidden])")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.wait_for_selector("#error-index:empty", state="attached")
        search(page, "a dog")
        page.wait_for_selector("#grid img[src^='blob:']")
        page.close()  # before the server goes


# -- map -------------------------------------------------------------------------------------------


def places(page: Any) -> dict[str, tuple[float, float]]:
    """Where each picture of the map lies, in pixels."""
    page.wait_for_selector("#stage:not(.busy) .point")
    boxes = [
        (p.get_attribute("title"), p.bounding_box()) for p in page.query_selector_all(".point")
    ]
    return {name: (box["x"], box["y"]) for name, box in boxes}


def test_another_instruction_moves_the_points(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/map", reduced_motion="reduce")
    page.fill("#texts", "\n".join(NAMES))
    page.wait_for_selector("#status:has-text('48 of 48 pictures')")
    before = places(page)
    for side, word in ((1, "left"), (2, "right")):
        page.check(f"#instruction-{side}")
        page.wait_for_selector(f"#title:has-text('{word}')")
        page.wait_for_selector("#stage:not(.busy)")
        after = places(page)
        assert set(after) == set(before)
        moved = [np.hypot(*np.subtract(after[name], before[name])) for name in before]
        assert np.median(moved) > 10
        before = after
        right = 0
        for point in page.query_selector_all(".point"):
            thing = point.get_attribute("title").split()[side - 1]
            right += f"nearest to a {thing}" in point.get_attribute("aria-label")
        assert right >= 0.8 * IMAGES
    page.reload()
    page.wait_for_selector("#title:has-text('right')")
    assert page.input_value("#texts").split("\n") == NAMES


def test_the_map_by_keyboard(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/map", reduced_motion="reduce")
    here = places(page)
    page.focus(".point[tabindex='0']")
    assert len(page.query_selector_all(".point[tabindex='0']")) == 1
    first = page.get_attribute(".point:focus", "title")
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    for key in ("ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        if page.get_attribute(".point:focus", "title") != first:
            break
    second = page.get_attribute(".point:focus", "title")
    assert second in here
    page.keyboard.press("Enter")
    page.wait_for_selector("#view[open] li:has-text('nearest to')")
    assert page.inner_text("#view-name") == second
    page.click("#like")
    page.wait_for_selector("#grid li button")
    assert labels(page)[0] == second


def test_legend_new_instruction_and_play(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/map", reduced_motion="reduce")
    places(page)
    page.click("#legend button:has-text('a dog')")
    page.wait_for_selector("#legend button[aria-pressed='true']:has-text('a dog')")
    page.wait_for_selector(".point.other")
    page.click("#add")
    page.wait_for_selector("#error-instruction:has-text('Write an instruction')")
    page.fill("#new", "what is the animal?")
    page.press("#new", "Enter")
    page.wait_for_selector("#title:has-text('what is the animal?')")
    page.wait_for_selector("#stage:not(.busy)")
    page.click("#play")
    page.wait_for_selector("#title:has-text('The picture alone')")
    page.click("#play")
    page.fill("#texts", "")
    page.wait_for_selector("#error-texts:has-text('at least one candidate')")


def test_umap_where_it_is_installed(open_page: OpenPage, address: str) -> None:
    pytest.importorskip("umap", reason="needs the extra umap")
    some = np.random.default_rng(0).normal(size=(IMAGES, 256)).astype(np.float32)
    lay_out(some, some, some, "umap")  # its first time it compiles, for up to a minute
    page = open_page(f"{address}/map", reduced_motion="reduce")
    page.fill("#texts", "\n".join(NAMES))
    page.check("#instruction-1")
    page.wait_for_selector("#status:has-text('% of the variance')")
    by_variance = places(page)
    page.select_option("#layout", "umap")
    page.wait_for_selector("#status:not(:has-text('variance')):has-text('48 of 48 pictures')")
    by_neighbours = places(page)
    assert set(by_neighbours) == set(by_variance)
    names = list(by_neighbours)
    moved = [np.hypot(*np.subtract(by_neighbours[n], by_variance[n])) for n in names]
    assert np.median(moved) > 10
    # What a picture's neighbour shows on the left is what it shows there itself.
    where = np.array([by_neighbours[name] for name in names])
    apart = np.linalg.norm(where[:, None] - where, axis=-1)
    np.fill_diagonal(apart, np.inf)
    left = np.array([name.split()[0] for name in names])
    assert (left[apart.argmin(axis=1)] == left).mean() > 0.8
    page.reload()
    page.wait_for_selector("#status:not(:has-text('variance')):has-text('48 of 48 pictures')")
    assert page.input_value("#layout") == "umap"


def test_umap_that_is_missing_is_said_beside_its_field(
    open_page: OpenPage, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    page = open_page(f"{address}/map", reduced_motion="reduce")
    page.select_option("#layout", "umap")
    page.wait_for_selector("#error-layout:has-text('abc-embed[umap]')")
    page.select_option("#layout", "pca")
    page.wait_for_selector("#error-layout:empty", state="attached")
    assert places(page)


# -- all pages -------------------------------------------------------------------------------------


def settled(page: Any, name: str) -> None:
    page.wait_for_selector({"search": "#grid li button", "map": ".point"}.get(name, "article"))


SEARCH = "search#" + "%7B%22text%22%3A%22a%20dog%22%7D"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(open_page: OpenPage, address: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for path in ("", SEARCH, "map", "docs"):
        page = open_page(
            f"{address}/{path}", bypass_csp=True, color_scheme=scheme, reduced_motion="reduce"
        )
        settled(page, path.partition("#")[0])
        found = Axe().run(page).response["violations"]
        faults = [
            f"{path}: {one['id']} {[node['html'][:120] for node in one['nodes'][:3]]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not faults


@pytest.mark.parametrize("width", [360, 3840])
def test_they_fit_any_screen(open_page: OpenPage, address: str, width: int) -> None:
    for path in (SEARCH, "map"):
        page = open_page(
            f"{address}/{path}", viewport={"width": width, "height": 800}, reduced_motion="reduce"
        )
        settled(page, path.partition("#")[0])
        for name in ("nav", "form", "section", ".point", "#grid"):
            for part in page.query_selector_all(name):
                box = part.bounding_box()
                assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= width + 1)


def test_nothing_comes_from_elsewhere(open_page: OpenPage, address: str) -> None:
    page = open_page(f"{address}/search")
    wanted: list[str] = []
    page.on("request", lambda request: wanted.append(request.url))
    for path in ("search", "map"):
        answer = page.goto(f"{address}/{path}")
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        page.wait_for_selector("#index option", state="attached")
    assert wanted and all(one.startswith((address, "data:", "blob:")) for one in wanted)
