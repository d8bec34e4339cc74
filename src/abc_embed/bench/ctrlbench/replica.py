"""CtrlBench tier R, the replica: questions about real pictures, as the paper made them.

Does: build a benchmark folder from any folder of images, with one request for each image, whose
reply holds five descriptions with their prompts (the published recipe); or from records that have
instructions already, as `abc-embed data instruct` writes them for human region captions (Visual
Genome). Does not: choose regions, ask by itself, or measure a model.

Prompt and description are written together here, so the prompt often gives its answer away; that
is a weakness of the recipe. Such pairs are left out and counted, unless they are asked for.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed.bench.ctrlbench.schema import (
    CORPUS_FILE,
    IMAGES_FILE,
    QUERIES_FILE,
    Benchmark,
    Caption,
    Picture,
    Query,
    normalised,
    write_benchmark,
)
from abc_embed.data.image_files import find_images
from abc_embed.data.records import Record
from abc_embed.errors import AskError, DataError, ImageError, OutputError
from abc_embed.inputs import open_image
from abc_embed.storage.files import atomic_write, make_folder
from abc_embed.vlm.client import VlmClient
from abc_embed.vlm.instruct import LEAST_PAIRS, Rejects
from abc_embed.vlm.plan import Planned
from abc_embed.vlm.region_files import Reject
from abc_embed.vlm.replies import (
    MOST_CHARACTERS,
    Reason,
    Verdict,
    check_prompt,
    refuses,
    same_text,
    tidy,
)
from abc_embed.vlm.wire import Reply

TIER = "R"
PAIRS = 5
"""Descriptions with prompts that one request gives (as published)."""
KEYS = tuple(f"{kind}_{number}" for number in range(1, PAIRS + 1) for kind in ("desc", "prompt"))
SCHEMA = {
    "type": "object",
    "properties": {key: {"type": "string"} for key in KEYS},
    "required": list(KEYS),
    "additionalProperties": False,
}
PROMPT_VERSION = "replica-1"
PROMPT = """\
Choose five different things in this picture, each clearly to be seen and easy to tell from the \
others. For each, write

* a description: a short phrase of 3 to 12 words that is true of this thing and of nothing else in \
the picture;
* a user prompt: a question or a request about the picture for which that description would be a \
reasonable answer, and none of the other four. It is one line of at most 25 words and holds no \
word of its description.

Reply with one JSON object and nothing else. Its keys are desc_1, prompt_1, desc_2, prompt_2, \
desc_3, prompt_3, desc_4, prompt_4, desc_5, prompt_5, and each value is a text.
"""
AGAIN = """
An earlier reply was no such JSON object. Write all ten keys, and nothing around the object.
"""
AGAIN_TOKENS = len(AGAIN) // 3
PROMPT_SHA256 = hashlib.sha256((PROMPT + AGAIN).encode()).hexdigest()
MAX_TOKENS = 1024
BEGUN = frozenset({"images", "rejects.jsonl", IMAGES_FILE, CORPUS_FILE, QUERIES_FILE})
"""What a build leaves that was stopped; the next one writes it again."""

Pair = tuple[str, str]
"""(description, prompt)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One image and its pairs, each with the aspect it is sorted under. Without pairs, `reason`."""

    name: str
    image: bytes
    suffix: str
    source: str
    license: str
    pairs: tuple[tuple[Pair, str], ...] = ()
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What is built. `leaks` keeps prompts that hold a word of their description."""

    out: Path
    name: str
    how: str
    leaks: bool = False
    about: dict[str, Any] = field(default_factory=dict)


def about(client: VlmClient) -> dict[str, Any]:
    """What a card says of the model and of what it was asked."""
    return {
        "model": client.model,
        "endpoint": client.endpoint,
        "prompt": PROMPT_VERSION,
        "prompt_sha256": PROMPT_SHA256,
        "temperature": 0,
    }


def sample(folder: Path, count: int | None, seed: int) -> list[Path]:
    """`count` images of a folder drawn at random, in the order of their names; None: all.

    Raises:
        ImageNotFoundError: there is no such folder.
        DataError: it has no images.
    """
    files = find_images(folder).files
    if not files:
        raise DataError(f"{folder} has no images; give a folder that has some")
    if count is None or count >= len(files):
        return files
    drawn = np.random.default_rng(seed).permutation(len(files))[:count]
    return [files[i] for i in sorted(drawn)]


