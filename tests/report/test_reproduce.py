"""A whole report in miniature: its tables are there, its numbers right, and interruptions cost nothing."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from check_report import complaints
from stepvar.metrics.fidelity import IDENTICAL_DECIBELS
from stepvar.pruning.stepvar import StepVAR
from stepvar.report import charts, configurations
from stepvar.report.configurations import BOTH, DENSE, KINDS, OURS, PRUNE_ONLY, SKIP_ONLY, Configurations
from stepvar.report.folder import ReportFolder
from stepvar.report.page import TABLES
from stepvar.report.probes import Perturbation, ResidualProbe
from stepvar.report.protocol import Protocol
from stepvar.report.results import Results
from stepvar.report.run import reproduce

TINY = Protocol(
    batch=2, central_blocks=3, main_blocks=2, ablation_blocks=1, rounds=2, analysis_pictures=2, gallery=1,
    diversity_prompts=1, diversity_seeds=2,
)  # fmt: skip


class Stop(Exception):
    """Stands for Ctrl-C."""


@pytest.fixture(scope="module")
def pipeline():
    from tiny_pipeline import make_pipeline

    return make_pipeline()


@pytest.fixture(scope="module")
def finished(pipeline, tmp_path_factory):
    """A report whose run was stopped in the middle, and went on."""
    folder = tmp_path_factory.mktemp("lab") / "report"
    heard = []

    def stop(weight, name):
        if name == "pictures-001" and not weight:
            raise Stop
        heard.append(name)

    with pytest.raises(Stop):
        reproduce(pipeline, folder, protocol=TINY, advance=stop)
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "raw").iterdir()}
    plans = []
    outcome = reproduce(pipeline, folder, protocol=TINY, announce=plans.append)
    return folder, outcome, before, plans[0]


def test_a_stopped_run_goes_on_where_it_was(finished):
    folder, outcome, before, plan = finished
    assert before and "pictures-000.json" in before and "pictures-001.json" not in before
    assert plan.done == outcome.resumed == len(before) < outcome.steps
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "raw").iterdir()}
    assert all(after[name] == before[name] for name in before)
    assert len(after) == outcome.steps and not list(folder.rglob("*.partial"))


def test_the_page_needs_no_other_file(finished):
    folder, outcome, _, _ = finished
    page = outcome.page.read_text("utf-8")
    for word in ("figure 1a", "figure 1b", "figure 1c", "figure 3", "figure 7", "figures 4 to 6", "FastVAR"):
        assert word in page
    for caption in TABLES.values():
        assert html.escape(caption) in page
    assert list(complaints(folder)) == []
    assert page.count("<svg") >= 8 and page.count("data:image/webp;base64,") >= 10
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "$" not in re.sub(
        r"<svg.*?</svg>", "", page, flags=re.S
    )
    inlined = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', page, re.S)
    assert json.loads(inlined[1]) == json.loads((folder / "numbers.json").read_text()) == outcome.numbers


def test_every_exhibit_shows_all_four_kinds_of_plans(finished):
    tables, references = finished[1].numbers["tables"], finished[1].numbers["references"]
    assert set(tables) == set(references) == set(TABLES)
    for name, rows in tables.items():
        assert {row["kind"] for row in [*rows, *references[name]]} >= set(KINDS)
        assert not {row["kind"] for row in rows} & {row["kind"] for row in references[name]}
        assert len({row["n"] for row in [*rows, *references[name]]}) == 1
    for table, kind in (("table 1", PRUNE_ONLY), ("table 2", BOTH), ("selection", PRUNE_ONLY)):
        own = {row["kind"] for row in tables[table]} - {DENSE, SKIP_ONLY}
        assert own == {kind}, "methods are judged by plans of one kind"
    for table, blocks in (("table 1", 2), ("table 2", 2), ("decomposition", 3)):
        labels = [row["label"] for row in tables[table]]
        assert labels[:2] == [DENSE, SKIP_ONLY] and len(set(labels)) == len(labels) >= 5
        assert {row["n"] for row in tables[table]} == {blocks * TINY.batch}
    assert {row["n"] for row in tables["ratio"]} == {TINY.batch}


def test_what_is_missing_from_a_report_is_named(finished, tmp_path):
    folder = finished[0]
    document = json.loads((folder / "numbers.json").read_text())
    page = (folder / "index.html").read_text("utf-8")
    document["tables"]["ratio"] = document["references"]["pairs"] = []
    document["claims"] = [claim for claim in document["claims"] if claim["source"] != "figure 7"]
    document["tables"]["skips"][0]["psnr"]["value"] = float("inf")
    (tmp_path / "numbers.json").write_text(json.dumps(document))
    (tmp_path / "index.html").write_text(page.replace("<svg", "<b").replace(TABLES["skips"], ""))
    told = "; ".join(complaints(tmp_path))
    for words in (
        "lacks the table 'skips'",
        "'pairs' lacks",
        "psnr is no number",
        "0 figures",
        "from figure 7",
    ):
        assert words in told


def test_numbers_are_those_of_the_raw_files(finished):
    folder, outcome, _, _ = finished
    blocks = [json.loads((folder / "raw" / f"pictures-00{index}.json").read_text()) for index in (0, 1)]
    rows = {row["label"]: row for row in outcome.numbers["tables"]["table 1"]}
    ours = [value for block in blocks for value in block["configurations"][OURS]["psnr"]]
    assert rows[OURS]["psnr"]["value"] == pytest.approx(np.mean(ours))
    assert rows[OURS]["psnr"]["low"] <= rows[OURS]["psnr"]["value"] <= rows[OURS]["psnr"]["high"]
    dense = rows[DENSE]
    assert dense["psnr"]["value"] == pytest.approx(IDENTICAL_DECIBELS) and dense["agreement"]["value"] == 1.0
    assert dense["frechet"]["value"] == 0.0 and dense["speedup"]["value"] == 1.0 and dense["tokens"] == 1.0
    times = [json.loads((folder / "raw" / f"times-0{index}.json").read_text()) for index in (0, 1)]
    assert rows[OURS]["seconds"] == pytest.approx(np.median([turn[OURS]["seconds"] for turn in times]))
    versus = {entry["rival"]: entry for entry in outcome.numbers["differences"]["table 1"]}
    rival = [value for block in blocks for value in block["configurations"]["FastVAR"]["psnr"]]
    assert versus["FastVAR"]["psnr"]["value"] == pytest.approx(np.mean(np.subtract(ours, rival)))


def test_every_claim_has_a_verdict_and_evidence(finished):
    claims = finished[1].numbers["claims"]
    assert len(finished[1].numbers["published"]) == 4
    assert len(claims) >= 20
    assert {claim["verdict"] for claim in claims} <= {"held", "did not hold", "undecided"}
    assert all(re.search(r"\d", claim["evidence"]) for claim in claims)
    # Two pictures decide nothing; only what follows from the plan alone is certain.
    decided = [claim["source"] for claim in claims if claim["verdict"] != "undecided"]
    assert decided == ["our reading of the settings"]


def test_another_run_is_refused_before_anything_is_drawn(pipeline, finished):
    folder = finished[0]
    other = Protocol(**{**TINY.as_json(), "rounds": 3})
    with pytest.raises(ValueError, match="another run"):
        reproduce(pipeline, folder, protocol=other)
    with pytest.raises(ValueError, match="minutes is 0"):
        reproduce(pipeline, folder, minutes=0.0)


def test_a_disturbed_scale_changes_only_what_follows(pipeline):
    clean = pipeline("a red star", seed=1)
    for scale in (-1, 4):
        disturbed = pipeline("a red star", seed=1, pruning=Perturbation(scale))
        index = 5 if scale == -1 else 3
        same = [
            bool((clean.report.choices[place] == disturbed.report.choices[place]).all()) for place in range(6)
        ]
        assert all(same[:index]) and not same[index]
    gentle = pipeline("a red star", seed=1, pruning=Perturbation(-1, strength=0.0))
    assert np.array_equal(np.asarray(gentle.images[0]), np.asarray(clean.images[0]))
    batch = pipeline(["a red star"] * 2, seed=[9, 1], pruning=Perturbation(-2))
    single = pipeline("a red star", seed=1, pruning=Perturbation(-2))
    for index, generated in single.report.choices.items():
        assert bool((batch.report.choices[index][1] == generated[0]).all())


def test_a_witness_sees_every_layer_and_changes_nothing(pipeline):
    seen = []
    witness = ResidualProbe(
        lambda layer, scale, energy, projection: seen.append((layer, scale.index, energy))
    )
    watched, clean = pipeline("a red star", seed=2, pruning=witness), pipeline("a red star", seed=2)
    assert np.array_equal(np.asarray(watched.images[0]), np.asarray(clean.images[0]))
    assert [(layer, index) for layer, index, _ in seen] == [
        (layer, index) for index in range(6) for layer in range(2)
    ]
    assert all(energy.shape[0] == 1 and (energy >= 0).all() for _, _, energy in seen)


def test_contestants_are_unique(pipeline):
    configurations = Configurations(pipeline.schedule(), 2)
    names = [config.name for config in configurations]
    assert len(set(names)) == len(names)
    plans = [config.pruning for config in configurations]
    assert all(plans.index(plan) == place for place, plan in enumerate(plans))
    assert Configurations(pipeline.schedule(), 2).digest() == configurations.digest()
    deep = Configurations(pipeline.schedule(), 8)
    assert {label for label, _ in deep.table("variants")} - {
        label for label, _ in configurations.table("variants")
    } == {"narrowed in two stages", "last layer dense again"}
    timed = [label for label, _ in configurations.table("equal time")]
    stretched = [f"{OURS}, {stretch:g} of the ratios" for stretch in (0.5, 0.75, 1.2, 1.6)]
    ours = [*stretched[:2], OURS, *stretched[2:]]
    assert timed == [*ours, "FastVAR", "FasterVAR's mixtures", "SparseVAR stand-in", "L2 distance", "random"]
    controls = [config.pruning for _, config in configurations.table("fastervar")]
    assert [plan.skip for plan in controls] == [(-2, -1)] * 4 + [(-3, -2, -1)]
    assert [plan.remaining for plan in controls[:4]] == ["unconditional", "conditional"] * 2
    pairs = [label for label, _ in configurations.table("pairs")]
    assert pairs == ["2x2, 3x3", "3x3, 4x4", "4x4, 6x6", "6x6, 8x8"]


def test_our_own_plans_compete_too(pipeline):
    searched = {
        "best": StepVAR(skip=(-1,), unguided=-2),
        "faithful": StepVAR(ratios={-1: 0.6}, recovery="guided"),
    }
    configurations = Configurations(pipeline.schedule(), 8, searched=searched)
    shown = dict(configurations.table("decomposition"))
    assert shown["best"].pruning is searched["best"] and shown["faithful"].tier == "central"
    family = [config.pruning for config in configurations.families["faithful"]]
    assert [plan.ratios[-1] for plan in family] == [0.3, 0.45, 0.6, 0.72, 0.95]
    assert {plan.recovery for plan in family} == {"guided"} and searched["faithful"] in family


def test_at_equal_time_ours_lies_between_two_of_our_plans(pipeline, finished):
    """Times and likeness are made up: ours loses a decibel for every tenth of a second that it saves."""
    folder, _, _, _ = finished
    results = Results(ReportFolder(folder, json.loads((folder / "run.json").read_text())["identity"]),
                      Configurations(pipeline.schedule(), 2), TINY)  # fmt: skip
    seconds = {
        config.name: 0.9 - 0.1 * place for place, config in enumerate(results.configurations.families[OURS])
    }
    rival = dict(results.configurations.table("equal time"))["FastVAR"]
    results.pictures = {
        name: replace(pictures, psnr=np.full_like(pictures.psnr, 20.0 + 10 * seconds.get(name, 0.5)))
        for name, pictures in results.pictures.items()
    }
    for taken, decibels in ((0.75, 2.5), (0.9, 4.0), (2.0, 4.0), (0.5, 0.0)):
        results.seconds = {**seconds, rival.name: taken}.__getitem__
        equal = results._at_equal_time(OURS, rival)
        assert equal.psnr.value == pytest.approx(decibels) and equal.seconds == min(taken, 0.9)
    results.seconds = {**seconds, rival.name: 0.4}.__getitem__
    assert results._at_equal_time(OURS, rival) is None


def test_too_few_measurements_make_no_report(tmp_path, pipeline):
    folder = ReportFolder(tmp_path / "report", {})
    folder.start({})
    with pytest.raises(ValueError, match="too few measurements"):
        Results(folder, Configurations(pipeline.schedule(), 2), TINY)


class Likeness:
    """Stands for LPIPS, whose weights are not at hand."""

    def __call__(self, first, second):
        return np.abs(first.astype(float) - second).mean(axis=(1, 2, 3)) / 255


def make_second():
    from tiny_pipeline import make_pipeline

    return make_pipeline(7)


@pytest.fixture(scope="module")
def with_more(pipeline, tmp_path_factory):
    """A report with a cascade and LPIPS; what does not depend on them is left out."""
    tiny = Protocol(**{**TINY.as_json(), "central_blocks": 1, "main_blocks": 1, "rounds": 1})
    second = make_second()
    second.vae = pipeline.vae
    folder = tmp_path_factory.mktemp("more") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_svg", lambda figure: "<svg></svg>")
        patch.setattr(configurations, "VARIANTS", {})
        patch.setattr(configurations, "STRETCHES", (0.75, 1.0))
        patch.setattr(configurations, "RATIOS", (0.5,))
        return reproduce(pipeline, folder, protocol=tiny, cascade=second, lpips=Likeness())


def test_a_model_with_another_tokenizer_enters_no_cascade(pipeline, tmp_path):
    with pytest.raises(ValueError, match="with the same visual tokenizer"):
        reproduce(pipeline, tmp_path / "report", protocol=TINY, cascade=make_second())
    assert not (tmp_path / "report").exists()


def test_a_second_model_enters_a_cascade(with_more):
    numbers = with_more.numbers
    rows = {row["label"]: row for row in numbers["tables"]["others"] if row["label"].startswith("CoDe")}
    assert len(rows) == 3 and {row["kind"] for row in rows.values()} == {"other"}
    late, earlier = (row for label, row in rows.items() if "draws" in label)
    assert late["agreement"]["value"] > earlier["agreement"]["value"], "what is drafted is the dense run's"
    assert late["flops"] > 1.0 and rows["CoDe, the last 2 scales, pruned"]["flops"] < earlier["flops"]
    assert "none was given" not in with_more.page.read_text("utf-8")


def test_lpips_is_shown_where_it_is_measured_and_missed_where_not(finished, with_more):
    assert "LPIPS itself is not measured" in finished[1].page.read_text("utf-8")
    page = with_more.page.read_text("utf-8")
    assert "<th>LPIPS</th>" in page and "LPIPS itself is not measured" not in page
    row = next(row for row in with_more.numbers["tables"]["table 1"] if row["label"] == OURS)
    assert 0.0 < row["lpips"]["value"] < 1.0


def test_kinds_of_plans(pipeline):
    configurations = Configurations(pipeline.schedule(), 8, cascade=True)
    kinds = {label: config.kind for label, config in configurations.table("decomposition")}
    assert list(kinds.values()) == [DENSE, SKIP_ONLY, PRUNE_ONLY, BOTH, PRUNE_ONLY]
    others = {label: config.kind for label, config in configurations.table("others")}
    assert [label for label, kind in others.items() if kind != "other"] == [OURS]
    assert [label for label, _ in configurations.references("others")] == [DENSE, SKIP_ONLY, "prune and skip"]
    assert configurations.references("decomposition") == []


def test_verdicts_of_another_report_stand_beside(finished, pipeline, tmp_path):
    folder, outcome, _, _ = finished
    document = json.loads((folder / "numbers.json").read_text())
    document["run"]["identity"] |= {"model": "another", "size": "8 x 8"}
    first, *_, last = document["claims"]
    document["claims"] = [{**first, "verdict": "held", "evidence": "It did there <so>."}]
    other = tmp_path / "other"
    other.mkdir()
    (other / "numbers.json").write_text(json.dumps(document))
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "raw").iterdir()}
    again = reproduce(pipeline, folder, protocol=TINY, beside=other)
    assert {file.name: file.stat().st_mtime_ns for file in (folder / "raw").iterdir()} == before
    page = again.page.read_text("utf-8")
    assert (
        again.numbers == outcome.numbers and "another, 8 x 8" in page and "It did there &lt;so&gt;." in page
    )
    table = page[page.index('id="regimes"') : page.index('id="coverage"')]
    assert html.escape(first["text"]) in table and html.escape(last["text"]) in table
    assert 'id="regimes"' not in reproduce(pipeline, folder, protocol=TINY).page.read_text("utf-8")


@pytest.mark.parametrize(
    "text",
    [None, "[]", "{", '{"run": {"identity": {}}, "claims": []}', '{"run": 1, "claims": [{}]}', "9" * 5000],
)
def test_a_report_that_cannot_stand_beside(pipeline, tmp_path, text):
    if text is not None:
        (tmp_path / "numbers.json").write_text(text)
    with pytest.raises(ValueError, match="name a report's folder"):
        reproduce(pipeline, tmp_path / "new", protocol=TINY, beside=tmp_path)
    assert not (tmp_path / "new").exists()
