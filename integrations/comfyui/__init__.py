"""ComfyUI nodes for stepvar: load, plan, generate, compare, and the kept tokens as a mask."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .drawing_nodes import Compare, Generate, KeptTokens
from .model_nodes import LoadModel, Plan, PresetPlan

NODES: tuple[type[io.ComfyNode], ...] = (LoadModel, PresetPlan, Plan, Generate, Compare, KeptTokens)


class StepVARExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes."""
        return list(NODES)


async def comfy_entrypoint() -> StepVARExtension:
    """What ComfyUI calls when it loads the pack."""
    return StepVARExtension()
