"""Five ways to ask for embeddings, each with the answer that its clients parse.

A shape turns a request into an `EmbedRequest` and vectors into an answer. It knows neither the
model nor HTTP. An image with a text in one input is an image with an instruction.
"""

import base64
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import InputError, RequestError
from abc_embed.inputs import Item, read_header
from abc_embed.processor import Truncate
from abc_embed.serve.fields import Fields, ReadImage, image_bytes, kind_of

MAX_INPUTS = 2048
"""Inputs of one request, as OpenAI has it."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What was asked for, whatever the shape."""

    items: Sequence[Item | InputError]
    """An error stands for an item that cannot be read, where bad ones are skipped."""
    places: list[str]
    """Where each item stands in the request, like `input[3]`."""
    model: str | None = None
    dimensions: int | None = None
    """Width to which vectors are cut; None: the model's own."""
    outputs: tuple[str, ...] = ("float",)
    """float, base64, int8, uint8, binary or ubinary; several only where the shape has several."""
    truncate: Truncate | None = None
    """What words do that are too long; None: as the server's model says."""
    skip_bad: bool = False
    """A bad item costs only itself."""
    echo: dict[str, Any] = field(default_factory=dict)
    """What the answer repeats of the request."""


Encoded = dict[str, list[Any]]
"""Output -> one JSON value an item; null for an item that was skipped."""


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """What came of a request, whatever the shape."""

    model: str
    encoded: Encoded
    errors: dict[int, str]
    """Sentences of the items that were skipped, by index."""
    tokens: int
    image_pixels: int
    images: int


class Shape(ABC):
    """One way to ask."""

    path: ClassVar[str]
    width_field: ClassVar[str] = "output_dimension"
    """What says the width of the vectors."""

    @abstractmethod
    def parse(self, body: Fields, read: ReadImage) -> EmbedRequest:
        """The request, its images read by `read`.

        Raises:
            RequestError: it cannot be understood; the place is named.
        """

    @abstractmethod
    def answer(self, request: EmbedRequest, result: EmbedResult) -> dict[str, Any]:
        """The body of the answer."""

    @abstractmethod
    def error(self, message: str, place: str | None, status: int) -> dict[str, Any]:
        """The body of a refusal."""


class OpenAI(Shape):
    """`/v1/embeddings`: texts, chat messages (vLLM), lists of parts (Jina, SGLang), infinity."""

    path = "/v1/embeddings"
    width_field = "dimensions"

    def parse(self, body: Fields, read: ReadImage) -> EmbedRequest:
        model = body.text("model")
        output = body.choice("encoding_format", ("float", "base64"), "float")
        kinds = ("float", "base64", "int8", "uint8", "binary", "ubinary")
        output = body.choice("embedding_type", kinds, output)
        dimensions = body.integer(self.width_field)
        modality = body.choice("modality", ("text", "image"), "text")
        skip = body.choice("on_error", ("raise", "skip"), "raise") == "skip"
        if not body.flag("normalized", True):
            body.refuse("normalized", "is false, and vectors here have unit length; leave it out")
        body.text("user")
        if "messages" in body:
            parsed = list(self._messages(body, read, skip))
        else:
            parsed = list(self._input(body, modality, read, skip))
        body.done()
        places, items = [place for place, _ in parsed], [item for _, item in parsed]
        return EmbedRequest(items, places, model, dimensions, (output,), skip_bad=skip)

    def _input(
        self, body: Fields, modality: str, read: ReadImage, skip: bool
    ) -> Iterator[tuple[str, Item | InputError]]:
        value = body.take("input")
        place = body.at("input")
        if isinstance(value, str | dict):
            yield place, _item_or_error(partial(_one, value, place, modality, read), skip)
            return
        if not isinstance(value, list) or not value:
            raise RequestError(
                f"{place} is {kind_of(value) if value != [] else 'empty'}; give a "
                "text or a list of inputs",
                place,
            )
        if len(value) > MAX_INPUTS:
            raise RequestError(
                f"{place} has {len(value):,} inputs and the most is {MAX_INPUTS:,}", place, 413
            )
        if isinstance(value[0], list) or type(value[0]) is int:
            raise RequestError(
                f"{place} holds token ids, which belong to one tokenizer; give texts", place
            )
        for index, element in enumerate(value):
            at = f"{place}[{index}]"
            yield at, _item_or_error(partial(_one, element, at, modality, read), skip)

    def _messages(
        self, body: Fields, read: ReadImage, skip: bool
    ) -> Iterator[tuple[str, Item | InputError]]:
        messages = body.items("messages", MAX_INPUTS)
        if all(isinstance(message, list) for _, message in messages):
            for place, conversation in messages:
                turns = [(f"{place}[{i}]", m) for i, m in enumerate(conversation)]
                yield place, _item_or_error(partial(_conversation, turns, place, read), skip)
        else:
            whole = partial(_conversation, messages, "messages", read)
            yield "messages", _item_or_error(whole, skip)

    def answer(self, request: EmbedRequest, result: EmbedResult) -> dict[str, Any]:
        data: list[dict[str, Any]] = []
        for index, vector in enumerate(result.encoded[request.outputs[0]]):
            row = {"object": "embedding", "index": index, "embedding": vector}
            data.append(row | ({"error": result.errors[index]} if index in result.errors else {}))
        tokens = {"prompt_tokens": result.tokens, "total_tokens": result.tokens}
        return {"object": "list", "data": data, "model": result.model, "usage": tokens}

    def error(self, message: str, place: str | None, status: int) -> dict[str, Any]:
        return openai_error(message, place, status)


