"""Whether a text that a model wrote can be used as an instruction; not whether it makes sense.

A prompt that holds a word of its own answer teaches a model to copy words instead of looking at the
image; so the rule is strict: not one content word of the answer, in any of its common endings.
"""

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from abc_embed.vlm.rejects import Reason

MIN_CHARACTERS = 4
"""Shorter than "who?" asks nothing."""
MAX_CHARACTERS = 240
"""Longer than two sentences is a description, not a prompt."""
MIN_SCRIPT_SHARE = 0.9
"""So many of the letters must be of the right script; names of brands and places may differ."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The tidied text; `reason` is None when it can be used, `detail` says more."""

    text: str
    reason: Reason | None = None
    detail: str = ""


# Words that carry no answer: articles, pronouns, prepositions, auxiliaries, question words. Places
# ("left", "top") are not among them: "the man on the left" asked for as "who is on the left?" is
# half given away.
_STOP_WORD_TEXT = (
    "a an the this that these those some any each every other another such same own no not nor and "
    "or but if then than so as at by for from in into of off on onto out over to up with within "
    "without via per about above across after against along among around before behind below "
    "beneath beside besides between beyond down during inside near next outside through toward "
    "towards under underneath upon while i you he she it we they me him her us them my your his "
    "its our their mine yours who whom whose which what when where why how is are was were be been "
    "being am has have had having do does did doing done can could may might must shall should "
    "will would there here very too just also only all both s t"
)
_STOP_WORDS = frozenset(_STOP_WORD_TEXT.split())
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# Written without spaces between words: there, pairs of characters stand for words.
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
_ENDINGS = (("ing", ""), ("ies", "i"), ("ied", "i"), ("es", ""), ("ed", ""), ("s", ""), ("e", ""))
_LAST = {"y": "i", "v": "f"}  # fly and flies, knife and knives
_LABEL = re.compile(r"^(?:user\s+)?(?:prompt|instruction|question)\s*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」", "`": "`"}
_THOUGHT = r"think|thinking|thought|reasoning"
_THOUGHTS = re.compile(
    rf"<({_THOUGHT})>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)", re.DOTALL | re.IGNORECASE
)
# Some templates open the thought in the prompt, so that the reply holds its end alone.
_END_OF_THOUGHT = re.compile(rf".*(?:</(?:{_THOUGHT})>|\[/THINK\])", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```[\w-]*\n(.*?)\n?```", re.DOTALL)
_JSON_KEYS = ("prompt", "instruction", "question", "user_prompt", "text", "reply", "response")
# What ends or begins a part of a chat template, and what is left of a tag.
_MARKUP = re.compile(r"<\|[^<>|]*\|>|</?\w+>|^[{\[]")
_REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am) (?:sorry|unable|not able)|i (?:cannot|can['’]t|can not|won['’]t)"
    r"|as an ai|unable to (?:assist|help|comply)|cannot (?:assist|help|comply))\b",
    re.IGNORECASE,
)


def content_stems(text: str) -> frozenset[str]:
    """The words of a text that carry meaning, each cut down to a stem.

    Case, accents' encoding and common English endings make no difference: "Dogs'" and "dog" are one
    word. Where words are not spaced (Chinese, Japanese, Thai …), pairs of characters are the words.

    >>> sorted(content_stems("The two dogs' collars"))
    ['collar', 'dog', 'two']
    """
    stems = set()
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _NO_SPACES.search(word):
            stems |= {word[i : i + 2] for i in range(max(1, len(word) - 1))}
        elif word not in _STOP_WORDS:
            stems.add(_stem(word))
    return frozenset(stems)


def _stem(word: str) -> str:
    """The word without a common English ending; rough, and the same for all forms of most words."""
    word = re.split("['’]", word)[0]
    for ending, replacement in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= (3 - len(replacement)):
            if not word.endswith("ss"):
                word = word.removesuffix(ending) + replacement
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]  # "running" -> "runn" -> "run"
    return word[:-1] + _LAST.get(word[-1], word[-1])


def same_text(text: str) -> str:
    """The text as compared with others: without case, punctuation, and articles in front."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    while words and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)


def script_of(text: str) -> str | None:
    """The script of most letters of a text, as Unicode names it ("LATIN", "CJK"); None without."""
    letters = _letters_by_script(text)
    return max(letters, key=lambda name: (letters[name], name)) if letters else None


def _letters_by_script(text: str) -> Counter[str]:
    letters = (c for c in text if c.isalpha())
    names = Counter(unicodedata.name(c, "UNKNOWN").split()[0].partition("-")[0] for c in letters)
    for kana in ("HIRAGANA", "KATAKANA"):  # Japanese mixes these with Chinese characters
        if kana in names:
            names["CJK"] += names.pop(kana)
    return names


def tidy(text: str) -> str:
    """The text without space, quotes and a label ("Prompt:") around it."""
    before = None
    while text != before:
        before = text
        text = _LABEL.sub("", text.strip()).strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1]
    return text


def without_thoughts(text: str) -> str:
    """The text without what a reasoning model thought before it answered.

    A thought without an end is all there is of a reply that was cut off.

    >>> without_thoughts("<think>A dog, on the left.</think>What sleeps there?")
    'What sleeps there?'
    """
    return _END_OF_THOUGHT.sub("", _THOUGHTS.sub("", text)).strip()


def parse_json(text: str) -> object:
    """The text as JSON, taken out of a Markdown fence if it is in one; None if it is none."""
    try:
        return json.loads(_unfenced(text))
    except (ValueError, RecursionError):
        return None


def _unfenced(text: str) -> str:
    fenced = _FENCED.fullmatch(text.strip())
    return fenced[1] if fenced else text


def unwrap(text: str) -> str:
    """The text itself where a model put it into a Markdown fence or into JSON.

    That is a JSON text, a list or an object of one text, or an object whose text is called prompt,
    instruction, question or the like. Other JSON stays as it is.

    >>> unwrap('{"instruction": "What sleeps there?"}')
    'What sleeps there?'
    """
    value = parse_json(text)
    if isinstance(value, dict):
        named = [value[key] for key in _JSON_KEYS if isinstance(value.get(key), str)]
        value = (named or list(value.values())) if len(named) < 2 else None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else _unfenced(text)


def is_refusal(text: str) -> bool:
    """Whether a text reads like a model that declines."""
    return _REFUSAL.search(text) is not None


def check_prompt(text: str, answer: str, script: str | None = None) -> Verdict:
    """Whether `text` can be the instruction that `answer` answers.

    `script` is that of the letters wanted, as `script_of` names it; without it, the answer's own.
    """
    text = tidy(unwrap(text))
    if not text:
        return Verdict(text, Reason.EMPTY)
    if markup := _MARKUP.search(text):
        return Verdict(text, Reason.FORM, f"it holds {markup[0]}")
    if is_refusal(text):
        return Verdict(text, Reason.REFUSAL, text[:MAX_CHARACTERS])
    if len(text.splitlines()) > 1:
        return Verdict(text, Reason.LINES, f"{len(text.splitlines())} lines")
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
        return Verdict(text, Reason.LENGTH, f"{len(text)} characters")
    wanted, letters = script or script_of(answer), _letters_by_script(text)
    if wanted is not None and letters[wanted] < MIN_SCRIPT_SHARE * max(1, letters.total()):
        return Verdict(text, Reason.SCRIPT, f"{script_of(text) or 'no letters'}, not {wanted}")
    leaked = sorted(content_stems(text) & content_stems(answer))
    if leaked:
        return Verdict(text, Reason.LEAK, ", ".join(leaked))
    return Verdict(text)
