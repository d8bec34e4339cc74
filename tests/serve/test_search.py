"""Search and map over HTTP: what the index itself says, and nothing of the machine."""

import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serve_parts import data_url, png, running

from abc_embed import Embedder, Item
from abc_embed.errors import DataError, RequestError, UsageError
from abc_embed.search import Index
from abc_embed.search.ask import ask
from abc_embed.search.queries import Query
from abc_embed.serve import retrieval
from abc_embed.serve.indexes import Indexes, check_filter, identity_of
from abc_embed.serve.layout import lay_out

WORDS = "what is on the left?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = tmp_path_factory.mktemp("files") / "photos"
    photos.mkdir()
    for shade in range(12):
        size = (56, 56) if shade % 2 else (84, 56)
        (photos / f"{shade:02}.png").write_bytes(png(shade, size))
    return photos


@pytest.fixture(scope="module")
def index(folder: Path, embedder: Embedder) -> Index:
    made = Index.create(folder.parent / "photos.index", embedder, model="golden")
    made.add([folder])
    return made


@pytest.fixture(scope="module")
def url(index: Index, embedder: Embedder) -> Iterator[str]:
    with running(embedder, indexes=(index.folder,)) as (address, _):
        yield address


def search(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/search", json=body, timeout=60)


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["name"] for hit in answer.json()["data"]]


