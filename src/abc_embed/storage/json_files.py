"""JSON in files: read with an error that names the file, written so that equal is equal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abc_embed.errors import AbcError, CheckpointError
from abc_embed.storage.files import atomic_write, read_file


def read_json(
    path: Path,
    *,
    required: bool = True,
    error: type[AbcError] = CheckpointError,
    mend: str = "get the model's files again",
) -> dict[str, Any]:
    """A JSON object from a file; empty if the file is absent and not `required`.

    Raises:
        error: it is missing, damaged, or no object; the sentence ends with `mend`.
    """
    try:
        content = json.loads(read_file(path).decode())
    except FileNotFoundError:
        if not required:
            return {}
        raise error(f"there is no file {path}; {mend}") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # no JSON, or no text at all
        raise error(f"{path} is damaged ({problem}); {mend}") from None
    if not isinstance(content, dict):
        raise error(f"{path} holds no JSON object; {mend}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object into a folder that is not in its place yet; keys are sorted."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def atomic_write_json(
    path: Path, value: Any, *, indent: int | None = 1, ensure_ascii: bool = True
) -> None:
    """Write a JSON value and a line's end, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
        ValueError: the value holds a number that is not finite, which is no JSON.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    with atomic_write(path) as file:
        file.write((text + "\n").encode(errors="replace"))


def json_line(value: Any) -> bytes:
    """A JSON value as a line of a file, whatever a name in it is made of."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n"