def openai_error(message: str, place: str | None, status: int) -> dict[str, Any]:
    """The body of a refusal as OpenAI has it, used by all endpoints of our own too."""
    kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": place, "code": status}}


class Cohere(Shape):
    """`/v2/embed`."""

    path = "/v2/embed"
    _TYPES = ("search_document", "search_query", "classification", "clustering", "image")
    _OUTPUTS = ("float", "int8", "uint8", "binary", "ubinary", "base64")

    def parse(self, body: Fields, read: ReadImage) -> EmbedRequest:
        model = body.text("model")
        body.choice("input_type", self._TYPES, "search_document")
        dimensions = body.integer(self.width_field)
        cut = body.choice("truncate", ("NONE", "START", "END"), "END")
        if cut == "START":
            body.refuse(
                "truncate", "is START, and words are cut at their end here; give END or NONE"
            )
        body.integer("priority", least=0)
        outputs: tuple[str, ...] = ("float",)
        if "embedding_types" in body:
            listed = body.items("embedding_types", len(self._OUTPUTS))
            for place, output in listed:
                if output not in self._OUTPUTS:
                    known = ", ".join(self._OUTPUTS)
                    raise RequestError(f"{place} must be one of: {known}", place)
            outputs = tuple(dict.fromkeys(output for _, output in listed))
        given = [name for name in ("texts", "images", "inputs") if name in body]
        if len(given) != 1:
            raise RequestError("give exactly one of texts, images, inputs", None)
        name = given[0]
        elements = body.items(name, MAX_INPUTS)
        echo: dict[str, Any] = {}
        if name == "texts":
            items = [_one(element, place, "text", read) for place, element in elements]
            echo = {"texts": [element for _, element in elements]}
        elif name == "images":
            items = [_one(element, place, "image", read) for place, element in elements]
            echo = {"images": list(map(_image_facts, items))}
        else:
            items = [_content(element, place, read) for place, element in elements]
        body.done()
        places = [place for place, _ in elements]
        truncate: Truncate = "error" if cut == "NONE" else "end"
        return EmbedRequest(items, places, model, dimensions, outputs, truncate, echo=echo)

    def answer(self, request: EmbedRequest, result: EmbedResult) -> dict[str, Any]:
        units = {"input_tokens": result.tokens, "images": result.images}
        return {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type",
            "embeddings": result.encoded,
            **request.echo,
            "meta": {"api_version": {"version": "2"}, "billed_units": units},
        }

    def error(self, message: str, place: str | None, status: int) -> dict[str, Any]:
        return {"message": message}


class Voyage(Shape):
    """`/v1/multimodalembeddings`."""

    path = "/v1/multimodalembeddings"
    _OUTPUTS = ("float", "int8", "uint8", "binary", "ubinary")

    def parse(self, body: Fields, read: ReadImage) -> EmbedRequest:
        model = body.text("model")
        body.choice("input_type", ("query", "document"), "document")
        truncate: Truncate = "end" if body.flag("truncation", True) else "error"
        output = body.choice("output_dtype", self._OUTPUTS, "float")
        # The library sends `encoding_format`, the documentation says `output_encoding`.
        names = ("output_encoding", "encoding_format")
        encodings = [body.choice(name, ("base64",), "") for name in names]
        if "base64" in encodings:
            output = "base64"
        dimensions = body.integer(self.width_field)
        elements = body.items("inputs", 1000)
        items = [_content(element, place, read) for place, element in elements]
        body.done()
        places = [place for place, _ in elements]
        return EmbedRequest(items, places, model, dimensions, (output,), truncate)

    def answer(self, request: EmbedRequest, result: EmbedResult) -> dict[str, Any]:
        data = [
            {"object": "embedding", "embedding": vector, "index": index}
            for index, vector in enumerate(result.encoded[request.outputs[0]])
        ]
        cost = {
            "text_tokens": result.tokens,
            "image_pixels": result.image_pixels,
            "video_pixels": 0,
            "total_tokens": result.tokens,
        }
        return {"object": "list", "data": data, "model": result.model, "usage": cost}

    def error(self, message: str, place: str | None, status: int) -> dict[str, Any]:
        return {"detail": message}


