"""`bench audit` and `export`: what they hand over."""

import json
from pathlib import Path

import pytest
from cli_parts import Cli
from sentence_transformers import SentenceTransformer

from abc_embed import Embedder

ASKED = [
    {"image": "photo.jpg", "instruction": "left?", "answer": "a dog", "candidates": ["a dog", "x"]},
    {"image": "photos/b.png", "instruction": "right?", "answer": "a cat"},
    {"image": "photos/gone.png", "instruction": "right?", "answer": "a cow"},
]


@pytest.fixture
def asked(here: Path) -> str:
    (here / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ASKED))
    return "questions.jsonl"


def test_audit_shows_a_table_and_writes_it(cli: Cli, tiny: Path, asked: str) -> None:
    panel = ("--model", str(tiny), "--model", "random", "--model", f"late:{tiny}")
    done = cli("bench", "audit", asked, *panel, "--out", "audit", "--cache", "kept")
    assert done.code == 0, done.err
    for name in ("tiny", "random", "late:tiny", "any model of the panel", "image alone"):
        assert name in done.out
    assert "for want of their pictures: 1;" in " ".join(done.out.split())
    written = json.loads(Path("audit/audit.json").read_text())
    assert [row["model"]["name"] for row in written["models"]] == ["tiny", "random", "late:tiny"]
    assert "| tiny |" in Path("audit/audit.md").read_text()
    assert Path("audit/audit.png").read_bytes().startswith(b"\x89PNG")
    assert list(Path("kept").iterdir())
    again = cli("bench", "audit", asked, *panel, "--cache", "kept", "--json")
    assert json.loads(again.out)["models"] == written["models"]


def test_audit_refuses_in_one_sentence(cli: Cli, tiny: Path, asked: str) -> None:
    gone = cli("bench", "audit", "gone.jsonl", "--model", str(tiny))
    assert (gone.code, gone.out) == (1, "") and "cannot be read" in gone.error
    half = cli("bench", "audit", asked, "--model", "open_clip:x")
    assert half.code != 0 and half.out == ""
    wide = cli("bench", "audit", asked, "--max-pixels", "many")
    assert wide.code == 2 and "--max-pixels" in wide.error


def test_export_gives_the_same_vectors(
    cli: Cli, tiny: Path, here: Path, embedder: Embedder
) -> None:
    done = cli("export", "exported", "--model", str(tiny))
    assert (done.code, done.out) == (0, "exported\n")
    model = SentenceTransformer("exported", trust_remote_code=True, device="cpu")
    assert abs(model.encode(["a dog"]) - embedder.embed(["a dog"])).max() <= 1e-5
    summary = json.loads(cli("export", "exported", "--model", str(tiny), "--json").out)
    assert summary["fingerprint"] == embedder.fingerprint
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("mine")
    refused = cli("export", "mine", "--model", str(tiny))
    assert refused.code == 1 and "no model of ours" in refused.error
