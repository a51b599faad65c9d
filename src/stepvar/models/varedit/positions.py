"""Rotary positions of VAREdit: source tokens beside the target, read from one list by number.

Source: `precompute_rope2d_freqs_grid` of HiDream-ai/VAREdit, infinity/models/basic.py, and its use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepvar.generation.schedule import ScaleSchedule
from stepvar.models.common.layers import rotary_table_2d


def position_table(template: ScaleSchedule, head_dim: int, device: torch.device) -> Tensor:
    """Rotary table of every entry of a template's list of positions.

    The list has the source map first, shifted by one whole map along the diagonal, then the maps of all
    scales of the largest pixel budget. A token takes the entry with its own number in the sequence of source
    and target tokens that runs, whatever budget it belongs to: below the largest budget target tokens
    therefore have positions of the list's source section. The official training numbers them alike, so the
    published weights expect it.

    Args:
        template: Schedule of the largest budget (1M) at the picture's aspect ratio.
        head_dim: Channels of a head.
        device: Where the table goes.

    Returns:
        [1, entries, head_dim / 2] complex64.
    """
    height, width = template.final.height, template.final.width
    rows, columns = _places((height, width), (height, width), device)
    parts = [(rows + height, columns + width)]
    parts += [_places((scale.height, scale.width), (height, width), device) for scale in template]
    all_rows, all_columns = (torch.cat(axis) for axis in zip(*parts, strict=True))
    return rotary_table_2d(all_rows, all_columns, head_dim)[None]


def _places(grid: tuple[int, int], full: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns on the full map of the tokens of a grid, row-major, rounded half to even."""
    axes = [
        (torch.arange(size, dtype=torch.float32, device=device) * (whole / size)).round()
        for size, whole in zip(grid, full, strict=True)
    ]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return rows.flatten(), columns.flatten()
