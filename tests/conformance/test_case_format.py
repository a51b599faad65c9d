"""What a case may say in several ways: where its weights are, what was stored of a tensor, how exactly."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from stepvar.conformance.case import Case, CaseError, Comparison
from stepvar.conformance.report import compare


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("decoded[..., 1:3, :2]", (1, 2, 2, 2)),
        ("[B, 1:2, 0:3, 5], uint8", (1, 1, 3, 5)),
        ("first sample only [:1]", (1, 2, 4, 5)),
        ("[..., ::2, 1:]", (1, 2, 2, 4)),
        ("rows [0:B] conditional, [B:2B] unconditional", (1, 2, 4, 5)),
        ("[B,d,1,Hlast,Wlast]", (1, 2, 4, 5)),
        ("every 2th element of dim 3 starting at 1", (1, 2, 4, 2)),
        ("flattened (C order) then every 7th element", (6,)),
        ("avg_pool2d(final.decoded, 2)", (1, 2, 2, 2)),
    ],
)
def test_a_description_tells_what_was_stored(tmp_path, words, kept):
    full, info = torch.arange(40.0).view(1, 2, 4, 5), {"tensors": {"x": {"meaning": words}}}
    assert Case(tmp_path, info, {"x": torch.zeros(3)}).sliced("x", full).shape == kept
    assert Case(tmp_path, info, {"x": full}).sliced("x", full) is full, "stored whole"


def test_a_cut_is_the_one_described(tmp_path):
    full = torch.arange(40.0).view(1, 2, 4, 5)
    case = Case(tmp_path, {"tensors": {"x": {"meaning": "decoded[..., 1:3, 2:4]"}}}, {})
    assert torch.equal(case.sliced("x", full), full[:, :, 1:3, 2:4])


@pytest.mark.parametrize(
    ("weights", "part", "found"),
    [
        (None, "transformer", "case/transformer.safetensors"),
        ("../tiny (transformer.safetensors, vae.safetensors)", "transformer", "tiny/transformer.safetensors"),
        ("../tiny/vae.safetensors (stored bf16)", "vae", "tiny/vae.safetensors"),
        ("../tiny/vae.safetensors (stored bf16)", "transformer", "tiny/transformer.safetensors"),
        ("../tiny/other_vae.safetensors", "vae", "tiny/other_vae.safetensors"),
        ("transformer.safetensors, vae.safetensors", "vae", "case/vae.safetensors"),
        ({"vae": "../tiny/b.safetensors holds a VAE"}, "vae", "tiny/b.safetensors"),
        ({"vae": {"file": "../tiny/b.safetensors", "seed": 3}}, "vae", "tiny/b.safetensors"),
        ({"file": "c.safetensors", "dtype": "float8"}, "vae", "case/c.safetensors"),
        ({"dtype": "float8"}, "vae", "case/vae.safetensors"),
    ],
)
def test_weights_are_found_however_they_are_named(tmp_path, weights, part, found):
    for folder, names in (
        ("tiny", ("transformer", "vae", "other_vae", "b")),
        ("case", ("vae", "transformer")),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.safetensors").touch()
    case = Case(tmp_path / "case", {"weights": weights} if weights else {}, {})
    place = case.weights_file(part, f"{part}.safetensors")
    assert place.resolve() == (tmp_path / found).resolve()


def test_weights_of_few_bits_are_read_exactly(tmp_path):
    values = torch.tensor([0.5, -1.75, 3.0])
    for dtype in (torch.float8_e4m3fn, torch.float16, torch.bfloat16):
        save_file({"weight": values.to(dtype), "count": torch.tensor([3])}, tmp_path / "vae.safetensors")
        state = Case(tmp_path, {}, {}).state("vae", "vae.safetensors")
        assert state["weight"].dtype == torch.float32 and torch.equal(state["weight"], values)
        assert state["count"].dtype == torch.int64


@pytest.mark.parametrize("named", ["https://github.com/a/b.git", "a/b @ 12ab", "a/b (folder x/)"])
def test_the_repository_is_told(tmp_path, named):
    assert Case(tmp_path, {"official_repo": named}, {}).repository == "a/b"
    assert Case(tmp_path, {"official": {"repo": named}}, {}).repository == "a/b"


def test_comparison_of_nothing_of_masked_logits_and_of_what_was_rounded():
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)).passed
    masked = torch.tensor([1.0, -torch.inf])
    assert compare(masked, masked).passed
    assert not compare(torch.tensor([1.0, 2.0]), masked).passed
    assert not compare(torch.tensor([torch.nan]), torch.tensor([torch.nan])).passed
    exact = torch.tensor([7.0013, 2.0])
    assert compare(exact, exact.half()).passed
    assert not compare(exact + torch.tensor([0.0, 3e-3]), exact.half()).passed
    assert not compare(exact, exact.half().float(), tolerance=1e-5).passed, (
        "what is stored as it is has no slack"
    )


def test_bits_that_were_given_are_an_input(tmp_path):
    tensors = {"gt.03.bits": torch.ones(2, 4, dtype=torch.uint8), "s03.logits_cfg": torch.zeros(8)}
    comparison = Comparison(Case(tmp_path, {}, tensors))
    assert comparison.given(2, 8) is None and comparison.given(3, 6) is None
    assert torch.equal(comparison.given(3, 8), tensors["gt.03.bits"])
    assert comparison.finish().inputs == ["gt.03.bits"]
    assert comparison.finish().uncompared == ["s03.logits_cfg"]


def test_what_is_stored_in_part_is_not_gone_on_with(tmp_path):
    comparison = Comparison(Case(tmp_path, {}, {"whole": torch.ones(4), "part": torch.ones(2)}))
    computed = torch.zeros(2, 2)
    assert torch.equal(comparison.replayed("whole", computed), torch.ones(2, 2))
    assert comparison.replayed("part", computed) is computed
    assert comparison.replayed("neither", computed) is computed


def test_a_description_nested_without_end_is_refused_in_words(tmp_path):
    (tmp_path / "case.json").write_text("[" * 100_000)
    save_file({"x": torch.zeros(1)}, tmp_path / "tensors.safetensors")
    with pytest.raises(CaseError, match="not a readable golden case"):
        Case.load(tmp_path)


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{", b"\x02" + bytes(7) + b"{}"]
)
def test_damaged_headers_are_refused_in_words(tmp_path, header):
    (tmp_path / "case.json").write_text(json.dumps({"official_repo": "a/b"}))
    (tmp_path / "tensors.safetensors").write_bytes(header)
    try:
        assert Case.load(tmp_path).tensors == {}, "a file of no tensors is readable"
    except CaseError as error:
        assert "tensors.safetensors' cannot be read" in str(error)


def test_a_name_that_ends_in_half_holds_every_second_row_and_column(tmp_path):
    full = torch.rand(1, 3, 6, 8)
    pictures = (full.permute(0, 2, 3, 1) * 255).to(torch.uint8)
    tensors = {"decoded_half": full[..., ::2, ::2].clone(), "image_uint8_half": pictures[:, ::2, ::2].clone()}
    comparison = Comparison(Case(tmp_path, {}, tensors))
    comparison.check("decoded", full)
    comparison.check("image_uint8", pictures)
    report = comparison.finish()
    assert report.passed and report.tensors.keys() == tensors.keys()
    comparison.check("decoded", full + 1.0)
    assert not comparison.finish().passed
