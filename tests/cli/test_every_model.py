"""Every model on the command line: convert, generate, save, generate again; the same picture throughout."""

from __future__ import annotations

import shutil

import pytest

import stepvar
from tiny_pipelines import MAKERS

ENDINGS = {"infinity": [""], "infinitystar": [""], "hart": [""], "switti": ["", "_2"], "var": []}
"""Names of a model's text encoders and tokenizers end so."""


SETTINGS = {"hart": ["--top-k", 20, "--top-p", 0, "--smooth"]}
"""Settings of a tiny pipeline that are not the published ones, which a converted folder has."""


@pytest.mark.parametrize("name", ENDINGS)
def test_a_converted_model_draws_what_it_drew_before(run, name, tmp_path):
    make, subjects, _kind = MAKERS[name]
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "whole")
    encoders = []
    for ending in ENDINGS[name]:
        encoders.append(tmp_path / f"encoder{ending}")
        shutil.copytree(tmp_path / "whole" / f"text_encoder{ending}", encoders[-1])
        shutil.copytree(tmp_path / "whole" / f"tokenizer{ending}", encoders[-1], dirs_exist_ok=True)
    texts = [word for encoder in encoders for word in ("--text-encoder", encoder)]
    converted = run("convert", "whole/transformer", "whole/vae", "converted", *texts)
    assert converted.code == 0, converted.stderr
    length = ["--seconds", 0] if pipeline.draws_videos else []

    def drawn(model: str) -> bytes:
        out = f"{model}.png"
        settings = ["--guidance", 1.5, "--seed", 3, "-o", out, "--json", *SETTINGS.get(name, [])]
        result = run("generate", subjects[0], "--model", model, *length, *settings)
        assert result.code == 0, result.stderr
        return picture(tmp_path / out)

    whole = drawn("whole")
    assert drawn("converted") == whole
    stepvar.load(tmp_path / "converted").save_pretrained(tmp_path / "again")
    assert drawn("again") == whole


def picture(file) -> bytes:
    """Pixels of a picture, or of the first frame of a video."""
    from PIL import Image

    with Image.open(file) as opened:
        return opened.convert("RGB").tobytes()
