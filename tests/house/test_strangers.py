"""Nothing in the repository names a developer's machine, a package registry, or a secret."""

import re
from pathlib import Path

import pytest
import sources

# Put together here so that this file does not hold what it looks for.
_FOLDERS = "|".join(["home", "root", "Users", "work", "tmp", "opt", "mnt", "srv"])
_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "npm" + "mirror",
]
_HOSTS += [
    "js" + "delivr.net",
    "unpkg" + ".com",
    "download.py" + "torch.org",
    "conda" + ".anaconda.org",
]
PATTERNS = {
    "an absolute path of one machine": re.compile(
        rf"(?<![\w.)}}<-])/(?:{_FOLDERS})/[\w.-]+".encode()
    ),
    "a folder of one Windows user": re.compile(rb"[A-Z]:\\+Users\\+\w"),
    "the host of a registry": re.compile("|".join(map(re.escape, _HOSTS)).encode(), re.IGNORECASE),
    "a choice of registry": re.compile(
        rb"(?:--extra-index-url|--index-url|--find-links|--registry)[ =]\S"
    ),
    "a token": re.compile(
        rb"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9]{32,})\b"
    ),
}
COMPRESSED = {".png", ".webp", ".jpg", ".npz", ".npy", ".safetensors", ".parquet"}


def strangers(content: bytes) -> list[str]:
    return [
        f"{what}: {match.group().decode(errors='replace')}"
        for what, pattern in PATTERNS.items()
        for match in pattern.finditer(content)
    ]


def looked_at(path: Path) -> bytes:
    """All of a text, and the start of a binary file, where its metadata is."""
    content = path.read_bytes()
    return content[:20_000] if path.suffix in COMPRESSED else content


def test_no_strangers() -> None:
    found = {
        str(path.relative_to(sources.ROOT)): names
        for path in sources.repository_files()
        if (names := strangers(looked_at(path)))
    }
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "/" + "home/ada/data",
        "open('/" + "root/x.json')",
        '"/' + 'tmp/run1"',
        "cd /" + "work/model",
        "C:" + r"\\Users\\ada",
        "https://" + "pypi" + ".org/simple",
        "--index" + "-url https://example.com",
        "hf_" + "a" * 34,
    ],
)
def test_the_check_can_fail(text: str) -> None:
    assert strangers(text.encode())


@pytest.mark.parametrize(
    "text", ["https://example.com/work/paper", "runs/tmp/x", "the home/work balance"]
)
def test_the_check_can_pass(text: str) -> None:
    assert not strangers(text.encode())
