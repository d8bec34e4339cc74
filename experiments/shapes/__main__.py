"""`python -m experiments.shapes`: run what is missing, write the record, print the table."""

import sys
from pathlib import Path

from abc_embed.errors import AbcError
from experiments.shapes.run import run, table


def main() -> int:
    """Exit 0 when all is written, 1 with one sentence otherwise."""
    try:
        print(table(run(Path("runs/shapes"), Path("results/training/shapes.json"))))
    except AbcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
