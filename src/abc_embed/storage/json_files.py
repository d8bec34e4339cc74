"""JSON objects in files: read with an error that names the file, written so that equal is equal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abc_embed.errors import AbcError, CheckpointError


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
        content = json.loads(path.read_text(encoding="utf-8"))
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
    """Write a JSON object, keys sorted, so that equal content makes equal files."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
