"""The page as a person uses it, in headless Chromium."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_parts import png, running

from abc_embed import Embedder


@pytest.fixture(scope="module")
def address(bundled: Embedder) -> Iterator[str]:
    with running(bundled) as (url, _):
        yield url


@pytest.fixture
def page(open_page: Callable[..., Any], address: str) -> Any:
    return open_page(address)


def answers(page: Any) -> dict[str, str]:
    """Instruction -> the text that stands first."""
    page.wait_for_selector("article li")
    cards = page.query_selector_all("article")
    return {
        card.query_selector("h2").inner_text(): card.query_selector("li span").inner_text()
        for card in cards
    }


def test_the_same_photo_two_questions_two_answers(page: Any) -> None:
    assert answers(page) == {"what is on the left?": "a dog", "what is on the right?": "a cat"}


def test_evidence_by_keyboard(page: Any) -> None:
    answers(page)
    page.focus("article li button")
    page.wait_for_selector("#heat:not([hidden])")
    assert "a dog" in page.inner_text("#evidence")
    photo, heat = (page.query_selector(name).bounding_box() for name in ("#photo", "#heat"))
    assert heat == pytest.approx(photo, abs=1)
    page.focus("#texts")
    page.wait_for_selector("#heat", state="hidden")


def test_questions_and_texts_change_the_answer_and_stay_in_the_address(page: Any) -> None:
    answers(page)
    page.fill("#texts", "a cat\na fish")
    page.fill("#instructions .row:first-child input", "what is the animal on the right?")
    page.click("[aria-label='Take out instruction 2']")
    page.wait_for_selector("article h2:has-text('what is the animal on the right?')")
    page.wait_for_selector("article:only-of-type")
    assert answers(page) == {"what is the animal on the right?": "a cat"}
    page.reload()
    assert answers(page) == {"what is the animal on the right?": "a cat"}


def test_a_picture_of_ones_own(page: Any, tmp_path: Path) -> None:
    answers(page)
    picture, text = tmp_path / "mine.png", tmp_path / "notes.txt"
    picture.write_bytes(png(9, (120, 90)))
    text.write_text("no picture")
    before = page.get_attribute("#photo", "src")
    page.set_input_files("#file", str(text))
    page.wait_for_selector("#error:has-text('That is no picture')")
    page.set_input_files("#file", str(picture))
    page.wait_for_selector("#error:empty")
    assert page.get_attribute("#photo", "src") != before
    page.fill("#texts", "")
    page.wait_for_selector("#error:has-text('at least one candidate')")


CARRY = """([data, way]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], "mine.png", { type: "image/png" }));
  const how = { bubbles: true, cancelable: true };
  document.getElementById("drop").dispatchEvent(
    way === "drop"
      ? new DragEvent("drop", { dataTransfer: carried, ...how })
      : new ClipboardEvent("paste", { clipboardData: carried, ...how }),
  );
}"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page: Any, way: str) -> None:
    answers(page)
    before = page.get_attribute("#photo", "src")
    page.evaluate(CARRY, [base64.b64encode(png(9, (120, 90))).decode(), way])
    for _ in range(200):
        if page.get_attribute("#photo", "src") != before:
            break
        page.wait_for_timeout(50)
    assert page.get_attribute("#photo", "src") != before
    assert answers(page)


def test_another_example(page: Any) -> None:
    page.click("#examples button:has(img[src$='tree_and_bicycle.png'])")
    page.wait_for_selector("article:first-child li:first-child:has-text('a tree')")
    expected = {"what is on the left?": "a tree", "what is on the right?": "a bicycle"}
    assert answers(page) == expected
    page.reload()
    assert answers(page) == expected


@pytest.mark.parametrize("width", [360, 3840])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_screen(
    open_page: Callable[..., Any], address: str, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 900}
    page = open_page(address, viewport=size, color_scheme=scheme, reduced_motion="reduce")
    answers(page)
    for name in ("figure", "form", "#results"):
        box = page.query_selector(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_every_control_has_a_name(page: Any) -> None:
    answers(page)
    for control in page.query_selector_all("input:visible, textarea:visible, button:visible"):
        name = control.get_attribute("aria-label") or control.inner_text()
        identity = control.get_attribute("id")
        labelled = identity and page.query_selector(f"label[for='{identity}']")
        assert name.strip() or labelled


def test_nothing_comes_from_elsewhere(page: Any, address: str) -> None:
    wanted: list[str] = []
    page.on("request", lambda request: wanted.append(request.url))
    page.goto(f"{address}/docs")
    page.wait_for_selector("article:has-text('/v1/embeddings')")
    assert wanted
    assert all(url.startswith((address, "data:", "blob:")) for url in wanted)
