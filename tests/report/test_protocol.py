"""Counts that fit a time, and the folder that holds one run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from stepvar.report.folder import ReportFolder
from stepvar.report.protocol import LARGEST_CENTRAL, MachineSpeed, Protocol, protocol_for

MACHINE = MachineSpeed(
    single=0.53,
    batched=0.45,
    measuring=0.04,
    costs={"central": 4.3, "main": 8.0, "ablation": 27.0},
    counts={"central": 7, "main": 14, "ablation": 38},
    scales=10,
)
"""The embedded model on two cores, roughly."""


def spent(protocol, speed=MACHINE):
    """Seconds that a protocol takes by the numbers it was made from."""
    pictures = sum(protocol.batch * protocol.blocks(tier) * speed.picture(tier) for tier in speed.costs)
    diversity = protocol.diversity_prompts * protocol.diversity_seeds * speed.seeds
    singles = (protocol.rounds + protocol.gallery + 0.5) * speed.round
    return pictures + singles + protocol.analysis_pictures * speed.analysis + diversity


@pytest.mark.parametrize("minutes", [20, 55])
def test_a_protocol_fits_its_time(minutes):
    assert 0.8 * minutes < spent(protocol_for(minutes, MACHINE)) / 60 < 1.02 * minutes
    assert spent(protocol_for(10 * minutes, MACHINE)) / 60 < 10 * minutes


def test_an_hour_on_a_usual_machine_is_enough_for_500_prompts():
    assert protocol_for(55, MACHINE).pictures >= 500
    assert protocol_for(100_000, MACHINE).pictures == LARGEST_CENTRAL


def test_a_miniature_measures_everything_once():
    protocol = protocol_for(2, MACHINE)
    assert (protocol.central_blocks, protocol.main_blocks, protocol.ablation_blocks) == (1, 1, 1)
    assert spent(protocol) < 180


def test_a_slow_machine_gets_the_least_there_is():
    protocol = protocol_for(2, replace(MACHINE, single=30.0, batched=20.0, measuring=3.0))
    counts = protocol.batch, protocol.central_blocks, protocol.ablation_blocks, protocol.rounds
    assert counts == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"diversity_seeds": 1}, "diversity_seeds is 1"),
        (
            {"main_blocks": 2, "ablation_blocks": 3},
            "75 blocks of central .* 2 of main ones and 3 of ablations",
        ),
    ],
)
def test_impossible_counts_are_refused(counts, words):
    with pytest.raises(ValueError, match=words):
        Protocol(**counts)


IDENTITY = {"weights": "abc", "machine": {"threads": 2}, "minutes": 55.0}


def test_a_folder_goes_on_with_its_own_run(tmp_path):
    folder = ReportFolder(tmp_path / "report", IDENTITY)
    assert folder.run is None
    folder.start({"batch": 8})
    folder.save("costs", {"dense": 1})
    again = ReportFolder(tmp_path / "report", IDENTITY)
    assert again.run["protocol"] == {"batch": 8}
    assert again.load("costs") == {"dense": 1} and again.load("absent") is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights": "xyz"}, "another run .weights: abc, now xyz"),
        ({"machine": {"threads": 4}}, "another run .machine"),
        ({"minutes": 2.0}, "another run .minutes: 55.0, now 2.0"),
        ({"new": 1}, "another run .new: nothing, now 1"),
    ],
)
def test_another_run_is_refused(tmp_path, changed, words):
    ReportFolder(tmp_path / "report", IDENTITY).start({})
    with pytest.raises(ValueError, match=words):
        ReportFolder(tmp_path / "report", {**IDENTITY, **changed})


def test_other_files_are_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"other files .thesis.txt. and no report"):
        ReportFolder(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match="is a file"):
        ReportFolder(tmp_path / "thesis.txt", IDENTITY)
    with pytest.raises(ValueError, match="no folder"):
        ReportFolder(tmp_path / "a" / "b", IDENTITY)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": {}}', '{"identity": {}, "format": 99}'])
def test_a_damaged_run_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"damaged|another version"):
        ReportFolder(tmp_path, IDENTITY)


def test_numbers_are_whole_or_absent(tmp_path):
    folder = ReportFolder(tmp_path / "report", IDENTITY)
    folder.start({})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.save("bad", {"psnr": float("nan")})
    assert folder.load("bad") is None
    (tmp_path / "report" / "raw" / "torn.json").write_text('{"psnr": [1.0, ')
    assert folder.load("torn") is None
    stale = tmp_path / "report" / "raw" / ".stepvar-killed.partial"
    stale.mkdir()
    (stale / "x.json").write_text("{")
    folder.save("good", {"psnr": 1.0})
    (tmp_path / "report" / "raw" / "good.json").unlink()
    assert sorted(file.name for file in (tmp_path / "report" / "raw").iterdir()) == ["torn.json"]
    assert json.loads((tmp_path / "report" / "run.json").read_text())["identity"] == IDENTITY
