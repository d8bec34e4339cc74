"""Lean modules against those of transformers, which `attn="eager"` keeps, in every family."""

from typing import Any
from unittest import mock

import pytest
import tiny_families
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen

from abc_embed import lean
from abc_embed.backbone import Backbone

FAMILIES = tiny_families.NATIVE


def pair(family: str) -> tuple[Backbone, Backbone]:
    """The same weights in lean modules and in those of transformers."""
    ours, plain = (tiny_families.backbone(family, attn) for attn in ("sdpa", "eager"))
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def embedded(backbone: Backbone, family: str) -> Tensor:
    """Hidden states of two rows of different lengths, one with a picture."""
    pixels, grid = tiny_families.patches(family)
    visual = backbone.encode_images(pixels, grid)
    ids = torch.full((2, len(visual) + 5), 5)
    ids[0, 2 : 2 + len(visual)] = int(backbone.vlm.config.image_token_id)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    mask[1, 6:] = False
    positions = torch.arange(ids.shape[1]).expand(3, 2, -1)
    return backbone.language(ids, mask, positions, visual)[mask]


@pytest.mark.parametrize("family", FAMILIES)
def test_lean_modules_compute_what_those_of_transformers_do(family: str) -> None:
    ours, plain = pair(family)
    kinds = [{type(m).__module__ for m in of.vlm.language_model.modules()} for of in pair(family)]
    assert [lean.__name__ in kind for kind in kinds] == [True, False]
    with torch.no_grad():
        assert (embedded(ours, family) - embedded(plain, family)).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_their_gradients_are_the_same(family: str) -> None:
    gradients = []
    for backbone in pair(family):
        embedded(backbone, family).pow(2).mean().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_that_goes_in_is_written_to(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 4, 8, generator=generator).to(dtype)
    cos, sin = torch.randn(2, 2, 7, 1, 8, generator=generator).to(dtype)
    before = [part.clone() for part in (x, cos, sin)]
    half = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
    with torch.no_grad():
        turned = lean.rotate(x, cos, sin)
    tolerance = 1e-6 if dtype == torch.float32 else 0.05  # 8 bits, values up to about 6
    assert (turned - (x * cos + half * sin)).abs().max() < tolerance
    assert all(torch.equal(a, b) for a, b in zip(before, (x, cos, sin), strict=True))


def test_one_call_for_images_of_all_sizes_where_the_device_has_it() -> None:
    """With a stand-in for torch's attention for rows of any length, which wants a GPU."""

    def stand_in(
        q: Tensor, k: Tensor, v: Tensor, ends: Tensor, _: Tensor, longest: int, __: int
    ) -> Tensor:
        assert ends.dtype == torch.int32
        assert longest == int(ends.diff().max())
        cuts = [part.split(ends.diff().tolist()) for part in (q, k, v)]
        attend: Any = nn.functional.scaled_dot_product_attention
        rows = zip(*cuts, strict=True)
        return torch.cat(
            [attend(*(x.transpose(0, 1) for x in row)).transpose(0, 1) for row in rows]
        )

    q, k, v = torch.randn(3, 2 * 4 + 3 * 6, 2, 8, generator=torch.Generator().manual_seed(0))
    module = nn.Identity()
    module.num_key_value_groups, module.is_causal = 1, False  # type: ignore[assignment]
    groups = lean.AttentionGroups({module: [(2, 4), (3, 6)]})
    by_size = lean.attend_in_groups(module, q, k, v, groups)
    with (
        mock.patch.object(varlen, "varlen_attn", side_effect=stand_in) as calls,
        mock.patch.object(lean, "has_varlen", return_value=True),
    ):
        at_once = lean.attend_in_groups(module, q, k, v, groups)
    assert calls.call_count == 1
    assert (by_size - at_once).abs().max() < 1e-6
