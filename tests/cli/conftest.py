"""The command line in this process, a small saved model, and pictures to give it."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from cli_parts import Cli, Done, picture
from golden_parts import BASE, INSTRUCT, PRETRAIN

from abc_embed import Embedder
from abc_embed.cli import run
from abc_embed.pixels import ImageBudget


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs `abc-embed` with words; `stdin` is what it can read there."""
    monkeypatch.setenv("ABC_EMBED_CACHE", str(tmp_path / "cache"))

    def call(*words: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(code, out, err)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model as a saved folder, seeing pictures at few pixels so that it is quick."""
    embedder = Embedder.from_adapters(BASE, PRETRAIN, INSTRUCT, device="cpu")
    embedder.processor.image = ImageBudget(min_pixels=28 * 28, max_pixels=6 * 28 * 28)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    embedder.save(folder)
    return folder


@pytest.fixture(scope="session")
def embedder(tiny: Path) -> Embedder:
    """The same model, to compute what a command should give."""
    return Embedder.from_pretrained(tiny, device="cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with `photo.jpg`, and `photos/` with three images and a text."""
    folder = tmp_path / "here"
    (folder / "photos" / "more").mkdir(parents=True)
    picture(0).save(folder / "photo.jpg", quality=95)
    picture(1).save(folder / "photos" / "b.png")
    picture(2).save(folder / "photos" / "a.JPG", format="JPEG")
    picture(3).save(folder / "photos" / "more" / "c.webp", lossless=True)
    (folder / "photos" / "notes.txt").write_text("not an image")
    (folder / "photos" / ".hidden.png").write_bytes(b"not looked at")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def broken_model(tiny: Path, tmp_path: Path) -> Path:
    """The model with its weights cut short."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder
