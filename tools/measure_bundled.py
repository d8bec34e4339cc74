"""Everything that is measured and drawn of the bundled model, made anew after its weights changed.

    python tools/measure_bundled.py [--only PART ...]

Writes golden vectors, `results/` and the figures in `docs/images`, and removes the records of
former weights; what the text of the pages says of them is left to the reader. About an hour of one
core.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "results", ROOT / "docs" / "images"
BUNDLED = ROOT / "src" / "abc_embed" / "bundled"
PICTURE = BUNDLED / "images" / "dog_and_cat.png"
QUESTIONS = ("what is the animal on the left?", "what is the animal on the right?")
TIERS = {"bundled": "GBS", "late:bundled": "GB"}
KNOWN = 400
"""Pictures of its world that the bundled model's notice on other pictures is measured by."""
WIDTHS, FORMATS = "256,128,64", "float32,int8,binary"


def command(*arguments: object, cwd: str | Path = ROOT) -> None:
    """`abc-embed` with these arguments, in a folder; ends everything when it fails."""
    print("abc-embed", *arguments, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "abc_embed", *map(str, arguments)], cwd=cwd, check=True)


def tool(*arguments: object) -> None:
    """A Python file of the repository."""
    print("python", *arguments, file=sys.stderr)
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def remove(folder: Path, *patterns: str) -> None:
    """What former weights left."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


def golden() -> None:
    """Vectors that a test holds the weights to."""
    from abc_embed import Embedder, Item

    model = Embedder.from_pretrained("bundled", device="cpu", dtype="float32")
    asked = [Item(image=str(PICTURE), instruction=question) for question in QUESTIONS]
    vectors = model.embed(["a dog", "a cat", Item(image=str(PICTURE)), *asked])
    rounded = [[round(float(number), 6) for number in vector] for vector in vectors]
    path = BUNDLED / "golden.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {"fingerprint": model.fingerprint, "vectors": rounded}
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")


def known() -> None:
    """What pictures of its world have in common, into the model's folder: others are said once."""
    from abc_embed import Embedder, Item, checkpoint

    sys.path.insert(0, str(ROOT))
    from experiments.curriculum.run import typical_items

    model = Embedder.from_pretrained("bundled", device="cpu", dtype="float32")
    items = [item for item in typical_items(KNOWN) if isinstance(item, Item)]
    pictures = [item for item in items if item.image is not None and item.instruction is None]
    facts = replace(model.model.vector_facts, known=model.pipeline().known_pictures(pictures))
    checkpoint.write_vector_facts(BUNDLED / "model", facts)


def tiers() -> None:
    """The records of CtrlBench, and pictures of them."""
    remove(RESULTS, "ctrlbench_*-bundled-*.json", "ctrlbench_*-late_bundled-*.json")
    for model, names in TIERS.items():
        chosen = [part for name in names for part in ("--tier", name)]
        command("bench", "ctrlbench", "--model", model, *chosen, "--out", RESULTS)
    with tempfile.TemporaryDirectory() as folder:
        command("bench", "report", RESULTS, "--out", folder)
        shutil.copy(Path(folder) / "report.png", IMAGES / "ctrlbench.png")
        for tier, name in {"B": "binding", "G": "grid"}.items():
            first = next(p for p in sorted(Path(folder).glob(f"answers-*-{tier}.png")))
            shutil.copy(first, IMAGES / f"ctrlbench-{name}.png")


def robust() -> None:
    """Other words, other pictures."""
    remove(RESULTS / "robust", "robust-bundled-*")
    command("bench", "robust", "--out", RESULTS / "robust")


def evidence() -> None:
    """Whether the map of evidence lies where the answer is."""
    remove(RESULTS / "evidence", "evidence-bundled-*")
    command("bench", "evidence", "--scenes", 60, "--out", RESULTS / "evidence")


def speed() -> None:
    """Items a second, beside sentence-transformers; wants a machine with nothing else to do."""
    remove(RESULTS / "speed", "speed-bundled-*")
    command("bench", "speed", "--against", "sentence-transformers", "--out", RESULTS / "speed")


def formats() -> None:
    """What narrower vectors and other formats cost; without the lists of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        which = ("--tier", "G", "--tier", "B", "--dims", WIDTHS, "--outputs", FORMATS)
        command("bench", "ctrlbench", *which, "--out", folder)
        shutil.copy(Path(folder) / "formats.png", IMAGES / "formats.png")
        records = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    (RESULTS / "vectors" / "bundled.json").write_text(json.dumps(_short(records), indent=1) + "\n")


def _short(records: list[dict[str, object]]) -> list[dict[str, object]]:
    earlier = json.loads((RESULTS / "vectors" / "bundled.json").read_text())
    return [{name: record[name] for name in earlier[0] if name in record} for record in records]


def search() -> None:
    """A new instruction over an old index, and "nothing matches"."""
    found = RESULTS / "search"
    tool("tools/bench_ask.py", "--out", found / "ask.json", "--plot", IMAGES / "ask.png")
    tool("tools/bench_cutoff.py", "--out", found / "nothing_matches.json")


def pictures() -> None:
    """What README and the tour show."""
    asked = [part for question in QUESTIONS for part in ("--instruction", question)]
    why = ("--explain", "--plot", IMAGES / "evidence.png")
    command("quickstart", "--plot", IMAGES / "quickstart.png")
    command("compare", PICTURE, "a dog", "a cat", *asked, *why)
    with tempfile.TemporaryDirectory() as folder:
        command("scenes", "--count", 30, "--out", "scenes", cwd=folder)
        hits = ("-k", 2, "--plot", IMAGES / "tour-hits.png")
        command("search", "scenes/images", "a trumpet", "a turtle", *hits, cwd=folder)
        audited = ("--model", "bundled", "--model", "random", "--out", folder)
        command("bench", "audit", "scenes", *audited)
        shutil.copy(Path(folder) / "audit.png", IMAGES / "audit.png")
        print((Path(folder) / "audit.md").read_text())


def composed() -> None:
    """Pictures composed outside the scene generator; printed only."""
    for grounds in ("soft", "any"):
        tool("tools/bench_composed.py", "--grounds", grounds)


def readme() -> None:
    """Outputs and tables of README and docs/ctrlbench.md."""
    tool("scripts/readme.py")


PARTS: tuple[Callable[[], None], ...] = (
    known,
    golden,
    pictures,
    tiers,
    readme,
    robust,
    evidence,
    speed,
    formats,
    search,
    composed,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART")
    chosen = parser.parse_args().only
    for part in PARTS:
        if part.__name__ in chosen:
            part()


if __name__ == "__main__":
    main()
