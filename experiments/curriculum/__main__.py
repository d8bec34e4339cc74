"""`python -m experiments.curriculum`: the bundled model from nothing; a broken run goes on."""

import argparse
import sys
from pathlib import Path

from abc_embed.errors import AbcError
from experiments.curriculum.run import Lengths, run


def main() -> int:
    """Exit 0 when the model is written, 1 with one sentence otherwise."""
    parser = argparse.ArgumentParser(prog="python -m experiments.curriculum", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bundled"), help="folder of the run")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of each part")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--compile", action="store_true", help="compile the longest lesson")
    args = parser.parse_args()
    try:
        model = run(
            args.out,
            lengths=Lengths().scaled(args.scale),
            device=args.device,
            workers=max(1, args.workers),
            compile=args.compile,
        )
    except AbcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"the model is in {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
