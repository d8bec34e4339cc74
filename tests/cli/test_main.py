"""The command line as a whole: help, exit codes, Ctrl-C, a reader that goes away."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cli_parts import Cli

import abc_embed
from abc_embed import Embedder
from abc_embed.cli import STOPPED
from abc_embed.cli.parser import COMMANDS
from abc_embed.errors import OutOfMemoryError

HEAVY = ("torch", "transformers", "numpy", "PIL", "rich", "abc_embed.inputs")
GROUPS = {
    "train": ("pretrain", "instruct", "bundled"),
    "bench": ("ctrlbench", "build", "diff", "report", "speed"),
    "plan": ("embed", "train"),
}
WHOLE = [(name,) for name in COMMANDS if name not in GROUPS]
WHOLE += [(group, name) for group, names in GROUPS.items() for name in names]


def start(*words: str, **how: Any) -> "subprocess.Popen[str]":
    """`abc-embed` in a process of its own."""
    source = str(Path(abc_embed.__file__).parents[1])
    environment = {**os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([source, environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "abc_embed", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **how)


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import json, sys\nfrom abc_embed.cli import run\n"
        "codes = [run(words) for words in ([], ['--help'], ['embed', '--help'])]\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write('REPORT' + json.dumps([codes, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, heavy = json.loads(done.stderr.partition("REPORT")[2])
    assert heavy == []
    assert codes == [2, 0, 0]
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert "..." not in done.stdout.partition("Commands:")[2].partition("Examples:")[0]


CHEAP_MISTAKES = (
    ("doctor", "--model", "nope"),
    ("embed", "--text", "a dog", "--model", "nope"),
    ("export", "exported", "--model", "nope"),
    ("mine", "nowhere", "--out", "mined.parquet"),
    ("search", "photos", "--image", "nope.png"),
    ("train", "export-checkpoint", "runs/nope", "--out", "model"),
)


def test_cheap_mistakes_are_found_before_torch_is_imported(here: Path) -> None:
    code = (
        "import sys\nfrom abc_embed.cli import run\n"
        f"codes = [run(words) for words in {CHEAP_MISTAKES!r}]\n"
        "print(all(codes), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n", done.stderr
    assert done.stderr.count("Error: ") == len(CHEAP_MISTAKES)


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"{abc_embed.__version__}\n"


@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_every_command_has_help_with_an_example(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli(*words, "--help")
    assert done.code == 0
    assert f"\n    abc-embed {' '.join(words)}" in done.out
    assert done.err == ""


@pytest.mark.parametrize("words", [(), ("bogus",), ("compare",), ("embed", "--bogus"), ("train",)])
def test_wrong_usage_exits_with_2(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli(*words)
    assert done.code == 2
    assert "Usage: " in done.out + done.err


def test_a_mistyped_command_is_guessed(cli: Cli) -> None:
    assert "Did you mean 'compare'" in cli("compar").err


def test_ctrl_c_says_stopped(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Embedder, "from_pretrained", interrupted)
    done = cli("compare", "photo.jpg", "a dog")
    assert (done.code, done.out, done.err) == (STOPPED, "", "Stopped.\n")


def test_an_error_of_the_package_is_one_sentence_with_its_code(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise OutOfMemoryError("the device is full; lower batch_size")

    monkeypatch.setattr(Embedder, "from_pretrained", fail)
    done = cli("compare", "photo.jpg", "a dog")
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: the device is full; lower batch_size\n"


def test_what_the_system_refuses_is_one_sentence(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", "model/config.json")

    monkeypatch.setattr(Embedder, "from_pretrained", fail)
    done = cli("compare", "photo.jpg", "a dog")
    assert done.code == 1
    assert done.error == "model/config.json: Permission denied"


def test_a_mistake_of_ours_keeps_its_traceback(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "from_pretrained", lambda *args, **kwargs: None)
    with pytest.raises(AttributeError):
        cli("compare", "photo.jpg", "a dog")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("printer", ["typer.echo('x')", "sys.stdout.write('x')"])
def test_a_full_disk_under_stdout_is_an_error(printer: str) -> None:
    """Whether the disk is found full while the command prints, or at the very end."""
    code = (
        "import sys, typer\nfrom abc_embed import cli\nfrom abc_embed.cli import parser\n"
        f"parser.command_line = lambda _: lambda **__: {printer}\ncli.main([])"
    )
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    assert done.returncode == 1
    assert done.stderr == "Error: the output: No space left on device\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("--version", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert err == ""
