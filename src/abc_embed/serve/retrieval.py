"""Searching the indexes of a server, showing their images, and laying them out in the plane."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from abc_embed.errors import DataError, InputError, RequestError, UsageError
from abc_embed.inputs import Item
from abc_embed.pipeline import LRUCache
from abc_embed.serve.engine import Engine, GivenUp
from abc_embed.serve.fields import Fields, ReadImage
from abc_embed.serve.layout import Layout, lay_out
from abc_embed.serve.queue import Embedded
from abc_embed.serve.shapes import make_item
from abc_embed.vectors import truncate

if TYPE_CHECKING:
    from abc_embed.search.queries import Query
    from abc_embed.serve.indexes import Indexes, ServedIndex

MAX_HITS = 1000
MAX_PASSES = 5000
"""Images that one `ask` may look at again."""
MAX_SAMPLE = 1000
"""Images of one map."""
SLICE = 32
"""Images of a map that are read and in the queue at a time, so that others get their turn."""
MAP_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What is looked for."""

    query: "Query"
    count: int
    where: str | None
    ask: str | None
    budget: float
    with_all: bool
    """Hits below the line of "nothing matches", too."""


class Retrieval:
    """The endpoints that need an index."""

    def __init__(self, engine: Engine, indexes: "Indexes | None") -> None:
        self._engine = engine
        self._indexes = indexes
        self._maps: LRUCache[tuple[object, ...], NDArray[np.float32]] = LRUCache(MAP_CACHE_BYTES)

    def _index(self, body: Fields) -> "ServedIndex":
        return self._all().get(body.text("index"))

    def _all(self) -> "Indexes":
        if self._indexes is None:
            raise RequestError(
                "this server has no index; start it with: abc-embed serve --index INDEX",
                "index",
                404,
            )
        return self._indexes

    async def indexes(self, http: Request) -> dict[str, Any]:
        """The indexes that can be searched."""
        served = self._indexes.by_name.values() if self._indexes else ()
        rows = await self._engine.run(http, lambda _: [one.describe() for one in served])
        return {"object": "list", "model": self._engine.name, "data": rows}

    async def image(self, http: Request, index: str, identity: str, side: int) -> bytes:
        """A picture of an index as JPEG.

        Raises:
            RequestError: there is no such picture.
        """
        indexes = self._all()
        return await self._engine.run(http, lambda _: indexes.thumbnail(index, identity, side))

    # -- search ----------------------------------------------------------------------------------

    async def search(self, body: Fields, http: Request, read: ReadImage) -> dict[str, Any]:
        """Images that fit words, a picture, or both."""
        served = self._index(body)
        request = await self._engine.run(
            http, lambda _: self._search_request(body, served, read), "read"
        )
        index = await self._engine.run(http, lambda _: served.fresh())
        await self._engine.run(http, lambda _: _of_request(index.check_query, request.where))
        answer: dict[str, Any] = {
            "object": "list",
            "model": self._engine.name,
            "index": served.name,
            "kind": "ask" if request.ask else request.query.kind,
        }
        if request.ask is not None:
            found = await self._ask(served, request, request.ask, http)
            answer |= {
                "passes": found.passes,
                "images": found.images,
                "share": found.share,
                "unreadable": found.unreadable,
            }
            hits = found.hits
        else:
            from abc_embed.search.queries import weighted_sums

            items = [item for _, item in request.query.parts]
            places = ["text" if item.image is None else "image" for item in items]
            parts = await self._engine.vectors(items, places, http, index.max_pixels)
            vector = _of_request(weighted_sums, [request.query], parts)
            hits = (
                await self._engine.run(
                    http,
                    lambda _: index.search_embedded(
                        [request.query], vector, request.count, where=request.where
                    ),
                )
            )[0]
        from abc_embed.serve.indexes import identity_of

        answer["data"] = [
            {
                "id": identity_of(str(hit.path)),
                "name": served.shown_name(str(hit.path)),
                "score": hit.score,
                "is_answer": hit.is_answer,
            }
            for hit in hits
            if request.with_all or hit.is_answer is not False
        ]
        return answer

    def _search_request(
        self, body: Fields, served: "ServedIndex", read: ReadImage
    ) -> SearchRequest:
        from abc_embed.search.queries import Query
        from abc_embed.serve.indexes import check_filter

        text, image = body.text("text"), body.take("image")
        words = body.text("instruction")
        weights = Fields(body.take("weights") or {}, "weights")
        text_weight = weights.number("text", least=-100, most=100)
        image_weight = weights.number("image", least=-100, most=100)
        weights.done()
        count = body.integer("k", most=MAX_HITS) or 10
        where, ask = body.text("filter"), body.text("ask")
        budget = body.number("budget", least=0, most=1)
        with_all = body.flag("all", False)
        self._engine.check_model(body.text("model"))
        body.done()
        if text is None and image is None:
            raise RequestError("give a text, an image, or both", "text")
        if words is not None and image is None:
            raise RequestError("an instruction needs an image; give one, or use ask", "instruction")
        if budget is not None and (ask is None or budget == 0):
            raise RequestError(
                "budget goes with ask: a share above 0 of the images that it looks at", "budget"
            )
        parts: list[tuple[float, Item]] = []
        if text is not None:
            parts += _text_parts(text, 1.0 if text_weight is None else text_weight)
        if image is not None:
            item = make_item("image", words, read(image, "image"))
            parts.append((1.0 if image_weight is None else image_weight, item))
        if len(parts) > 16 or not any(weight > 0 for weight, _ in parts):
            raise RequestError("give 1 to 16 parts, one of them with a weight above 0", "weights")
        if ask is not None:
            make_item("ask", ask, b"-")  # an instruction without a word is refused
        if where is not None:
            where = check_filter(where, served.filter_columns)
        return SearchRequest(
            Query(tuple(parts)), count, where, ask, budget or 0.1, with_all or ask is not None
        )

    async def _ask(
        self, served: "ServedIndex", request: SearchRequest, words: str, http: Request
    ) -> Any:
        from abc_embed.search.ask import ask

        def work(given_up: GivenUp) -> Any:
            def on_progress(done: int, total: int) -> None:
                if total > MAX_PASSES:
                    raise RequestError(
                        f"that would look at {total:,} images and the most is {MAX_PASSES:,}; "
                        "lower the budget, or narrow the filter",
                        "budget",
                        413,
                    )
                if given_up():
                    raise RequestError("nobody waits for this answer", None, 499)

            return ask(
                served.index,
                request.query,
                words,
                count=request.count,
                budget=request.budget,
                where=request.where,
                on_progress=on_progress,
            )

        return await self._engine.run(http, lambda given_up: _of_request(work, given_up), "think")

    # -- map -------------------------------------------------------------------------------------

    async def map(self, body: Fields, http: Request, _: ReadImage) -> dict[str, Any]:
        """Images of an index as points in the plane, each with its nearest candidate text."""
        from abc_embed.serve.indexes import identity_of

        served = self._index(body)
        words = body.text("instruction")
        texts = [_text(value, place) for place, value in body.items("texts", 24)]
        count = body.integer("sample", least=3, most=MAX_SAMPLE) or 200
        method = body.choice("layout", ("pca", "umap"), "pca")
        self._engine.check_model(body.text("model"))
        body.done()
        index = await self._engine.run(http, lambda _: served.fresh())
        paths, alone = await self._engine.run(http, lambda _: served.sample(count))
        if len(paths) < 3:
            raise RequestError("a map needs an index of at least three images", "index")
        places = [f"texts[{n}]" for n in range(len(texts))]
        items = [make_item(place, text, None) for place, text in zip(places, texts, strict=True)]
        candidates = await self._engine.vectors(items, places, http)
        vectors = alone
        if words is not None:
            make_item("instruction", words, b"-")  # refused before any picture is read
            vectors = await self._instructed(served, paths, words, index.max_pixels, http)
        there = np.asarray(np.isfinite(vectors).all(axis=1))
        if there.sum() < 3:
            raise RequestError("the files of these images are gone; bring the index up to date")
        width = index.dim  # which may be less than the model's
        points, alone = truncate(vectors[there], width), truncate(alone[there], width)
        candidates = truncate(candidates, width)
        layout: Layout = await self._engine.run(
            http, lambda _: lay_out(points, alone, candidates, method), "think"
        )
        shown = [paths[row] for row in np.flatnonzero(there)]
        data = [
            {"id": identity_of(path), "name": served.shown_name(path), **point}
            for path, point in zip(shown, layout.points(), strict=True)
        ]
        return {
            "object": "map",
            "model": self._engine.name,
            "index": served.name,
            "instruction": words,
            "layout": method,
            "images": len(index),
            "unreadable": int((~there).sum()),
            "variance": layout.variance,
            "texts": texts,
            "data": data,
        }

    async def _instructed(
        self,
        served: "ServedIndex",
        paths: list[str],
        words: str,
        max_pixels: int | None,
        http: Request,
    ) -> NDArray[np.float32]:
        """`(N, D)`: the images under an instruction; not a number where a file is gone."""
        key = (served.name, served.version, words, tuple(paths))
        if (known := self._maps.get(key)) is not None:
            return known
        vectors = np.full((len(paths), self._engine.embedder.dim), np.nan, np.float32)
        for start in range(0, len(paths), SLICE):
            files = await self._engine.run(http, _reader(paths[start : start + SLICE]))
            rows = [start + at for at, data in enumerate(files) if data is not None]
            items = [Item(image=data, instruction=words) for data in files if data is not None]
            if not items:
                continue
            results = await self._engine.embed(items, http, max_pixels)
            for row, result in zip(rows, results, strict=True):
                if isinstance(result, Embedded):
                    vectors[row] = result.vector
                elif not isinstance(result, InputError):
                    raise result
        self._maps.put(key, vectors, vectors.nbytes)
        return vectors


