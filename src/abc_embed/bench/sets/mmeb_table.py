"""MMEB's sets in one table, beside the paper's column (section 6). Does not measure."""

from collections.abc import Sequence

from abc_embed.bench.sets.findings import Findings
from abc_embed.bench.sets.mmeb import KINDS, PAPER

Line = tuple[str, str, str, str]


def rows(found: Sequence[Findings]) -> list[Line]:
    """(set, rows, accuracy in %, the paper's); after each kind the mean over its sets.

    A mean says how many sets it stands on; the paper's is given only where all its sets are there.
    """
    accuracy = {f["benchmark"].removeprefix("mmeb-"): f for f in found}
    lines: list[Line] = []
    for kind in dict.fromkeys(KINDS.values()):
        names = [name for name, its in KINDS.items() if its == kind and name in accuracy]
        if not names:
            continue
        values = [100 * accuracy[name]["scores"]["accuracy"]["value"] for name in names]
        for name, value in zip(names, values, strict=True):
            count = f"{accuracy[name]['sizes']['queries']:,}"
            lines.append((name, count, f"{value:.1f}", _paper([name])))
        of_paper = [name for name, (its, _) in PAPER.items() if its == kind]
        told = _paper(names) if set(names) == set(of_paper) else ""
        lines.append(
            (f"mean of {len(names)} ({kind})", "", f"{sum(values) / len(values):.1f}", told)
        )
    return lines


def _paper(names: Sequence[str]) -> str:
    known = [PAPER[name][1] for name in names if name in PAPER]
    return f"{sum(known) / len(known):.1f}" if known else ""
