"""Model cards: the README.md of a saved folder, as the Hugging Face hub reads it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CARD = "README.md"


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        model: Name of the model, "Infinity" for example.
        repository: The official code and weights it is based on, owner/name.
        license: Of the published weights, as the hub names it; None where nothing is stated.
        task: What the pipeline does, as the hub names it.
        pipeline: Name of the pipeline class.
        origin: What the folder was made from.
    """

    model: str
    repository: str
    license: str | None
    task: str
    pipeline: str
    origin: str


def write_card(folder: Path, facts: CardFacts) -> None:
    """Writes the card of a folder; one that is there already stays, since its author knows more."""
    file = folder / CARD
    if file.exists():
        return
    license_line = facts.license or "other"
    stated = (
        f"The licence of the published weights is {facts.license}."
        if facts.license
        else "The published weights state no licence: ask their authors before you use them."
    )
    file.write_text(
        f"""---
library_name: stepvar
pipeline_tag: {facts.task}
license: {license_line}
base_model: {facts.repository}
tags:
- stepvar
- diffusers
- next-scale-prediction
---

# {facts.model}

A folder of the pipeline `{facts.pipeline}` of stepvar, written by stepvar {_own_version()} from
{_origin(facts.origin)}. Unless their owner says otherwise here, the weights are those of
[{facts.repository}](https://github.com/{facts.repository}), or were trained from them. {stated}

```python
import stepvar

pipeline = stepvar.load("path or owner/name of this folder")
```

With diffusers alone, which runs the two lines of `pipeline.py` (stepvar must be installed):

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
```
""",
        "utf-8",
    )


def _own_version() -> str:
    try:
        return version("stepvar")
    except PackageNotFoundError:
        return "(not installed)"


def _origin(origin: str) -> str:
    """Where a folder comes from, without the folders of somebody's machine."""
    return Path(origin).name if Path(origin).is_absolute() or origin.startswith((".", "~")) else origin