def _reader(paths: list[str]) -> Callable[[GivenUp], list[bytes | None]]:
    """The files of paths, None for those that are gone; read when it is called."""
    return lambda _: _read_all(paths)


def _read_all(paths: list[str]) -> list[bytes | None]:
    from abc_embed.serve.indexes import read_listed

    files: list[bytes | None] = []
    for path in paths:
        try:
            files.append(read_listed(path, "id"))
        except RequestError:
            files.append(None)
    return files


def _text_parts(text: str, weight: float) -> "list[tuple[float, Item]]":
    """A text, or a sum of quoted ones, with a weight."""
    from abc_embed.search.queries import parse

    try:
        return [(weight * own, item) for own, item in parse(text).parts]
    except (InputError, UsageError) as error:
        raise RequestError(f"text: {error}", "text") from None


def _text(value: object, place: str) -> str:
    return str(Fields({place: value}, "").text(place, required=True))


def _of_request(work: "Callable[..., Any]", *values: Any) -> Any:
    """What `work` returns; an index's refusal becomes that of the request, without a path."""
    try:
        return work(*values)
    except UsageError as error:
        place = "filter" if "filter" in str(error) else None
        raise RequestError(str(error), place) from None
    except DataError:
        raise RequestError(
            "there is no image to look at; widen the filter, or add images to the index", "filter"
        ) from None
