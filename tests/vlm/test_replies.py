"""A reply becomes an instruction only if it gives nothing away and can be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.vlm.rejects import Reason
from abc_embed.vlm.replies import (
    Verdict,
    check_prompt,
    content_stems,
    same_text,
    script_of,
    tidy,
)

SAME = ["dog dogs", "box boxes", "run runs running", "baby babies", "horse horses", "fly flies"]
SAME += ["knife knives", "house houses", "shoe shoes", "stop stopped stopping", "glass glasses"]
SAME += ["tree tree's trees", "CAFÉ cafés café", "stand standing stands"]


@pytest.mark.parametrize("words", SAME)
def test_forms_of_a_word_are_one_word(words: str) -> None:
    assert len(content_stems(words)) == 1


@pytest.mark.parametrize("words", ["dog cat", "grass glass", "car cart", "red bed", "sing song"])
def test_different_words_stay_apart(words: str) -> None:
    assert len(content_stems(words)) == 2


def test_words_that_say_nothing() -> None:
    assert not content_stems("What is it that the one who is there has?  --") - {"one"}
    assert content_stems("left of the top") == {"left", "top"}
    assert not content_stems("")


GOOD = [
    ("What animal sits on the grass?", "a brown dog"),
    ('"What animal sits on the grass?"', "a brown dog"),
    ("User prompt: Describe what the man holds.", "red umbrella"),
    ("这是什么动物", "一只狗"),
    ("Что держит мужчина?", "красный зонт"),
    ("何の動物ですか", "茶色い犬"),
    ("What does the sign say?", "STOP 24"),
]


@pytest.mark.parametrize(("text", "answer"), GOOD)
def test_good_ones(text: str, answer: str) -> None:
    verdict = check_prompt(text, answer)
    assert verdict.reason is None, verdict
    assert not verdict.text.startswith(('"', "User"))


@pytest.mark.parametrize(
    "text",
    [
        '{"instruction": "What sleeps there?"}',
        '{"prompt": "What sleeps there?", "why": "a dog lies there"}',
        '```json\n{"anything": "What sleeps there?"}\n```',
        "```\nWhat sleeps there?\n```",
        '["What sleeps there?"]',
        '"What sleeps there?"',
    ],
)
def test_json_around_a_prompt_is_taken_off(text: str) -> None:
    assert check_prompt(text, "a brown dog") == Verdict("What sleeps there?")


BAD = [
    ('{"instruction": {"text": "What sleeps?"}}', Reason.FORM),
    ('{"a": "What sleeps?", "b": "Who eats?"}', Reason.FORM),
    ('{"prompt": "What sleeps?", "question": "Who eats?"}', Reason.FORM),
    ('["What sleeps?", "Who eats?"]', Reason.FORM),
    ('{"instruction": "What sleeps', Reason.FORM),
    ("What sleeps there?<|im_end|>", Reason.FORM),
    ("<answer>What sleeps there?</answer>", Reason.FORM),
    ("", Reason.EMPTY),
    ('  "" \n', Reason.EMPTY),
    ("I'm sorry, but I can't help with that.", Reason.REFUSAL),
    ("As an AI, I do not see pictures.", Reason.REFUSAL),
    ("What is it?\nWhere is it?", Reason.LINES),
    ("eh?", Reason.LENGTH),
    ("What is that " + "over there " * 30, Reason.LENGTH),
    ("Что это такое?", Reason.SCRIPT),
    ("12345?", Reason.SCRIPT),
    ("Where are the DOGS?", Reason.LEAK),
    ("What is brown’s?", Reason.LEAK),
    ("Which brown one is it?", Reason.LEAK),
]


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_bad_ones(text: str, reason: Reason) -> None:
    assert check_prompt(text, "a brown dog").reason is reason


def test_what_was_given_away_is_named() -> None:
    assert check_prompt("Is the brown dog brown?", "a brown dog").detail == "brown, dog"


def test_a_leak_without_spaces_between_words() -> None:
    assert check_prompt("这只棕色的动物是什么", "一只棕色的狗").reason is Reason.LEAK


def test_another_script_where_it_is_wanted() -> None:
    assert check_prompt("Что это такое?", "a dog", "CYRILLIC").reason is None
    assert check_prompt("What is it?", "a dog", "CYRILLIC").reason is Reason.SCRIPT
    assert script_of("犬がいる") == "CJK"
    assert script_of("12 34") is None


def test_same_text() -> None:
    assert same_text("The  Red hat!") == same_text("red hat") != same_text("red hats")


@given(st.text(max_size=40))
def test_any_text_is_judged(text: str) -> None:
    verdict = check_prompt(text, "a dog")
    if verdict.reason is None:
        assert verdict.text == tidy(verdict.text)
        assert len(verdict.text.splitlines()) == 1
        assert "dog" not in verdict.text.casefold().split()
    assert tidy(tidy(text)) == tidy(text)
