"""`batch_invariant=True`: every picture of a call is computed by itself, whatever the number format."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepvar import SkipVAR, StepVAR
from tiny_pipelines import MAKERS, PICTURES, made, needed

PRUNED = StepVAR(ratios={-2: 0.4, -1: 0.6}, recovery="guided", values="expected")
each_model = pytest.mark.parametrize("name", MAKERS)


def media(output: Any) -> Any:
    return output.frames if hasattr(output, "frames") else output.images


def length(name: str) -> dict[str, Any]:
    return needed(made(name))


def negative(name: str, text: Any) -> dict[str, Any]:
    return {"negative_prompt": text} if made(name).reads_text else {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_model
def test_bits_are_those_of_single_runs(name, dtype):
    pipeline = MAKERS[name][0]().to(dtype)
    first, second = MAKERS[name][1]
    options = {"pruning": PRUNED, "output_type": "pt", **length(name)}
    batch = pipeline(
        [first, second],
        num_images_per_prompt=2,
        seed=[7, 8, 9, 7],
        batch_invariant=True,
        **negative(name, [second, first]),
        **options,
    )
    assert batch.report.seeds == [7, 8, 9, 7]
    assert batch.report.settings["batch_invariant"] is True
    assert len(media(batch)) == 4
    for index, (subject, seed) in enumerate(((first, 7), (first, 8), (second, 9), (second, 7))):
        single = pipeline(subject, seed=seed, **negative(name, first if index > 1 else second), **options)
        assert torch.equal(media(batch)[index], media(single)[0])
        assert single.report.settings["batch_invariant"] is False
        for scale, choice in single.report.choices.items():
            assert torch.equal(batch.report.choices[scale][index], choice[0])
        for together, alone in zip(batch.report.scales, single.report.scales, strict=True):
            assert (together.plan, together.rows) == (alone.plan, alone.rows)
            if alone.kept_index is not None:
                assert torch.equal(together.kept_index[index], alone.kept_index[0])
        assert batch.report.cache_bytes == single.report.cache_bytes


@each_model
def test_nothing_is_computed_for_two_pictures_at_a_time(name, monkeypatch):
    pipeline = made(name)
    seen: list[int] = []
    decode = "decode_stream" if pipeline.draws_videos else "decode"
    decoded, encode = getattr(pipeline.vae, decode), pipeline.encode

    def recorded_decode(latent: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(latent))
        return decoded(latent, *args, **kwargs)

    def recorded_encode(prompts: list[str]) -> Any:
        seen.append(len(prompts))
        return encode(prompts)

    monkeypatch.setattr(pipeline.vae, decode, recorded_decode)
    if pipeline.reads_text:
        monkeypatch.setattr(pipeline, "encode", recorded_encode)

    def note(_: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(len(tensors["latents"]))
        return {}

    call = {"callback_on_step_end": note, "seed": 3, **length(name)}
    pipeline(MAKERS[name][1], batch_invariant=True, **call)
    assert set(seen) == {1} and len(seen) >= 2 * len(pipeline.summary(**length(name)).costs)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_every_form_of_output_has_all_pictures(name, kind):
    pipeline, subjects = made(name), MAKERS[name][1]
    call = {"seed": 5, "output_type": kind, **needed(pipeline)}
    joined = pipeline(subjects, batch_invariant=True, **call).images
    usual = pipeline(subjects, **call).images
    assert type(joined) is type(usual) and len(joined) == 2
    if kind != "pil":
        assert joined.shape == usual.shape and joined.dtype == usual.dtype
    images, _ = pipeline(subjects, batch_invariant=True, return_dict=False, **call)
    assert len(images) == 2


@pytest.mark.parametrize("name", ["infinity", "hart", "switti", "infinitystar", "varedit"])
def test_encoded_prompts_are_each_pictures_own(name):
    pipeline, (first, second) = made(name), MAKERS[name][1]
    call = {"output_type": "pt", **length(name)}
    embeds, other = pipeline.encode([first, second]), pipeline.encode([second, first])
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": other}
    batch = pipeline(**given, seed=[4, 5], batch_invariant=True, **call)
    for index in range(2):
        alone = {key: value[index : index + 1] for key, value in given.items()}
        single = pipeline(**alone, seed=4 + index, **call)
        assert torch.equal(media(batch)[index], media(single)[0])


@each_model
def test_a_generator_of_several_pictures_is_refused(name):
    pipeline, subjects, shared = made(name), MAKERS[name][1], torch.Generator().manual_seed(1)
    for given in (shared, [shared, shared]):
        with pytest.raises(ValueError, match="one generator serves several"):
            pipeline(subjects, generator=given, batch_invariant=True, **length(name))
    own = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    drawn = pipeline(subjects, generator=own, batch_invariant=True, output_type="pt", **length(name))
    seeded = pipeline(subjects, seed=[1, 2], batch_invariant=True, output_type="pt", **length(name))
    assert torch.equal(media(drawn), media(seeded))


@each_model
def test_the_summary_counts_one_picture_after_the_other(name):
    pipeline, subjects = made(name), MAKERS[name][1]
    call = {"pruning": PRUNED, **length(name)}
    one = pipeline.summary(**call)
    both = pipeline.summary(batch_invariant=True, **{pipeline._subject: subjects}, **call)
    assert both.flops == 2 * one.flops and both.dense_flops == 2 * one.dense_flops
    assert both.cache_bytes == one.cache_bytes
    assert [cost.rows for cost in both.costs] == [cost.rows for cost in one.costs]


def test_pictures_may_end_at_different_scales():
    pipeline, subjects = made("infinity"), MAKERS["infinity"][1]
    ended: list[int] = []

    def stop_the_second(pipe: Any, step: int, timestep: int, tensors: Any) -> dict[str, Any]:
        ended.append(step)
        pipe._interrupt = ended.count(0) == 2 and step == 2
        return {}

    output = pipeline(subjects, seed=1, batch_invariant=True, callback_on_step_end=stop_the_second)
    assert ended == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert len(output.images) == 2 and list(output.report.choices) == [0, 1, 2]
    assert not any(scale.plan.skipped for scale in output.report.scales)
    judged = {"seed": 1, "pruning": SkipVAR(), "output_type": "pt"}
    batch = pipeline(subjects, batch_invariant=True, **judged).images
    assert torch.equal(batch[1:], pipeline(subjects[1], **{**judged, "seed": 2}).images)
