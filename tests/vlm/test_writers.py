"""Instructions without a network: records answer for themselves."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from abc_embed.data.records import Instruction, Record, Region, read_records
from abc_embed.scenes.dataset import write_dataset
from abc_embed.train.config import DataConfig
from abc_embed.train.sampler import RecordSampler
from abc_embed.vlm.instruct import InstructSettings, file_beside, write_instructions
from abc_embed.vlm.region_files import read_regions
from abc_embed.vlm.regions import RegionSettings
from abc_embed.vlm.rejects import Rejects
from abc_embed.vlm.writers import OwnWriter, RegionTask, prompt_for


@pytest.mark.expects_no_network
def test_scenes_answer_for_themselves(tmp_path: Path) -> None:
    write_dataset(tmp_path, 30, 0, 56)
    rejects = Rejects()
    choice = RegionSettings(drop_largest=0, choose=2)
    report = write_instructions(
        read_regions(tmp_path, tmp_path, rejects),
        tmp_path / "out.jsonl",
        OwnWriter(),
        InstructSettings(root=tmp_path, regions=choice, trim=False),
        rejects=rejects,
    )
    known = {r.id: r for r in read_records(tmp_path)}
    kinds = Counter()
    for record in read_records(tmp_path / "out.jsonl"):
        assert len(record.instructions) == 2
        for ask in record.instructions:
            assert any(
                own.instruction == ask.instruction and own.answer == ask.answer
                for own in known[record.id].instructions
            )
            kinds[ask.kind] += 1
    assert report.images_written > 20
    assert report.written == kinds.total() == 2 * report.images_written
    assert len(kinds) >= 3
    source = RecordSampler(tmp_path / "out.jsonl", "instruct", DataConfig(records="x"))
    assert len(source) == report.images_written


def test_own_questions_that_give_the_answer_away_are_not_taken() -> None:
    def asks(*texts: str) -> tuple[Instruction, ...]:
        return tuple(Instruction(instruction=t, answer="a dog", kind="k", region=0) for t in texts)

    def written(*texts: str) -> Any:
        regions = (Region(phrase="a dog", box=(0, 0, 1, 1)),)
        record = Record(
            id="x", image="x.png", width=9, height=9, regions=regions, instructions=asks(*texts)
        )
        return OwnWriter().write(RegionTask(record, 0, ()))

    assert written("where is the dog?", "who barks?").text == "who barks?"
    assert written("where is the dog?").reason == "answer given away"
    assert written().reason == "no question of its own"


def test_names_beside_the_result() -> None:
    assert file_beside(Path("a/b.jsonl"), "rejects.jsonl") == Path("a/b.rejects.jsonl")


def test_places_are_shares_of_the_picture() -> None:
    regions = (Region(phrase="two\nlines of text", box=(30, 0, 15, 30)),)
    record = Record(id="x", image="x.png", width=120, height=60, regions=regions)
    text = prompt_for(RegionTask(record, 0, ()))
    assert "from 25 % to 38 % of the picture's width and from 0 % to 50 %" in text
    assert "\ntwo lines of text\n" in text
    assert "(none)" in text
