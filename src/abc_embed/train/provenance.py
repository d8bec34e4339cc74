"""What a trained model says of its own making: each run with its recipe, data and parent.

It goes into `abc.json` and the card of the saved folder, and from there into every record. Paths of
one machine do not: an absolute one is cut to its last part.
"""

from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from abc_embed import hub
from abc_embed.train.config import TrainConfig
from abc_embed.train.fingerprints import Fingerprint


def provenance(config: TrainConfig, fingerprint: Fingerprint, steps: int) -> dict[str, Any]:
    """One run, as JSON values.

    Args:
        fingerprint: Of what it learnt from.
        steps: That were done.
    """
    return {
        "stage": config.stage,
        "steps": steps,
        "parent": _name(config.model.base),
        "parent_fingerprint": fingerprint.base,
        "records": _name(config.data.records),
        "records_fingerprint": fingerprint.records,
        "recipe": _without_paths(asdict(config)),
    }


def _name(place: str) -> str:
    """A place as people call it: of what lies in a run's folder the run."""
    path = PurePath(place)
    inner = path.name == "model" and path.parent.name and place != hub.BUNDLED
    return path.parent.name if inner else path.name if path.is_absolute() else place


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return (
        PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value
    )