def from_model(
    files: Sequence[Path], root: Path, client: VlmClient, *, license: str = "", tries: int = 2
) -> Iterator[Asked]:
    """The published recipe: one request for each image, five pairs in its reply.

    Raises:
        EndpointError: the endpoint cannot be used.
        CostLimitError: the limit came first; a later run finds the replies so far.
    """

    def ask(path: Path) -> Asked:
        name = path.relative_to(root).as_posix()
        asked = Asked(name, b"", path.suffix.lower(), name, license)
        try:
            asked = replace(asked, image=path.read_bytes())
        except OSError as problem:
            detail = problem.strerror or "cannot be read"
            return replace(asked, reason=Reason.IMAGE, detail=detail)
        return _ask(client, asked, tries)

    yield from client.map(ask, files)


def _ask(client: VlmClient, asked: Asked, tries: int) -> Asked:
    verdict = Verdict("", Reason.FORM)
    for attempt in range(tries):
        try:
            reply = client.ask(asked.image, PROMPT + AGAIN * (attempt > 0), schema=SCHEMA)
        except ImageError as wrong:
            return replace(asked, reason=Reason.IMAGE, detail=str(wrong))
        except AskError as wrong:
            return replace(asked, reason=Reason.ENDPOINT, detail=str(wrong))
        pairs = parse_pairs(reply)
        if pairs is not None:
            return replace(asked, pairs=tuple((pair, "thing") for pair in pairs))
        verdict = _why(reply)
        if verdict.reason is Reason.REFUSAL:
            break
    return replace(asked, reason=verdict.reason, detail=verdict.detail)


def parse_pairs(reply: Reply) -> list[Pair] | None:
    """The five pairs of a reply; None if it has another form."""
    row = reply.json()
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in KEYS):
        return None
    return [(row[f"desc_{i}"], row[f"prompt_{i}"]) for i in range(1, PAIRS + 1)]


def _why(reply: Reply) -> Verdict:
    if reply.refusal is not None or refuses(reply.text):
        return Verdict("", Reason.REFUSAL, (reply.refusal or reply.text)[:200])
    if reply.cut_off:
        return Verdict("", Reason.CUT)
    return Verdict("", Reason.FORM, reply.text[:200])


def from_records(records: Iterable[Record], folder: Path) -> Iterator[Asked]:
    """Human captions: records with instructions, whose images lie in `folder`."""
    for record in records:
        path = folder / record.image
        asked = Asked(record.id, b"", path.suffix.lower(), record.source, record.license)
        pairs = tuple(((ask.answer, ask.instruction), ask.kind) for ask in record.instructions)
        try:
            yield replace(asked, image=path.read_bytes(), pairs=pairs)
        except OSError as problem:
            detail = problem.strerror or "cannot be read"
            yield replace(asked, reason=Reason.IMAGE, detail=detail)


def build(
    replica: Replica, asked: Iterable[Asked], counted: Callable[[int], None] | None = None
) -> tuple[Benchmark, dict[str, int]]:
    """Write the benchmark folder; what was left out, by reason, is in its `rejects.jsonl`.

    An image needs two pairs that can be used. The bounds of the gate are computed from what is
    there, so fewer than five pairs make them higher, and known.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        DataError: nothing is left.
    """
    folder = make_folder(replica.out)
    strange = [p.name for p in folder.iterdir() if p.name not in BEGUN and p.suffix != ".part"]
    if strange:  # a card too: what is finished is not built anew
        raise OutputError(f"{folder} holds {min(strange)}; give a new or an empty folder")
    rejects = Rejects()
    images: list[Picture] = []
    kept: list[tuple[str, list[tuple[Pair, str]]]] = []
    with atomic_write(folder / "rejects.jsonl") as file:
        rejects.into(file)
        for number, one in enumerate(asked):
            pairs = _usable(one, replica.leaks, rejects)
            if pairs:
                picture = _keep(folder, f"i{len(images):05}", one)
                images.append(picture)
                kept.append((picture.image_id, pairs))
            if counted is not None:
                counted(number + 1)
        rejects.into(None)
    if not images:
        left = ", ".join(f"{reason}: {n}" for reason, n in rejects.counts.items())
        raise DataError(f"no image has {LEAST_PAIRS} pairs that can be used ({left or 'none'})")
    corpus, queries = _rows(kept)
    card = {
        "name": replica.name,
        "how": replica.how,
        "tier": TIER,
        "leaks": "kept" if replica.leaks else "left out",
        "left_out": dict(rejects.counts.most_common()),
        **replica.about,
    }
    benchmark = write_benchmark(folder, images=images, corpus=corpus, queries=queries, card=card)
    return benchmark, dict(rejects.counts.most_common())


