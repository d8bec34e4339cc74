"""What is right for a query is no negative of it; kinds of instructions are drawn by weight."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_parts import write_data

from abc_embed.errors import ConfigError
from abc_embed.train.batches import caption_group, instruction_group, make_batch
from abc_embed.train.config import DataConfig, load_config
from abc_embed.train.losses import contrastive_loss
from abc_embed.train.processes import BatchInfo, GlobalBatch
from abc_embed.train.sampler import RecordSampler


def picture(shade: int) -> np.ndarray:
    return np.full((56, 56, 3), shade, dtype=np.uint8)


def left_out(batch: GlobalBatch) -> dict[str, set[str]]:
    """Right text of each query -> the texts that are no negatives of it."""
    mask, queries = batch.excluded(), batch.own.queries
    rows = mask.tolist() if mask is not None else [[False] * len(batch.numbers)] * len(queries)
    return {
        query.answer: {name for name, out in zip(batch.numbers, row, strict=True) if out}
        for query, row in zip(queries, rows, strict=True)
    }


def test_captions_of_equal_pictures_and_further_ones_are_no_negatives(tiny: Any) -> None:
    _, processor = tiny()
    groups = [
        caption_group(picture(9), "grey", ["wrong"]),
        caption_group(picture(9), "a dark one"),
        caption_group(picture(200), "light", ["bright", "grey"], also_right=["bright", "unseen"]),
    ]
    found = left_out(GlobalBatch.single(make_batch(groups, processor)))
    assert found == {"grey": {"a dark one"}, "a dark one": {"grey"}, "light": {"bright"}}
    plain = make_batch([groups[0], caption_group(picture(3), "other")], processor)
    assert GlobalBatch.single(plain).excluded() is None


def test_answers_to_the_same_question_are_no_negatives(tiny: Any) -> None:
    _, processor = tiny()
    pairs = [("what is it?", "a square"), ("which colour?", "grey")]
    groups = [
        instruction_group(picture(9), pairs),
        instruction_group(picture(9), [("what is it?", "a grey square")]),
        instruction_group(picture(200), [("what is it?", "a light one")]),
    ]
    found = left_out(GlobalBatch.single(make_batch(groups, processor)))
    assert found["a square"] == {"a grey square"} and found["a grey square"] == {"a square"}
    assert found["grey"] == set() == found["a light one"]  # the others stay hard negatives


def test_other_processes_count(tiny: Any) -> None:
    _, processor = tiny()
    parts = [
        make_batch([caption_group(picture(9), text)], processor) for text in ("grey", "a dark one")
    ]
    infos = [BatchInfo.of(part) for part in parts]
    for rank, other in enumerate(("a dark one", "grey")):
        found = left_out(GlobalBatch(parts[rank], infos, rank))
        assert list(found.values()) == [{other}]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_without_some_is_that_of_the_rest(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, candidates = (
        F.normalize(torch.randn(n, 8, generator=generator), dim=1).requires_grad_() for n in (3, 5)
    )
    positives = torch.tensor([0, 1, 4])
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 2] = mask[0, 3] = mask[2, 0] = True
    loss, _ = contrastive_loss(query, candidates, positives, 0.07, smoothing, excluded=mask)
    alone = []
    for row in range(3):
        kept = (~mask[row]).nonzero().flatten()
        right = (kept == positives[row]).nonzero().flatten()
        alone.append(
            contrastive_loss(query[row : row + 1], candidates[kept], right, 0.07, smoothing)[0]
        )
    wanted = torch.stack(alone).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for tensor in (query, candidates):
        one, two = (torch.autograd.grad(x, tensor, retain_graph=True)[0] for x in (loss, wanted))
        assert torch.isfinite(one).all() and torch.allclose(one, two, atol=1e-6)
    nothing = torch.zeros_like(mask)
    one, two = (
        contrastive_loss(query, candidates, positives, 0.07, smoothing, excluded=m)[0]
        for m in (None, nothing)
    )
    assert one.item() == pytest.approx(two.item(), rel=1e-6)


def write_asks(folder: Path) -> Path:
    write_data(folder)
    file = folder / "records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["instructions"] = [
            {"instruction": f"{kind} {n}?", "answer": f"{kind} {n}", "kind": kind}
            for kind in ("place", "yes-no", "size")
            for n in range(2)
        ]
    lines[0]["instructions"] = [{"instruction": "is it?", "answer": "no", "kind": "yes-no"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_kinds_are_drawn_by_weight(tmp_path: Path) -> None:
    folder = write_asks(tmp_path / "data")

    def drawn(**kinds: float) -> Counter[str]:
        settings = DataConfig(
            instructions=1, kinds={k.replace("_", "-"): v for k, v in kinds.items()}
        )
        sampler = RecordSampler(folder, "instruct", settings)
        groups = (g for step in range(400) for g in sampler.groups(step, 5, 0))
        return Counter(g.pairs[0][1].split()[0] for g in groups if g.pairs[0][1] != "no")

    plain, weighted = drawn(), drawn(place=4.0, yes_no=0.5)
    assert all(
        count == pytest.approx(sum(plain.values()) / 3, rel=0.15) for count in plain.values()
    )
    total = sum(weighted.values())
    assert weighted["place"] / total == pytest.approx(4 / 5.5, abs=0.04)
    assert weighted["yes-no"] / total == pytest.approx(0.5 / 5.5, abs=0.04)
    assert "yes-no" not in drawn(yes_no=0.0)
    only = RecordSampler(folder, "instruct", DataConfig(kinds={"yes-no": 0.0}))
    assert len(only) == 5  # the first has nothing else to ask
    with pytest.raises(
        ConfigError, match=r"data\.kinds names 'plaice', .* are place, size, yes-no"
    ):
        RecordSampler(folder, "instruct", DataConfig(kinds={"plaice": 1.0}))


def test_kinds_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    base = (
        'stage = "instruct"\n[adapter]\nrank = 4\nalpha = 8\n[train]\nsteps = 1\nbatch_size = 2\n'
    )
    path.write_text(base + "[data]\nkinds = {place = 2, yes-no = 0.5}\n")
    assert load_config(path).data.kinds == {"place": 2.0, "yes-no": 0.5}
    assert load_config(path, ["data.kinds.place=3"]).data.kinds["place"] == 3.0
    path.write_text(base + "[data.kinds]\nplace = -1\n")
    with pytest.raises(ConfigError, match=r"data\.kinds\.place is -1\.0; .*line 9"):
        load_config(path)
    path.write_text((base + "[data.kinds]\nplace = 2\n").replace("instruct", "pretrain"))
    with pytest.raises(ConfigError, match=r"data\.kinds is .*, which is for stage 2"):
        load_config(path)
