"""What a search finds. NumPy is not needed for it: a server may have searched."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found."""

    path: Path
    score: float
    """Cosine with what was asked for."""
    is_answer: bool | None = None
    """Whether that is above the line of an index; None: there is no line."""
