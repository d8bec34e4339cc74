"""The exception tree: exit codes, docstrings, and the sentence for a missing extra."""

import inspect

import pytest

from abc_embed import errors

CLASSES = [
    thing
    for thing in vars(errors).values()
    if inspect.isclass(thing) and thing.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_has_one_root_a_meaning_and_an_exit_code(error: type[Exception]) -> None:
    assert issubclass(error, errors.AbcError)
    assert error.__doc__ and error.__doc__ != errors.AbcError.__base__.__doc__
    assert error.exit_code == (2 if issubclass(error, errors.UsageError) else 1)
    assert str(error("a plain sentence")) == "a plain sentence"


def test_what_bulk_work_may_skip_is_what_is_wrong_with_an_item() -> None:
    skippable = {error.__name__ for error in CLASSES if issubclass(error, errors.InputError)}
    assert {"ImageTooLargeError", "AspectError", "TextTooLongError"} < skippable
    assert not {"CheckpointError", "OutOfMemoryError", "UsageError", "OutputError"} & skippable


def test_a_missing_extra_names_its_pip_line() -> None:
    error = errors.MissingExtraError.of("mine", "writing Parquet")
    assert str(error) == (
        "writing Parquet needs an optional package; run: pip install 'abc-embed[mine]'"
    )
