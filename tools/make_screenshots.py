"""Take the pictures of the server's pages that the README and the docs show.

    python tools/make_screenshots.py docs/images

A minute; needs Chromium and the extras `serve` and `index`. The pages are those of a server of
the bundled model with an index of drawn pictures; take them again when pages or weights change.
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
from playwright.sync_api import Page, sync_playwright
from serve_process import serving

from abc_embed import Embedder
from abc_embed.scenes.layout import Placed, Scene
from abc_embed.scenes.render import render
from abc_embed.scenes.things import BACKGROUNDS, THINGS
from abc_embed.search import Index

PHOTOS = 240
NAMES = ["a dog", "a cat", "a bicycle", "a tree", "a lemon", "a kite", "a fish", "a teddy bear"]
"""The candidate texts with which the page Map begins."""


def draw_photos(folder: Path) -> None:
    """Two of the things in each picture, side by side, on grounds of all colours."""
    folder.mkdir()
    things = {thing.phrase: thing for thing in THINGS}
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        left, right = rng.choice(NAMES, 2, replace=False)
        up, down = rng.uniform(0.35, 0.65, 2)
        placed = (Placed(things[left], 0.27, up, 0.38), Placed(things[right], 0.73, down, 0.38))
        ground = rng.choice(list(BACKGROUNDS))
        shade = tuple(rng.uniform(-0.6, 0.6, 2))
        scene = Scene(placed, ground, BACKGROUNDS[ground], shade)
        render(scene, 224).save(folder / f"{number:03}.png")


def ask_a_photo(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("article:nth-of-type(2) li")
    page.hover("article li button")
    page.wait_for_selector("#heat:not([hidden])")


def search(page: Page, url: str) -> None:
    page.goto(f"{url}/search")
    page.fill("#text", "a dog")
    page.press("#text", "Enter")
    page.wait_for_selector("#grid li")
    page.wait_for_load_state("networkidle")


def draw_map(page: Page, url: str) -> None:
    page.goto(f"{url}/map")
    page.wait_for_selector("#stage:not(.busy) .point")
    page.check("#instruction-1")
    page.wait_for_selector("#title:has-text('left')")
    page.wait_for_selector("#stage:not(.busy)")


PICTURES = {"page.png": ask_a_photo, "page-search.png": search, "page-map.png": draw_map}


def take(url: str, out: Path) -> None:
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, show in PICTURES.items():
            page = browser.new_page(
                viewport={"width": 1200, "height": 860}, reduced_motion="reduce"
            )
            page.set_default_timeout(120_000)
            show(page, url)
            page.wait_for_timeout(1000)  # pictures are being decoded
            page.screenshot(path=out / name)
            page.close()
        browser.close()


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        photos, index = place / "photos", place / "photos.index"
        draw_photos(photos)
        made = Index.create(index, Embedder.from_pretrained("bundled"), model="bundled")
        made.add([photos])
        with serving(["--index", str(index)], place / "log") as (url, _):
            take(url, out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
