"""An instruction for one region: what is asked of a VLM, and who else can write one.

The text of the request is ours, after section 3.3 and appendix A of the paper. It has a version,
and its hash is written into the data: another text makes other data.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_embed.data.records import Instruction, Record
from abc_embed.errors import AskError, CostLimitError, ImageError
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sha256
from abc_embed.vlm.client import Reply, VlmClient
from abc_embed.vlm.regions import rng_for
from abc_embed.vlm.rejects import Reason
from abc_embed.vlm.replies import (
    MAX_CHARACTERS,
    Verdict,
    check_prompt,
    content_stems,
    is_refusal,
)

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
RETRY_PROMPT = """
An earlier try was

{text}

It could not be used ({reason}). Write another one.
"""
RETRY_TOKENS = (len(RETRY_PROMPT) + MAX_CHARACTERS) // 3
PROMPT_SHA256 = sha256(PROMPT + RETRY_PROMPT)


@dataclass(frozen=True, slots=True)
class RegionTask:
    """A region that needs an instruction: its record, its number, and the other regions chosen."""

    record: Record
    region: int
    others: tuple[int, ...]

    @property
    def phrase(self) -> str:
        """What the region shows, and what the instruction is answered with."""
        return self.record.regions[self.region].phrase


@dataclass(frozen=True, slots=True)
class WriterResult:
    """What came of a task: a text, or the reason why there is none.

    `tries` is how often a VLM was asked; `asked` is False where the cost limit came before.
    """

    task: RegionTask
    text: str
    reason: Reason | None = None
    detail: str = ""
    kind: str = KIND
    paraphrases: tuple[str, ...] = ()
    tries: int = 1
    asked: bool = True

    def instruction(self, region: int) -> Instruction:
        """As a record holds it whose region `region` answers it."""
        return Instruction(
            instruction=self.text,
            answer=self.task.phrase,
            kind=self.kind,
            paraphrases=self.paraphrases,
            region=region,
        )


class VlmWriter:
    """A vision-language model behind an endpoint; sees the whole picture."""

    def __init__(self, client: VlmClient, root: Path, *, tries: int = 2) -> None:
        """`root` is the folder that images are named from."""
        self._client = client
        self._root = root
        self._tries = tries

    @property
    def about(self) -> dict[str, Any]:
        """What the data says of it, as JSON values."""
        return {
            "writer": self._client.model,
            "prompt": PROMPT_VERSION,
            "prompt_sha256": PROMPT_SHA256,
        }

    def report(self) -> dict[str, Any]:
        """What was sent to the endpoint, and what came of it."""
        return self._client.report()

    def write_all(self, tasks: Iterable[RegionTask]) -> Iterator[WriterResult]:
        """What came of each task, in order; many are under way at once."""
        return self._client.map(self.write, tasks)

    def write(self, task: RegionTask) -> WriterResult:
        """An instruction for one region; may be called from several threads."""

        def judge(reply: Reply) -> Verdict:
            return unusable(reply) or check_prompt(reply.text, task.phrase)

        try:
            image = read_file(self._root / task.record.image)
        except OSError as error:
            return WriterResult(task, "", Reason.IMAGE, error.strerror or "cannot be read")
        try:
            _, verdict, tries = ask_until_usable(
                *(self._client, image, prompt_for(task), judge),
                retry_prompt=RETRY_PROMPT,
                tries=self._tries,
            )
        except CostLimitError:
            return WriterResult(task, "", asked=False)
        return WriterResult(task, verdict.text, verdict.reason, verdict.detail, tries=tries)


def ask_until_usable(
    client: VlmClient,
    image: bytes,
    prompt: str,
    judge: Callable[[Reply], Verdict],
    *,
    retry_prompt: str,
    tries: int,
    schema: Mapping[str, Any] | None = None,
) -> tuple[Reply | None, Verdict, int]:
    """Ask about an image until `judge` finds the reply usable: reply, verdict, tries made.

    At temperature 0 the same request has the same reply, so another try has `retry_prompt` at its
    end, filled with the `{text}` and the `{reason}` of the last verdict. A refusal ends it: asking
    again is no better manners than it is use. A bad image or request is a verdict too.

    Raises:
        EndpointError: the endpoint cannot be used.
        CostLimitError: the limit came first.
    """
    reply, verdict, again, attempt = None, Verdict("", Reason.FORM), "", 1
    for attempt in range(1, tries + 1):
        try:
            reply = client.ask(image, prompt + again, schema=schema)
        except ImageError as error:
            return None, Verdict("", Reason.IMAGE, str(error)), attempt
        except AskError as error:
            return None, Verdict("", Reason.ENDPOINT, str(error)), attempt
        verdict = judge(reply)
        if verdict.reason is None or verdict.reason is Reason.REFUSAL:
            break
        why = f"{verdict.reason}: {verdict.detail}" if verdict.detail else str(verdict.reason)
        again = retry_prompt.format(text=verdict.text, reason=why)
    return reply, verdict, attempt


def unusable(reply: Reply) -> Verdict | None:
    """The verdict on a reply that is a refusal or breaks off; None: look at what it says."""
    if reply.refusal is not None or is_refusal(reply.text):
        return Verdict(reply.text, Reason.REFUSAL, (reply.refusal or reply.text)[:200])
    return Verdict(reply.text, Reason.CUT) if reply.cut_off else None


class OwnWriter:
    """The questions that a record has already, as scenes do: needs no model and no network."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    @property
    def about(self) -> dict[str, Any]:
        """What the data says of it, as JSON values."""
        return {"writer": "own questions"}

    def report(self) -> dict[str, Any]:
        """Nothing: no endpoint was asked."""
        return {}

    def write_all(self, tasks: Iterable[RegionTask]) -> Iterator[WriterResult]:
        """What came of each task, in order."""
        return map(self.write, tasks)

    def write(self, task: RegionTask) -> WriterResult:
        """One of the questions that the region answers, drawn anew for each region and seed."""
        own = [ask for ask in task.record.instructions if ask.region == task.region]
        order = rng_for(f"{task.record.id} {task.region}", self._seed).permutation(len(own))
        verdict = Verdict("", Reason.NO_QUESTION)
        for question in (own[number] for number in order):
            verdict = check_prompt(question.instruction, task.phrase)
            if verdict.reason is None:
                paraphrases = tuple(
                    text
                    for text in question.paraphrases
                    if check_prompt(text, task.phrase).reason is None
                )
                return WriterResult(task, verdict.text, kind=question.kind, paraphrases=paraphrases)
        return WriterResult(task, verdict.text, verdict.reason, verdict.detail)


Writer = VlmWriter | OwnWriter


def prompt_for(task: RegionTask) -> str:
    """The request for one region."""
    record, (x, y, width, height) = task.record, task.record.regions[task.region].box
    across, down = 100 / record.width, 100 / record.height
    caption = _one_line(task.phrase)
    others = (f"* {_one_line(record.regions[i].phrase)}" for i in task.others)
    return PROMPT.format(
        caption=caption,
        left=round(x * across),
        right=round((x + width) * across),
        top=round(y * down),
        bottom=round((y + height) * down),
        others="\n".join(others) or "(none)",
        words=", ".join(word for word in dict.fromkeys(caption.split()) if content_stems(word)),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
