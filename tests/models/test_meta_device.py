"""Every model and method on the meta device: a wait for numbers, or a tensor of another device, raises."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from stepvar import FasterVAR, FastVAR, Int8Cache, ScaleKV, SkipVAR, StepVAR
from stepvar.evaluation.recovery_fit import fit_recovery
from stepvar.pruning.recovery import ready_recoveries
from stepvar.pruning.scores import SCORERS
from tiny_pipelines import MAKERS, made, needed

RATIOS = {-2: 0.4, -1: 0.6}
METHODS = {
    "dense": None,
    "fastvar": FastVAR(RATIOS),
    "fastervar": FasterVAR({-2: 0.4}, shares={-1: (0.2, 0.3)}, unguided=-2, remaining="unconditional"),
    "unguided": StepVAR(unguided=-2),
    "skips": StepVAR(skip=(-1,)),
    "int8 cache": Int8Cache(StepVAR(RATIOS)),
    "scalekv": ScaleKV(share=0.15, pruning=StepVAR(RATIOS)),
    "stages and a dense end": StepVAR(RATIOS, recovery="update", values="copied"),
    **{f"score {name}": StepVAR(RATIOS, score=name) for name in SCORERS},
    **{f"recovery {name}": StepVAR(RATIOS, recovery=name, values="expected") for name in ready_recoveries()},
}


@cache
def on_meta(name: str):
    """A pipeline whose weights hold no numbers, and what to draw with it, encoded before."""
    make, (subject, _), _ = MAKERS[name]
    pipeline = make()
    if not pipeline.reads_text:
        return pipeline.to("meta"), {pipeline._subject: [subject]}
    with torch.no_grad():
        inputs = {"prompt_embeds": pipeline.encode([subject])}
        if "switti" in name:
            # Its unconditional copy reads an empty text.
            inputs["negative_prompt_embeds"] = pipeline.encode([""])
    return pipeline.to("meta"), inputs


def draw(name: str, method):
    pipeline, inputs = on_meta(name)
    output = pipeline(**inputs, **needed(pipeline), pruning=method, output_type="latent", seed=3)
    return output.frames if pipeline.draws_videos else output.images


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MAKERS)
def test_the_loop_never_waits_for_the_device(name, method):
    if method in ("scalekv", "int8 cache") and name in ("switti", "infinitystar"):
        pytest.skip("keeps no keys and values that could be forgotten")
    drawn = draw(name, METHODS[method])
    assert all(latent.device.type == "meta" for latent in drawn)


@pytest.mark.parametrize("name", MAKERS)
def test_a_fitted_recovery_runs_on_every_model_and_never_waits(name):
    pipeline, subjects = made(name), MAKERS[name][1]
    plan = fit_recovery(pipeline, subjects * 2, StepVAR(RATIOS), settings=needed(pipeline))
    assert all(0.0 < fitted.error < 2.0 for fitted in plan.recovery.maps)
    drawn = [
        pipeline(subjects[:1], seed=3, pruning=method, output_type="latent", **needed(pipeline))
        for method in (plan, StepVAR(RATIOS))
    ]
    fitted, nearest = (output.frames if pipeline.draws_videos else output.images for output in drawn)
    assert not torch.equal(fitted[0], nearest[0])
    assert all(latent.device.type == "meta" for latent in draw(name, plan))


def test_skipvar_waits_once():
    """It looks at the picture: the only method that reads numbers from the device."""
    with pytest.raises(RuntimeError, match="meta"):
        draw("infinity", SkipVAR())