def test_what_may_use_the_model_has_a_thread_that_ends(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second thread with helpers of OpenMP would slow every later batch (`in_own_thread`)."""
    used: list[threading.Thread] = []
    embed = Index.search_embedded

    def noted(*values: Any, **named: Any) -> Any:
        used.append(threading.current_thread())
        return embed(*values, **named)

    monkeypatch.setattr(Index, "search_embedded", noted)
    assert search(url, text="a dog").status_code == 200
    assert [thread.is_alive() for thread in used] == [False]


# -- what is found ---------------------------------------------------------------------------------


def test_a_search_is_that_of_the_index(url: str, index: Index) -> None:
    asked = {"image": data_url(png(3)), "instruction": WORDS}
    mixed = Query(((2.0, Item(text="a dog")), (-0.5, Item(image=png(3)))))
    for query, body in (
        ("a dog", {"text": "a dog"}),
        (Item(image=png(3)), {"image": data_url(png(3))}),
        (Item(image=png(3), instruction=WORDS), asked),
        ('"a dog" - 0.5*"a cat"', {"text": '"a dog" - 0.5*"a cat"'}),
        (
            mixed,
            {
                "text": "a dog",
                "image": data_url(png(3)),
                "weights": {"text": 2, "image": -0.5},
            },
        ),
    ):
        expected = index.search(query, 5)  # type: ignore[arg-type]
        answer = search(url, **body, k=5, all=True)
        assert names(answer) == [hit.path.name for hit in expected]
        scores = [hit["score"] for hit in answer.json()["data"]]
        assert scores == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert [h["is_answer"] for h in answer.json()["data"]] == [h.is_answer for h in expected]
        only = names(search(url, **body, k=5))
        assert only == [hit.path.name for hit in expected if hit.is_answer is not False]


def test_filters(url: str) -> None:
    wide = names(search(url, text="a dog", k=20, filter="height > 60", all=True))
    assert sorted(wide) == [f"{n:02}.png" for n in range(0, 12, 2)]
    none = search(url, text="a dog", filter="width > 6000")
    assert none.status_code == 200 and none.json()["data"] == []


def test_ask_looks_again(url: str, index: Index) -> None:
    answer = search(url, text="a dog", ask=WORDS, budget=0.5, k=4)
    expected = ask(index, "a dog", WORDS, count=4, budget=0.5)
    assert names(answer) == [hit.path.name for hit in expected.hits]
    said = answer.json()
    assert (said["kind"], said["passes"], said["images"]) == ("ask", 6, 12)


def test_ask_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "MAX_PASSES", 3)
    refused = search(url, text="a dog", ask=WORDS, budget=1)
    assert refused.status_code == 413 and "lower the budget" in refused.text


def test_more_like_an_image_of_the_index(url: str, folder: Path) -> None:
    identity = identity_of(str(folder / "03.png"))
    same = search(url, image={"index": "photos.index", "id": identity}, k=3, all=True)
    assert names(same)[0] == "03.png"
    ranked = httpx.post(
        f"{url}/v1/rank", json={"image": {"id": identity}, "texts": ["a dog", "a cat"]}, timeout=60
    )
    as_file = httpx.post(
        f"{url}/v1/rank",
        json={"image": data_url((folder / "03.png").read_bytes()), "texts": ["a dog", "a cat"]},
        timeout=60,
    )
    assert ranked.json() == as_file.json()


def test_it_follows_what_others_write(
    tmp_path: Path, folder: Path, embedder: Embedder, index: Index
) -> None:
    made = Index.create(tmp_path / "own.index", embedder)
    made.add([folder / "00.png", folder / "01.png"])
    with running(embedder, indexes=(made.folder,)) as (url, _):
        assert len(names(search(url, text="a dog", all=True))) == 2
        made.add([folder / "02.png"])
        assert len(names(search(url, text="a dog", all=True))) == 3
        identity = identity_of(str(folder / "02.png"))
        image = f"{url}/v1/indexes/own.index/images/{identity}"
        assert httpx.get(image).status_code == 200
        made.remove([folder / "02.png"])
        assert len(names(search(url, text="a dog", all=True))) == 2
        assert httpx.get(image).status_code == 404


# -- what is shown ---------------------------------------------------------------------------------


def test_images_by_id_alone(url: str, folder: Path) -> None:
    place = f"{url}/v1/indexes/photos.index/images"
    answer = httpx.get(f"{place}/{identity_of(str(folder / '00.png'))}?side=64")
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (43, 64) and answer.headers["content-type"] == "image/jpeg"
    for wrong in ("0" * 16, "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "00.png", "x" * 5000):
        assert httpx.get(f"{place}/{wrong}").status_code == 404
    assert httpx.get(f"{place}/{'0' * 16}?side=9999999").status_code == 400
    assert httpx.get(f"{place}/{'0' * 16}?side=x").status_code == 400
    assert httpx.get(f"{url}/v1/indexes/other/images/{'0' * 16}").status_code == 404


def test_a_file_that_is_gone(tmp_path: Path, embedder: Embedder) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for shade in range(4):
        (photos / f"{shade}.png").write_bytes(png(shade))
    made = Index.create(tmp_path / "i", embedder)
    made.add([photos])
    (photos / "0.png").unlink()
    (photos / "1.png").write_bytes(b"no picture")
    gone, broken = (identity_of(str(photos / f"{n}.png")) for n in (0, 1))
    with running(embedder, indexes=(made.folder,)) as (url, _):
        for identity in (gone, broken):
            answer = httpx.get(f"{url}/v1/indexes/i/images/{identity}")
            assert answer.status_code == 410 and str(tmp_path) not in answer.text
        assert search(url, image={"id": gone}).status_code == 410
        asked = search(url, text="a dog", ask=WORDS, budget=1)
        assert asked.json()["unreadable"] == 2
        drawn = httpx.post(f"{url}/v1/map", json={"texts": ["a dog"], "instruction": WORDS})
        assert drawn.status_code == 400 and "are gone" in drawn.text


def test_nothing_of_the_machine_is_told(url: str, folder: Path) -> None:
    root = str(folder.parent.parent)
    said = [
        httpx.get(f"{url}/v1/indexes").text,
        search(url, text="a dog", all=True).text,
        search(url, text="a dog", filter="width >").text,
        search(url, text="a dog", filter="path like '/%'").text,
        search(url, text="a dog", filter="width > 9999", ask=WORDS).text,
        httpx.post(f"{url}/v1/map", json={"texts": ["a dog"]}).text,
    ]
    assert not [text for text in said if root in text or "Traceback" in text or ".rs:" in text]


# -- what is refused -------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({}, 400, "give a text, an image, or both", "text"),
    ({"text": ""}, 400, "text: the text is empty", "text"),
    ({"text": "a", "index": "other"}, 404, "index must be one of: photos.index", "index"),
    ({"text": "a", "instruction": "b"}, 400, "an instruction needs an image", "instruction"),
    ({"text": "a", "k": 0}, 400, "k must be a whole number from 1 to 1000", "k"),
    ({"text": "a", "budget": 0.5}, 400, "budget goes with ask", "budget"),
    ({"text": "a", "ask": "b", "budget": 2}, 400, "budget must be a number", "budget"),
    ({"text": "a", "ask": ""}, 400, "ask: the instruction is empty", "ask"),
    ({"text": "a", "weights": {"text": -1}}, 400, "a weight above 0", "weights"),
    ({"text": "a", "weights": {"x": 1}}, 400, "weights.x is not known", "weights.x"),
    ({"text": '-"a"'}, 400, "says only what is not wanted", "text"),
    ({"text": "a", "filter": "colour = 1"}, 400, "columns here are: width", "filter"),
    ({"text": "a", "filter": "width > 'x'"}, 400, "LanceDB refuses the filter", "filter"),
    ({"text": "a", "filter": ""}, 400, "LanceDB refuses the filter", "filter"),
    ({"text": "a", "filter": "1=1) or (1=1"}, 400, "cannot be read", "filter"),
    ({"image": {"id": "nope"}}, 404, "no image of this id", "id"),
    ({"image": {"name": "a"}}, 400, "image.id is missing", "image.id"),
    ({"image": "/etc/passwd"}, 400, "image is no base64", "image"),
]


@pytest.mark.parametrize(("body", "status", "words", "place"), BAD)
def test_a_bad_search_is_one_sentence(
    url: str, body: dict[str, Any], status: int, words: str, place: str | None
) -> None:
    answer = search(url, **body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == place


def test_without_an_index_it_says_how_to_get_one(served: tuple[str, Any]) -> None:
    url = served[0]
    assert httpx.get(f"{url}/v1/indexes").json()["data"] == []
    assert "--index" in search(url, text="a dog").text
    assert httpx.get(f"{url}/v1/indexes/a/images/{'0' * 16}").status_code == 404


def test_indexes_are_checked_before_serving(
    index: Index, embedder: Embedder, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="two indexes are called"):
        Indexes([index.folder, index.folder], embedder)
    with pytest.raises(DataError, match="is no index"):
        Indexes([tmp_path], embedder)


@pytest.mark.parametrize(
    "where",
    [
        "repeat('a', 1000000000) = 'b'",
        "path = '/x'",
        "width = 1 -- 2",
        "width = 1 /* 2 */",
        "(" * 40 + "width = 1" + ")" * 40,
        "(width = 1",
        "width = 1; drop table images",
        "width = (select 1)",
        'width = "path"',
        "w" * 3000,
    ],
)
def test_a_filter_is_plain(where: str) -> None:
    with pytest.raises(RequestError):
        check_filter(where, ["width"])


def test_a_filter_may_use_columns_and_values() -> None:
    where = "width >= 10.5 and not (place in ('O''Hara', 'x(') or starts_with(place, 'a'))"
    assert check_filter(where, ["width", "place"]) == where


# -- the map ---------------------------------------------------------------------------------------


def test_a_map(url: str, embedder: Embedder, folder: Path) -> None:
    texts = ["a dog", "a cat"]
    body = {"texts": texts, "instruction": WORDS, "sample": 8}
    answer = httpx.post(f"{url}/v1/map", json=body, timeout=60).json()
    assert len(answer["data"]) == 8 and answer["images"] == 12
    candidates = embedder.embed(texts)
    for point in answer["data"]:
        vector = embedder.embed(Item(image=str(folder / point["name"]), instruction=WORDS))
        scores = candidates @ vector
        assert point["text"] == scores.argmax()
        assert point["score"] == pytest.approx(scores.max(), abs=1e-3)
        assert max(abs(point["x"]), abs(point["y"])) <= 1
    alone = httpx.post(f"{url}/v1/map", json={**body, "instruction": None}, timeout=60).json()
    assert [p["id"] for p in alone["data"]] == [p["id"] for p in answer["data"]]
    more = httpx.post(f"{url}/v1/map", json={**body, "sample": 11}, timeout=60).json()
    assert {p["id"] for p in answer["data"]} < {p["id"] for p in more["data"]}


def test_umap_keeps_groups_apart() -> None:
    pytest.importorskip("umap", reason="needs the extra umap")
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(12, 3)))[0].T
    group = np.arange(60) % 3
    alone = (centres[group] + 0.05 * rng.normal(size=(60, 12))).astype(np.float32)
    layout = lay_out(alone, alone, centres.astype(np.float32), "umap")
    assert layout.variance is None and np.abs(layout.places).max() == 1
    assert (layout.nearest == group).all()
    apart = np.linalg.norm(layout.places[:, None] - layout.places, axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (group[apart.argmin(axis=1)] == group).all()


def test_the_plane_is_turned_towards_the_pictures_alone() -> None:
    """The same vectors, turned and mirrored in their space, lie where they lay."""
    rng = np.random.default_rng(0)
    alone = rng.normal(size=(40, 6)).astype(np.float32) * np.array([3, 2, 0.1, 0.1, 0.1, 0.1])
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    texts = rng.normal(size=(2, 6)).astype(np.float32)
    first = lay_out(alone, alone, texts)
    turned = lay_out(alone @ turn, alone, texts)
    assert np.abs(first.places - turned.places).max() < 1e-6
    assert first.variance is not None and first.variance > 0.95
    assert re.fullmatch(r"[0-9a-f]{16}", identity_of("x"))
