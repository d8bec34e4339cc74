"""`rejects.jsonl` of a run: the rows that were left out, each once, and the share that may be.

    {"step": the step it first came up in, 0 before the first, "place": …, "why": …}

Which row is bad follows from the data alone. So a resumed run leaves out the same; it drops the
lines after its checkpoint, as the metrics do, and counts on from there.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from abc_embed.data import Rejected
from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write
from abc_embed.storage.json_files import json_line
from abc_embed.train.metrics_logger import append_lines, read_metrics

logger = logging.getLogger(__name__)

REJECTS_FILE = "rejects.jsonl"
LEAST_ROWS = 1000
"""A share is taken of at least so many rows, if there are so many: one bad row among the first ten
of a million says little."""


class RejectLog:
    """Counts what is left out, and stops the run when it is too much."""

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        max_share: float,
        rows: int | None,
        unreadable: Iterable[Rejected] = (),
    ) -> None:
        """Go on with the log of a run's folder after `first_step`.

        Args:
            rows: How many the sampler has, if it knows.
            unreadable: Rows that were found bad before the first step; they do not count.
        """
        self.path = folder / REJECTS_FILE
        self._max_share, self._rows = max_share, rows
        lines = [{"step": 0, "place": r.place, "why": r.why} for r in unreadable]
        known = read_metrics(self.path) if self.path.exists() else []
        kept = [line for line in known if 0 < line["step"] <= first_step]
        self._places = {line["place"]: line["why"] for line in kept}
        if lines or kept or self.path.exists():
            with atomic_write(self.path) as file:
                file.writelines(map(json_line, [*lines, *kept]))

    def add(self, step: int, seen: int, rejected: Iterable[Rejected]) -> None:
        """What was left out of a step, of `seen` rows so far, repeated ones too.

        Raises:
            DataError: that is too much.
        """
        new = {r.place: r.why for r in rejected if r.place not in self._places}
        if not new:
            return
        self._places |= new
        lines = ({"step": step, "place": place, "why": why} for place, why in new.items())
        append_lines(self.path, lines)
        for place, why in new.items():
            logger.warning("step %d leaves out %s: %s", step, place, why)
        rows = seen if self._rows is None else min(seen, self._rows)
        of = max(rows, LEAST_ROWS if self._rows is None else min(self._rows, LEAST_ROWS))
        if len(self._places) > max(self._max_share * of, self._max_share > 0):
            place, why = next(iter(self._places.items()))
            raise DataError(
                f"stopped at step {step}: {len(self._places):,} of {of:,} rows cannot be used, "
                f"more than data.max_bad_share ({self._max_share:g}) lets pass; the first is "
                f"{place}: {why}; all are in {self.path}; mend them, or raise data.max_bad_share"
            )