def _usable(one: Asked, leaks: bool, rejects: Rejects) -> list[tuple[Pair, str]]:
    """The pairs of an image that can be used, tidied; every other is told.

    Of equal descriptions the first is kept. Equal prompts ask for two answers, so none is.
    """
    if one.reason is not None:
        rejects(Reject(where=one.name, reason=one.reason, detail=one.detail, image=one.source))
        return []
    tidied = [((tidy(desc), tidy(prompt)), aspect) for (desc, prompt), aspect in one.pairs]
    prompts = Counter(same_text(prompt) for (_, prompt), _ in tidied)
    good: list[tuple[Pair, str]] = []
    seen: set[str] = set()
    for (desc, prompt), aspect in tidied:
        verdict = _judge(desc, prompt)
        if verdict.reason is Reason.LEAK and leaks:
            verdict = Verdict(verdict.text)
        if same_text(desc) in seen or prompts[same_text(prompt)] > 1:
            verdict = Verdict(prompt, Reason.REPEAT)
        if verdict.reason is None:
            good.append(((desc, prompt), aspect))
            seen.add(same_text(desc))
            continue
        rejects(
            Reject(
                where=one.name,
                reason=verdict.reason,
                detail=verdict.detail,
                image=one.source,
                phrase=desc,
                reply=prompt,
            )
        )
    if len(good) < LEAST_PAIRS:
        detail = f"{len(good)} of {len(tidied)} pairs can be used"
        rejects(Reject(where=one.name, reason=Reason.ALONE, detail=detail, image=one.source))
        return []
    return good


def _judge(desc: str, prompt: str) -> Verdict:
    if not desc or len(desc) > MOST_CHARACTERS or len(desc.splitlines()) > 1 or refuses(desc):
        return Verdict(prompt, Reason.PHRASE, "no description in one line")
    return check_prompt(prompt, desc)


def _keep(folder: Path, name: str, one: Asked) -> Picture:
    """Copy the image's bytes into the folder."""
    place = make_folder(folder / "images") / f"{name}{one.suffix}"
    with atomic_write(place) as file:
        file.write(one.image)
    return Picture(
        image_id=name,
        file=f"images/{place.name}",
        sha256=hashlib.sha256(one.image).hexdigest(),
        source=one.source,
        license=one.license,
    )


def _rows(
    kept: Sequence[tuple[str, list[tuple[Pair, str]]]],
) -> tuple[list[Caption], list[Query]]:
    """Captions without duplicates, and one question for each pair."""
    texts: dict[str, str] = {}
    for _, pairs in kept:
        for (desc, _), _ in pairs:
            texts.setdefault(normalised(desc), desc)
    ids = {key: f"c{number:05}" for number, key in enumerate(sorted(texts))}
    corpus = [Caption(cap_id=ids[key], text=texts[key]) for key in sorted(texts)]
    queries: list[Query] = []
    for image_id, pairs in kept:
        same_image = tuple(dict.fromkeys(ids[normalised(desc)] for (desc, _), _ in pairs))
        for (desc, prompt), aspect in pairs:
            queries.append(
                Query(
                    query_id=f"q{len(queries):05}",
                    image_id=image_id,
                    tier=TIER,
                    aspect=aspect,
                    instruction=prompt,
                    positives=(ids[normalised(desc)],),
                    same_image=same_image,
                )
            )
    return corpus, queries


def planned(files: Iterable[Path]) -> Iterator[Planned]:
    """The first requests that `from_model` would send; images that cannot be opened get none."""
    for path in files:
        try:
            yield Planned(path, open_image(path).size, PROMPT, SCHEMA)
        except ImageError:
            continue