SHAPES: tuple[Shape, ...] = (OpenAI(), Cohere(), Voyage())


def _image_facts(item: Item) -> dict[str, Any]:
    """What Cohere says of an image; nothing of a bad one, which ends the request later."""
    with suppress(InputError):
        header = read_header(item.image or b"")
        return {
            "width": header.width,
            "height": header.height,
            "format": header.format.lower(),
            "bit_depth": header.bits,
        }
    return {}


# -- the parts of an input -------------------------------------------------------------------------


def _item_or_error(parse: Callable[[], Item], skip: bool) -> Item | InputError:
    """What `parse` makes; where bad items are skipped, what is wrong with it.

    Raises:
        RequestError: it is bad and `skip` is not set.
    """
    try:
        return parse()
    except RequestError as error:
        if not skip:
            raise
        return InputError(str(error))


def make_item(place: str, text: str | None, image: bytes | None) -> Item:
    """A text, an image, or an image with an instruction.

    Raises:
        RequestError: a text that cannot be embedded, or nothing at all.
    """
    try:
        if image is None:
            return Item(text=text)
        return Item(image=image, instruction=text)
    except InputError as error:
        raise RequestError(f"{place}: {error}", place) from None


def parse_item(value: object, place: str, read: ReadImage = image_bytes) -> Item:
    """`"text"`, `{"text"}`, `{"image"}` or `{"image", "instruction"}`."""
    return _one(value, place, "text", read)


def _one(value: object, place: str, modality: str, read: ReadImage) -> Item:
    if isinstance(value, str):
        if modality == "image":
            return make_item(place, None, read(value, place))
        return make_item(place, value, None)
    if not isinstance(value, dict):
        raise RequestError(
            f'{place} is {kind_of(value)}; give a text, {{"text": …}} or {{"image": …}}', place
        )
    fields = Fields(value, place)
    text, words = fields.text("text"), fields.text("instruction")
    image = fields.take("image")
    fields.done()
    if image is None and words is not None:
        raise RequestError(f"{place} has an instruction but no image; give one", place)
    if text is not None and words is not None:
        raise RequestError(f"{place} has both text and instruction; give one of them", place)
    data = None if image is None else read(image, f"{place}.image")
    return make_item(place, text if words is None else words, data)


def _conversation(messages: Sequence[tuple[str, Any]], place: str, read: ReadImage) -> Item:
    """Chat messages -> one item: all their parts together."""
    parts: list[tuple[str, Any]] = []
    for at, message in messages:
        fields = Fields(message, at)
        fields.choice("role", ("user", "system", "assistant"), "user")
        content = fields.take("content")
        fields.done()
        if isinstance(content, str):
            parts.append((f"{at}.content", {"type": "text", "text": content}))
        elif isinstance(content, list):
            parts += [(f"{at}.content[{i}]", part) for i, part in enumerate(content)]
        else:
            raise RequestError(
                f"{at}.content is {kind_of(content)}; give a text or a list of parts",
                f"{at}.content",
            )
    return _from_parts(parts, place, read)


def _content(value: object, place: str, read: ReadImage) -> Item:
    """`{"content": [parts]}` -> one item."""
    fields = Fields(value, place)
    parts = fields.items("content", 16)
    fields.done()
    return _from_parts(parts, place, read)


def _from_parts(parts: Sequence[tuple[str, Any]], place: str, read: ReadImage) -> Item:
    texts: list[str] = []
    images: list[bytes] = []
    for at, part in parts:
        fields = Fields(part, at)
        kind = fields.choice("type", ("text", "image_url", "image_base64"), "")
        if kind == "text":
            texts.append(str(fields.text("text", required=True)))
        elif kind == "image_base64":
            images.append(read(fields.take("image_base64"), f"{at}.image_base64"))
        elif kind == "image_url":
            url, where = fields.take("image_url"), f"{at}.image_url"
            if isinstance(url, dict):
                inner = Fields(url, where)
                url = inner.take("url")
                inner.choice("detail", ("auto", "low", "high"), "auto")
                inner.done()
                where = f"{where}.url"
            images.append(read(url, where))
        else:
            raise RequestError(f"{at} says no type; give text, image_url or image_base64", at)
        fields.done()
    if len(images) > 1:
        raise RequestError(f"{place} has {len(images)} images; one input is one image", place)
    text = "\n".join(texts) if texts else None
    return make_item(place, text, images[0] if images else None)


# -- vectors as JSON -------------------------------------------------------------------------------


def as_base64(vector: NDArray[np.float32]) -> str:
    """Little-endian float32 in base64: bit-equal on the other side."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
