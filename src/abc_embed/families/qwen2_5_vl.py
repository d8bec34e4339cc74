"""Qwen2.5-VL: Qwen2-VL with a vision encoder that looks through windows in most of its layers.

Windows of equal size in one image go side by side and so share an attention call; transformers
calls it for every window.

Shapes: P patches, V merged visual tokens of one image, L patches of one window.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.vision_utils import get_vision_window_index

from abc_embed.backbone import Qwen2VLBackbone, register
from abc_embed.lean import equal_runs


@register("qwen2_5_vl")
class Qwen25VLBackbone(Qwen2VLBackbone):
    """Qwen2.5-VL of any size."""

    config_class = Qwen2_5_VLConfig
    vlm_class = Qwen2_5_VLModel
    vision_sites = r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)"

    def _vision_plan(
        self, grids: Sequence[tuple[int, int, int]], device: torch.device
    ) -> dict[str, Any]:
        plan = super()._vision_plan(grids, device)
        if "abc_groups" not in plan:
            return plan
        order, lengths = self._windows(grids)
        runs = equal_runs(lengths)
        visual = self.vlm.visual
        for number, block in enumerate(visual.blocks):
            if number not in visual.fullatt_block_indexes:
                plan["abc_groups"].of[block.attn] = runs
        plan["window_index"] = order.to(device)
        # As with the images: one segment for transformers, taken apart by `attend_in_groups`.
        plan["cu_window_seqlens"] = plan["cu_seqlens"]
        return plan

    def _windows(self, grids: Sequence[tuple[int, int, int]]) -> tuple[Tensor, list[int]]:
        """Visual tokens in window order `(sum V,)`, and L of each window in that order.

        Images stay in their order, for the layers without windows. Within an image any order of
        windows does, as each token brings its position: shortest first makes the fewest runs.
        """
        visual = self.vlm.visual
        unit = self.merge_size**2

        @cache
        def windows(grid: tuple[int, int, int]) -> list[Tensor]:
            order, ends = get_vision_window_index(
                torch.tensor([grid]), self.merge_size, visual.window_size, visual.patch_size
            )
            sizes = (ends.diff() // unit).tolist()
            return sorted(torch.split(order, sizes), key=len)

        orders, lengths, start = [], [], 0
        for grid in grids:
            orders += [part + start for part in windows(grid)]
            lengths += [len(part) * unit for part in windows(grid)]
            start += grid[0] * grid[1] * grid[2] // unit
        return torch.cat(orders), lengths
