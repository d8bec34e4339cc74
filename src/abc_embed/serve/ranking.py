"""Texts ranked for an image under instructions, and which places of it made a cosine."""

import base64
import io
from typing import Any

import numpy as np
from fastapi import Request

from abc_embed.embedder import Evidence
from abc_embed.errors import InputError, RequestError
from abc_embed.inputs import Item, open_image
from abc_embed.serve.engine import Engine
from abc_embed.serve.fields import Fields, ReadImage
from abc_embed.serve.shapes import MAX_INPUTS, make_item, parse_item

MAX_INSTRUCTIONS = 64


class Ranking:
    """The endpoints `/v1/rank` and `/v1/explain`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def rank(self, body: Fields, http: Request, read: ReadImage) -> dict[str, Any]:
        """A ranking of the texts for each instruction."""
        instructions: list[str | None] = [None]
        if "instructions" in body:
            instructions = _texts(body, "instructions", MAX_INSTRUCTIONS)
        texts = _texts(body, "texts", MAX_INPUTS)
        image, item = body.take("image"), body.take("item")
        self._engine.check_model(body.text("model"))
        body.done()
        if (image is None) == (item is None):
            raise RequestError("give one of image and item")
        questions = await self._engine.run(
            http, lambda _: _questions(image, item, instructions, read), "read"
        )
        candidates = [parse_item(text, f"texts[{index}]") for index, text in enumerate(texts)]
        places = [*(["image"] * len(questions)), *(f"texts[{i}]" for i in range(len(texts)))]
        vectors = await self._engine.vectors([*questions, *candidates], places, http)
        first, second = vectors[: len(questions)], vectors[len(questions) :]
        scores = self._engine.embedder.similarity(first, second)
        rankings = []
        for question, row in zip(questions, scores, strict=True):
            order = (-row).argsort(kind="stable")
            ranking = [{"index": int(i), "text": texts[i], "score": float(row[i])} for i in order]
            rankings.append({"instruction": question.instruction, "ranking": ranking})
        return {"object": "list", "model": self._engine.name, "data": rankings}

    async def explain(self, body: Fields, http: Request, read: ReadImage) -> dict[str, Any]:
        """The map of an image's evidence for a text."""
        image, words = body.take("image"), body.text("instruction")
        text = body.text("text", required=True)
        with_png = body.flag("png", False)
        self._engine.check_model(body.text("model"))
        body.done()
        target = (await self._engine.vectors([parse_item(text, "text")], ["text"], http))[0]
        [item] = await self._engine.run(
            http, lambda _: _questions(image, None, [words], read), "read"
        )

        def work(_: object) -> tuple[Evidence, str | None]:
            try:
                evidence = self._engine.embedder.explain(item, target)
                return evidence, overlay_png(evidence, item) if with_png else None
            except InputError as error:
                raise RequestError(f"image: {error}", "image") from None

        evidence, png = await self._engine.run(http, work, "think")
        answer: dict[str, Any] = {
            "object": "evidence",
            "model": self._engine.name,
            "map": np.round(evidence.map, 4).tolist(),
            "peak": evidence.peak,
        }
        return answer if png is None else {**answer, "png": png}


def _questions(
    image: object, item: object, instructions: list[str | None], read: ReadImage
) -> list[Item]:
    if item is not None:
        return [parse_item(item, "item", read)]
    data = read(image, "image")
    return [make_item("image", words, data) for words in instructions]


def _texts(body: Fields, name: str, most: int) -> list[Any]:
    """A list of texts."""
    return [
        Fields({"text": words}, place).text("text", required=True)
        for place, words in body.items(name, most)
    ]


def overlay_png(evidence: Evidence, item: Item) -> str:
    """The picture under its map, as a data: URL."""
    picture = open_image(item.image)  # type: ignore[arg-type]
    picture.thumbnail((1024, 1024))
    stream = io.BytesIO()
    evidence.overlay(picture).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
