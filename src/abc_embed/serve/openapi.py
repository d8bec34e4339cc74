"""What each path takes, for `/openapi.json`: schemas and examples of the bodies, one summary each.

Bodies are read by hand in `fields` and `shapes`, so that a refusal names its place; what is written
here is for people and for programs that make requests from it.
"""

from typing import Any

_TEXT = {"type": "string", "minLength": 1}
_DATA_URL = "data:image/png;base64,…"


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(of: Any, most: int) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1, "maxItems": most}


def _words(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


def _number(least: float, most: float) -> dict[str, Any]:
    return {"type": "number", "minimum": least, "maximum": most}


def _integer(most: int = 1 << 31, least: int = 1) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


_IMAGE = {
    "oneOf": [
        {"type": "string", "description": "a data: URL, or base64; an address where allowed"},
        _object(("id",), index=_TEXT, id={"type": "string", "pattern": "^[0-9a-f]{16}$"}),
    ]
}
_ELEMENT = {"oneOf": [_TEXT, _object(text=_TEXT, image=_IMAGE, instruction=_TEXT)]}
_PART = {
    "oneOf": [
        _object(("type", "text"), type=_words("text"), text=_TEXT),
        _object(("type", "image_base64"), type=_words("image_base64"), image_base64=_IMAGE),
        _object(
            ("type", "image_url"),
            type=_words("image_url"),
            image_url={"oneOf": [_IMAGE, _object(("url",), url=_IMAGE, detail=_TEXT)]},
        ),
    ]
}
_CONTENT = _object(("content",), content=_list(_PART, 16))
_MESSAGE = _object(
    ("content",),
    role=_words("user", "system", "assistant"),
    content={"oneOf": [_TEXT, _list(_PART, 16)]},
)

_SCHEMAS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": _object(
        model=_TEXT,
        input={"oneOf": [_TEXT, _ELEMENT, _list(_ELEMENT, 2048)]},
        messages=_list({"oneOf": [_MESSAGE, _list(_MESSAGE, 16)]}, 2048),
        encoding_format=_words("float", "base64"),
        embedding_type=_words("float", "base64", "int8", "uint8", "binary", "ubinary"),
        dimensions=_integer(),
        modality=_words("text", "image"),
        normalized={"type": "boolean"},
        on_error=_words("raise", "skip"),
        user={"type": "string"},
    ),
    "/v2/embed": _object(
        model=_TEXT,
        input_type=_words(
            "search_document", "search_query", "classification", "clustering", "image"
        ),
        texts=_list(_TEXT, 2048),
        images=_list(_IMAGE, 2048),
        inputs=_list(_CONTENT, 2048),
        embedding_types=_list(_words("float", "int8", "uint8", "binary", "ubinary", "base64"), 6),
        output_dimension=_integer(),
        truncate=_words("NONE", "START", "END"),
        priority=_integer(least=0),
    ),
    "/v1/multimodalembeddings": _object(
        ("inputs",),
        model=_TEXT,
        inputs=_list(_CONTENT, 1000),
        input_type=_words("query", "document"),
        truncation={"type": "boolean"},
        output_dtype=_words("float", "int8", "uint8", "binary", "ubinary"),
        output_encoding=_words("base64"),
        encoding_format=_words("base64"),
        output_dimension=_integer(),
    ),
    "/v1/rank": _object(
        ("texts",),
        model=_TEXT,
        image=_IMAGE,
        item=_ELEMENT,
        texts=_list(_TEXT, 2048),
        instructions=_list(_TEXT, 64),
    ),
    "/v1/explain": _object(
        ("image", "text"),
        model=_TEXT,
        image=_IMAGE,
        text=_TEXT,
        instruction=_TEXT,
        png={"type": "boolean"},
    ),
    "/v1/search": _object(
        model=_TEXT,
        index=_TEXT,
        text=_TEXT,
        image=_IMAGE,
        instruction=_TEXT,
        weights=_object(text=_number(-100, 100), image=_number(-100, 100)),
        filter={"type": "string", "maxLength": 2000},
        k=_integer(1000),
        ask=_TEXT,
        budget={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        all={"type": "boolean"},
    ),
    "/v1/map": _object(
        ("texts",),
        model=_TEXT,
        index=_TEXT,
        texts=_list(_TEXT, 24),
        instruction=_TEXT,
        sample=_integer(1000, 3),
        layout=_words("pca", "umap"),
    ),
}
_ASKED = {"image": _DATA_URL, "instruction": "what is on the left?"}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["a dog", _ASKED], "encoding_format": "float", "dimensions": 128},
    "/v2/embed": {
        "input_type": "search_document",
        "texts": ["a dog"],
        "embedding_types": ["float", "ubinary"],
    },
    "/v1/multimodalembeddings": {"inputs": [{"content": [{"type": "text", "text": "a dog"}]}]},
    "/v1/rank": {
        "image": _DATA_URL,
        "texts": ["a dog", "a cat"],
        "instructions": ["what is on the left?"],
    },
    "/v1/explain": {**_ASKED, "text": "a dog", "png": True},
    "/v1/search": {
        "index": "photos.index",
        "text": "a dog",
        "filter": "width > 1000",
        "k": 10,
        "ask": "what is on the left?",
        "budget": 0.1,
    },
    "/v1/map": {
        "index": "photos.index",
        "texts": ["a dog", "a cat"],
        "instruction": "what is on the left?",
        "sample": 200,
    },
}
SUMMARIES = {
    "/v1/embeddings": "OpenAI: texts; chat messages (vLLM); lists (Jina, SGLang); infinity",
    "/v2/embed": "Cohere",
    "/v1/multimodalembeddings": "Voyage",
    "/v1/rank": "Texts ranked for an image",
    "/v1/explain": "Which places made the cosine",
    "/v1/search": "Images of an index that fit words, a picture, or both",
    "/v1/map": "Images of an index in the plane, each with its nearest text",
}


def request_body(path: str) -> dict[str, Any]:
    """The part of the schema that says what a path takes."""
    json = {"schema": _SCHEMAS[path], "example": _EXAMPLES[path]}
    return {"requestBody": {"required": True, "content": {"application/json": json}}}
