"""CtrlBench tier R, the replica: questions about real pictures, as the paper made them.

It is built from any folder of images, with one request for each image, whose reply holds five
descriptions with their prompts (the published recipe); or from records that have instructions
already, as `abc-embed data instruct` writes them for human region captions (Visual Genome).

Prompt and description are written together here, so the prompt often gives its answer away; that
is a weakness of the recipe. Such pairs are left out and counted, unless they are asked for.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abc_embed.bench.ctrlbench.schema import (
    CORPUS_FILE,
    IMAGES_FILE,
    QUERIES_FILE,
    Benchmark,
    Caption,
    Picture,
    TextQuery,
    image_id,
    normalize_text,
    query_rows,
    write_benchmark,
    write_picture,
)
from abc_embed.data.image_files import find_images
from abc_embed.data.records import Record
from abc_embed.errors import DataError, ImageError, OutputError
from abc_embed.inputs import open_image
from abc_embed.storage.files import atomic_write, is_partial, make_folder, read_file
from abc_embed.storage.hashing import sha256
from abc_embed.vlm.client import Reply, VlmClient
from abc_embed.vlm.instruct import MIN_PAIRS
from abc_embed.vlm.limits import PlannedRequest
from abc_embed.vlm.rejects import Reason, Rejects
from abc_embed.vlm.replies import (
    MAX_CHARACTERS,
    Verdict,
    check_prompt,
    is_refusal,
    same_text,
    tidy,
)
from abc_embed.vlm.writers import ask_until_usable, unusable

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
RETRY_PROMPT = """
An earlier reply was no such JSON object. Write all ten keys, and nothing around the object.
"""
RETRY_TOKENS = len(RETRY_PROMPT) // 3
PROMPT_SHA256 = sha256(PROMPT + RETRY_PROMPT)
MAX_TOKENS = 1024
PARTIAL_FILES = frozenset({"images", "rejects.jsonl", IMAGES_FILE, CORPUS_FILE, QUERIES_FILE})
"""What a build leaves that was stopped; the next one writes it again."""


class Pair(NamedTuple):
    """A description and the prompt that it answers, under the aspect that it is sorted by."""

    description: str
    prompt: str
    aspect: str


@dataclass(frozen=True, slots=True)
class ImagePairs:
    """One image, its bytes and its pairs; without pairs, `reason`."""

    name: str
    suffix: str
    source: str
    license: str
    image: bytes = b""
    pairs: tuple[Pair, ...] = ()
    reason: Reason | None = None
    detail: str = ""


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
    files = find_images(folder)
    if not files:
        raise DataError(f"{folder} has no images; give a folder that has some")
    if count is None or count >= len(files):
        return files
    drawn = np.random.default_rng(seed).permutation(len(files))[:count]
    return [files[i] for i in sorted(drawn)]


def sample_records(
    read: Callable[[], Iterable[Record]], count: int | None, seed: int
) -> Iterable[Record]:
    """`count` of the records with instructions drawn at random, in their order; None: all.

    `read` gives the records anew each time; they are read twice, and none is kept.
    """
    if count is None:
        return read()
    usable = [number for number, record in enumerate(read()) if record.instructions]
    drawn = set(np.random.default_rng(seed).permutation(usable)[:count].tolist())
    return (record for number, record in enumerate(read()) if number in drawn)


def pairs_from_model(
    files: Sequence[Path], root: Path, client: VlmClient, *, license: str = "", tries: int = 2
) -> Iterator[ImagePairs]:
    """The published recipe: one request for each image, five pairs in its reply.

    Raises:
        EndpointError: the endpoint cannot be used.
        CostLimitError: the limit came first; a later run finds the replies so far.
    """

    def ask(path: Path) -> ImagePairs:
        name = path.relative_to(root).as_posix()
        entry = _with_bytes(ImagePairs(name, path.suffix.lower(), name, license), path)
        if entry.reason is not None:
            return entry
        reply, verdict, _ = ask_until_usable(
            *(client, entry.image, PROMPT, _judge_reply),
            retry_prompt=RETRY_PROMPT,
            tries=tries,
            schema=SCHEMA,
        )
        if reply is None or verdict.reason is not None:
            return replace(entry, reason=verdict.reason, detail=verdict.detail)
        return replace(entry, pairs=tuple(parse_pairs(reply) or ()))

    yield from client.map(ask, files)


def pairs_from_records(records: Iterable[Record], folder: Path) -> Iterator[ImagePairs]:
    """Human captions: records with instructions, whose images lie in `folder`."""
    for record in records:
        path = folder / record.image
        pairs = tuple(Pair(ask.answer, ask.instruction, ask.kind) for ask in record.instructions)
        entry = ImagePairs(
            record.id, path.suffix.lower(), record.source, record.license, pairs=pairs
        )
        yield _with_bytes(entry, path)


def _with_bytes(entry: ImagePairs, path: Path) -> ImagePairs:
    try:
        return replace(entry, image=read_file(path))
    except OSError as error:
        return replace(entry, reason=Reason.IMAGE, detail=error.strerror or "cannot be read")


def parse_pairs(reply: Reply) -> list[Pair] | None:
    """The five pairs of a reply; None if it has another form."""
    row = reply.json()
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in KEYS):
        return None
    return [Pair(row[f"desc_{i}"], row[f"prompt_{i}"], "thing") for i in range(1, PAIRS + 1)]


def _judge_reply(reply: Reply) -> Verdict:
    if parse_pairs(reply) is not None:
        return Verdict(reply.text)
    return unusable(reply) or Verdict(reply.text, Reason.FORM, reply.text[:200])


def build(
    out: Path,
    entries: Iterable[ImagePairs],
    *,
    how: str,
    about: Mapping[str, Any],
    leaks: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[Benchmark, dict[str, int]]:
    """Write the benchmark folder; what was left out, by reason, is in its `rejects.jsonl`.

    An image needs two pairs that can be used. The bounds of the gate are computed from what is
    there, so fewer than five pairs make them higher, and known.

    Args:
        out: a new folder, or one in which a build was broken off.
        how: said by the card: where the pairs are from.
        about: further fields of the card.
        leaks: keep prompts that hold a word of their description.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        DataError: nothing is left.
    """
    folder = make_folder(out)
    names = {path.name for path in folder.iterdir() if not is_partial(path)}
    strange = names - PARTIAL_FILES
    if strange:  # a card too: what is finished is not built anew
        raise OutputError(f"{folder} holds {min(strange)}; give a new or an empty folder")
    images: list[Picture] = []
    captions: list[list[str]] = []
    asked: list[TextQuery] = []
    with atomic_write(folder / "rejects.jsonl") as out_file:
        rejects = Rejects(out_file)
        for done, entry in enumerate(entries, start=1):
            usable = _usable_pairs(entry, leaks, rejects)
            if usable:
                number = len(images)
                captions.append([pair.description for pair in usable])
                asked += [
                    TextQuery(number, TIER, pair.aspect, pair.prompt, pair.description)
                    for pair in usable
                ]
                facts = {"source": entry.source, "license": entry.license}
                file = f"images/{image_id(number)}{entry.suffix}"
                images.append(write_picture(folder, image_id(number), file, entry.image, **facts))
            on_progress(done)
    left_out = dict(rejects.counts.most_common())
    if not images:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise DataError(f"no image has {MIN_PAIRS} pairs that can be used ({reasons or 'none'})")
    every = [*chain.from_iterable(captions)]
    texts = {normalize_text(text): text for text in reversed(every)}  # of equal ones the first
    corpus = [Caption(cap_id=f"c{n:05}", text=texts[key]) for n, key in enumerate(sorted(texts))]
    queries = query_rows(asked, captions, corpus)
    card = {
        "name": out.name,
        "how": how,
        "tier": TIER,
        "leaks": "kept" if leaks else "left out",
        "left_out": left_out,
        **about,
    }
    benchmark = write_benchmark(folder, images=images, corpus=corpus, queries=queries, card=card)
    return benchmark, left_out


def _usable_pairs(entry: ImagePairs, leaks: bool, rejects: Rejects) -> list[Pair]:
    """The pairs of an image that can be used, tidied; every other is rejected.

    Of equal descriptions the first is kept. Equal prompts ask for two answers, so none is.
    """
    if entry.reason is not None:
        rejects.add(entry.reason, entry.name, entry.detail, image=entry.source)
        return []
    pairs = [Pair(tidy(desc), tidy(prompt), aspect) for desc, prompt, aspect in entry.pairs]
    prompts = Counter(same_text(pair.prompt) for pair in pairs)
    usable: dict[str, Pair] = {}
    for pair in pairs:
        description = same_text(pair.description)
        verdict = _judge_pair(pair, leaks)
        if description in usable or prompts[same_text(pair.prompt)] > 1:
            verdict = Verdict(pair.prompt, Reason.REPEAT)
        if verdict.reason is None:
            usable[description] = pair
            continue
        rejects.add(
            *(verdict.reason, entry.name, verdict.detail),
            image=entry.source,
            phrase=pair.description,
            reply=pair.prompt,
        )
    if len(usable) < MIN_PAIRS:
        detail = f"{len(usable)} of {len(pairs)} pairs can be used"
        rejects.add(Reason.ALONE, entry.name, detail, image=entry.source)
        return []
    return list(usable.values())


def _judge_pair(pair: Pair, leaks: bool) -> Verdict:
    desc = pair.description
    if not desc or len(desc) > MAX_CHARACTERS or len(desc.splitlines()) > 1 or is_refusal(desc):
        return Verdict(pair.prompt, Reason.PHRASE, "no description in one line")
    verdict = check_prompt(pair.prompt, desc)
    return Verdict(pair.prompt) if leaks and verdict.reason is Reason.LEAK else verdict


def planned_requests(files: Iterable[Path]) -> Iterator[PlannedRequest]:
    """The first requests that `pairs_from_model` would send; none for images that do not open."""
    for path in files:
        try:
            yield PlannedRequest(path, open_image(path).size, PROMPT, SCHEMA)
        except ImageError:
            continue
