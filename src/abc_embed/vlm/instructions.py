"""An instruction for each region: what is asked of a VLM, and who else can write one.

Does: the text of the request (ours, after section 3.3 and appendix A of the paper), one region's
instruction from a VLM or from a record's own questions, checked. Does not: choose regions
(regions.py), or go through a data set (instruct.py).

The text has a version, and its hash is written into the data: another text makes other data.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from abc_embed.data.records import Instruction, Record
from abc_embed.errors import AskError, CostLimitError, ImageError
from abc_embed.vlm.client import VlmClient
from abc_embed.vlm.replies import (
    MOST_CHARACTERS,
    Reason,
    Verdict,
    check_prompt,
    content_words,
    refuses,
)
from abc_embed.vlm.wire import Reply

KIND = "region"
"""The kind of an instruction that a VLM wrote for a region."""
PROMPT_VERSION = "region-1"
PROMPT = """\
One region of this picture has the caption

{caption}

It reaches from {left} % to {right} % of the picture's width and from {top} % to {bottom} % of its \
height, counted from the top left corner.

Write a user prompt for which this caption would be a reasonable answer: whoever sees the picture \
and reads your prompt can tell that this region is meant, and no other one. Other regions have the \
captions

{others}

Rules:
- One line of at most 25 words, a question or a request, in the language of the caption.
- None of these words, in any form: {words}.
- No coordinates or percentages, and no mention of captions or regions.
- Reply with the prompt and nothing else.
"""
AGAIN = """
An earlier try was

{text}

It could not be used ({reason}). Write another one.
"""
AGAIN_TOKENS = (len(AGAIN) + MOST_CHARACTERS) // 3
PROMPT_SHA256 = hashlib.sha256((PROMPT + AGAIN).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Ask:
    """One region that needs an instruction: its record, its number, and the others chosen."""

    record: Record
    region: int
    others: tuple[int, ...]

    @property
    def phrase(self) -> str:
        """What the region shows, and what the instruction is answered with."""
        return self.record.regions[self.region].phrase


@dataclass(frozen=True, slots=True)
class Written:
    """What came of an `Ask`: a text, or the reason why there is none.

    `tries` is how often it was asked, `asked` whether it was at all: False where the cost limit
    came before.
    """

    text: str
    kind: str = KIND
    reason: Reason | None = None
    detail: str = ""
    paraphrases: tuple[str, ...] = ()
    tries: int = 1
    asked: bool = True

    def instruction(self, ask: Ask) -> Instruction:
        """As a record holds it."""
        return Instruction(
            instruction=self.text,
            answer=ask.phrase,
            kind=self.kind,
            paraphrases=self.paraphrases,
            region=ask.region,
        )


class Writer(Protocol):
    """Whoever writes instructions."""

    @property
    def about(self) -> dict[str, Any]:
        """What the data says of it, as JSON values."""

    def write(self, ask: Ask) -> Written:
        """An instruction for one region; may be called from several threads."""


class VlmWriter:
    """A vision-language model behind an endpoint; sees the whole picture."""

    def __init__(self, client: VlmClient, root: Path, *, tries: int = 2) -> None:
        """`root` is the folder that images are named from.

        At temperature 0 the same request has the same reply, so a second try says what was wrong
        with the first.
        """
        self._client = client
        self._root = root
        self._tries = tries

    @property
    def about(self) -> dict[str, Any]:
        return {
            "writer": self._client.model,
            "prompt": PROMPT_VERSION,
            "prompt_sha256": PROMPT_SHA256,
        }

    def write(self, ask: Ask) -> Written:
        try:
            image = (self._root / ask.record.image).read_bytes()
        except OSError as problem:
            return Written("", reason=Reason.IMAGE, detail=problem.strerror or "cannot be read")
        again, verdict, tries = "", Verdict(""), 0
        for tries in range(1, self._tries + 1):
            try:
                reply = self._client.ask(image, prompt_for(ask) + again)
            except CostLimitError:
                return Written(verdict.text, tries=tries, asked=False)
            except ImageError as wrong:
                return Written("", reason=Reason.IMAGE, detail=str(wrong), tries=tries)
            except AskError as wrong:
                return Written("", reason=Reason.ENDPOINT, detail=str(wrong), tries=tries)
            verdict = judge(reply, ask.phrase)
            if verdict.reason is None:
                return Written(verdict.text, tries=tries)
            if verdict.reason is Reason.REFUSAL:
                break  # asking again is no better manners than it is use
            why = f"{verdict.reason}: {verdict.detail}" if verdict.detail else str(verdict.reason)
            again = AGAIN.format(text=verdict.text, reason=why)
        return Written(verdict.text, reason=verdict.reason, detail=verdict.detail, tries=tries)


class OwnWriter:
    """The questions that a record has already, as scenes do: needs no model and no network."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    @property
    def about(self) -> dict[str, Any]:
        return {"writer": "own questions"}

    def write(self, ask: Ask) -> Written:
        """One of the questions that the region answers, drawn anew for each region and seed."""
        own = [q for q in ask.record.instructions if q.region == ask.region]
        digest = hashlib.sha256(f"{ask.record.id} {ask.region}".encode()).digest()
        random = np.random.default_rng([self._seed, int.from_bytes(digest[:8], "little")])
        verdict = Verdict("", Reason.NO_QUESTION)
        for number in random.permutation(len(own)):
            question = own[number]
            verdict = check_prompt(question.instruction, ask.phrase)
            if verdict.reason is None:
                kept = tuple(p for p in question.paraphrases if _usable(p, ask.phrase))
                return Written(verdict.text, question.kind, paraphrases=kept)
        return Written(verdict.text, reason=verdict.reason, detail=verdict.detail)


def _usable(text: str, answer: str) -> bool:
    return check_prompt(text, answer).reason is None


def prompt_for(ask: Ask) -> str:
    """The request for one region."""
    record, (x, y, width, height) = ask.record, ask.record.regions[ask.region].box
    across, down = 100 / record.width, 100 / record.height
    return PROMPT.format(
        caption=_one_line(ask.phrase),
        left=round(x * across),
        right=round((x + width) * across),
        top=round(y * down),
        bottom=round((y + height) * down),
        others=_listed([record.regions[i].phrase for i in ask.others]),
        words=", ".join(_words(ask.phrase)),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _listed(phrases: Sequence[str]) -> str:
    return "\n".join(f"* {_one_line(phrase)}" for phrase in phrases) or "(none)"


def _words(phrase: str) -> list[str]:
    """The words of a phrase that a prompt may not hold, as they are written in it."""
    return [word for word in dict.fromkeys(_one_line(phrase).split()) if content_words(word)]


def judge(reply: Reply, answer: str) -> Verdict:
    """Whether a reply can be used as the prompt that `answer` answers."""
    if reply.refusal is not None or refuses(reply.text):
        return Verdict(reply.text, Reason.REFUSAL, (reply.refusal or reply.text)[:200])
    if reply.cut_off:
        return Verdict(reply.text, Reason.CUT)
    return check_prompt(reply.text, answer)
