"""The sizes of the published models, against the official tables."""

from __future__ import annotations

import json

import pytest
import torch

from stepvar.generation.schedule import Scale
from stepvar.models.infinity.sizes import SizeTable
from tiny_models import make_transformer

TABLE = SizeTable.published()
BUDGETS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}


@pytest.fixture(scope="module")
def schedules(golden):
    return json.loads((golden / "scale_schedules.json").read_text())


def test_every_schedule_equals_the_official_one(schedules):
    assert list(TABLE.templates) == schedules["_meta"]["template_order"]
    assert dict(TABLE.budgets) == schedules["_meta"]["pn_prefix_lengths"] == BUDGETS
    checked = 0
    for name, by_budget in schedules["schedules"].items():
        for budget, entry in by_budget.items():
            schedule = TABLE.schedule(float(name), budget)
            assert [[scale.height, scale.width] for scale in schedule] == entry["scales_h_w"]
            assert [scale.index for scale in schedule] == list(range(BUDGETS[budget]))
            assert all(scale.frames == 1 for scale in schedule)
            assert schedule.tokens == entry["tokens"]
            assert TABLE.pixels(schedule) == tuple(entry["pixel_h_w"])
            checked += 1
    assert checked == 60


def test_positions_of_all_scales_equal_the_official_ones(golden):
    published = json.loads((golden / "rope2d_positions.json").read_text())["positions"]
    model = make_transformer(depth=1, width=64, heads=2)
    frequencies = 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    for name, scales in published.items():
        for budget, length in (("1M", 13), ("0.06M", 7)):
            schedule = TABLE.schedule(float(name), budget)
            for scale, (rows, columns) in zip(schedule, scales[:length], strict=True):
                places = torch.cartesian_prod(torch.tensor(rows), torch.tensor(columns)).double()
                angles = (places[:, :, None] * frequencies).flatten(1)
                expected = torch.polar(torch.ones_like(angles), angles)
                found = model.rotary(scale, schedule.position_grid)[0]
                torch.testing.assert_close(found.to(torch.complex128), expected, rtol=0, atol=2e-5)


def test_half_positions_are_rounded_to_even():
    model = make_transformer(depth=1)
    scale = Scale(0, 16, 1)
    table = model.rotary(scale, (56, 1))[0]
    angle = torch.atan2(table[1, 0].imag, table[1, 0].real)
    assert float(angle) == pytest.approx(4.0 - 2 * torch.pi), "56 / 16 = 3.5 goes to 4"
    angle = torch.atan2(table[3, 0].imag, table[3, 0].real)
    assert float(angle) == pytest.approx(10.0 - 4 * torch.pi, abs=1e-5), "10.5 goes to 10"


def test_every_published_size_is_found_by_its_pixels(schedules):
    sizes = TABLE.all_pixels()
    assert len(sizes) == 60, "no two schedules draw the same size"
    for (height, width), (template, budget) in sizes.items():
        assert TABLE.at_size(height, width) == TABLE.schedule(template, budget)
        assert schedules["schedules"][str(template)][budget]["pixel_h_w"] == [height, width]
    assert len(TABLE.all_pixels(["1M", "0.25M"])) == 30


def test_a_size_without_a_schedule_names_the_nearest():
    with pytest.raises(ValueError, match=r"draws 1000x1000 pixels .* 1024x1024, 896x1120, 1120x896\."):
        TABLE.at_size(1000, 1000)
    with pytest.raises(ValueError, match=r"draws 256x1024 pixels \(width x height\)"):
        TABLE.at_size(1024, 256)


@pytest.mark.parametrize(
    ("ratio", "template"),
    [(1.0, 1.0), (1.1, 1.0), (16 / 9, 1.75), (9 / 16, 0.571), (1.125, 1.0), (100.0, 3.0), (0.01, 0.333)],
)
def test_other_aspect_ratios_take_the_nearest_template(ratio, template):
    assert TABLE.nearest_template(ratio) == template
    assert TABLE.at_aspect(ratio, "0.25M") == TABLE.schedule(template, "0.25M")


def test_of_two_equally_near_templates_the_first_is_taken():
    table = SizeTable({2.0: ((1, 1), (2, 1)), 1.0: ((1, 1), (2, 2))}, {"only": 2})
    assert table.nearest_template(1.5) == 2.0


def test_unknown_templates_and_budgets_are_refused_in_words():
    with pytest.raises(ValueError, match=r"No schedule has the aspect ratio 0.9; there are 1, 1.25, 0.8"):
        TABLE.schedule(0.9, "1M")
    with pytest.raises(ValueError, match=r"Unknown pixel budget '2M'; known are 0.06M, 0.25M, 0.60M, 1M"):
        TABLE.schedule(1.0, "2M")
    with pytest.raises(ValueError, match=r"Unknown pixel budget '2M'"):
        TABLE.at_aspect(1.0, "2M")


def test_all_budgets_of_a_template_measure_positions_in_the_same_unit():
    for template in TABLE.templates:
        assert len({TABLE.schedule(template, budget).position_grid for budget in BUDGETS}) == 1
        full = TABLE.schedule(template, "1M")
        assert full.position_grid == (full.final.height, full.final.width)


def test_a_small_model_has_its_one_size():
    table = SizeTable.single([(1, 1), (2, 3), (4, 6)], pixels_per_token=8)
    assert list(table.budgets) == ["32x48"]
    assert table.all_pixels() == {(32, 48): (4 / 6, "32x48")}
    assert [str(scale) for scale in table.at_size(32, 48)] == ["1x1", "2x3", "4x6"]
    assert table.at_aspect(4 / 6, "32x48").position_grid == (4, 6)
    with pytest.raises(ValueError, match=r"draws 64x64 pixels .*the nearest are 48x32\."):
        table.at_size(64, 64)
