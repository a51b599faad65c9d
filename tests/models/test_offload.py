"""Offloading moves a part when it is needed, although the loop never calls a transformer's `forward`."""

import pytest
from accelerate import cpu_offload_with_hook

from stepvar import SkipVAR
from tiny_hart import make_pipeline as make_hart_pipeline
from tiny_pipeline import make_pipeline as make_infinity_pipeline
from tiny_pipelines import needed
from tiny_switti import make_switti_pipeline
from tiny_var import make_var_pipeline
from tiny_varedit import make_varedit_pipeline


@pytest.mark.parametrize(
    ("make", "prompt"),
    [
        (make_infinity_pipeline, "a red star"),
        (make_var_pipeline, 1),
        (make_hart_pipeline, "a red star"),
        (make_switti_pipeline, "a red star"),
        (make_varedit_pipeline, "a red star"),
    ],
)
def test_parts_are_brought_in_before_they_work(make, prompt):
    pipeline, brought = make(), []
    for name in ("transformer", "vae"):
        part = getattr(pipeline, name)
        cpu_offload_with_hook(part, "cpu")
        bring = part._hf_hook.pre_forward

        def recorded(module, *args, name=name, bring=bring, **kwargs):
            brought.append(name)
            return bring(module, *args, **kwargs)

        part._hf_hook.pre_forward = recorded
    # A picture to edit is encoded before the transformer comes.
    own, before = needed(pipeline), ["vae"] * pipeline.needs_picture
    pipeline(prompt, seed=0, **own)
    assert brought == [*before, "transformer", "vae"]
    brought.clear()
    pipeline(prompt, seed=0, pruning=SkipVAR(), **own)
    assert brought == [*before, "transformer", *["vae", "transformer"] * 2, "vae"], "two looks at the picture"
