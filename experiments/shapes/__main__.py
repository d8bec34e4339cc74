"""`python -m experiments.shapes`: run what is missing, write record and figure, print the table."""

import sys
from pathlib import Path

from abc_embed.errors import AbcError
from experiments.shapes.run import draw, run, table


def main() -> int:
    """Exit 0 when all is written, 1 with one sentence otherwise."""
    try:
        arms = run(Path("runs/shapes"), Path("results/training/shapes.json"))
        draw(arms, Path("docs/images/shapes.png"))
        print(table(arms))
    except AbcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
