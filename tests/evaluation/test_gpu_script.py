"""The script that measures a GPU, on tiny dimensions and a CPU."""

from __future__ import annotations

import json

import gpu
from tiny_pipeline import make_pipeline


def test_every_plan_is_measured_and_what_does_not_fit_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "build_pipeline", lambda *_: make_pipeline())
    file = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--dtype", "float32", "--images", "1", "2", "--repeats", "1"]
    words += ["--plans", "skip", "prune", "unheard", "--no-compile", "--json", str(file)]
    gpu.measure_all(gpu.read_arguments(words))
    document = json.loads(file.read_text())
    assert document["unknown_plans"] == ["unheard"] and document["left_out"] == []
    assert list(document["results"]) == ["eager, batch 1", "eager, batch 2"]
    plans = document["results"]["eager, batch 2"]
    assert list(plans) == ["none", "skip", "prune"]
    assert plans["skip"]["flops_ratio"] > 1 and plans["none"]["speedup"] == 1.0
    for plan in plans.values():
        for scale in plan["scales"]:
            assert (scale["roofline"]["product_share"] is None) == scale["skipped"]
    assert "eager, batch 1" in capsys.readouterr().out
    left = gpu.measure_all(gpu.read_arguments([*words, "--minutes", "0"]))["left_out"]
    assert left == ["eager, batch 1", "eager, batch 2"]
