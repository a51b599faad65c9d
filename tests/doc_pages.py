"""The commands and code of a documentation page, run in order as a reader would.

    python tests/doc_pages.py docs/ways/score.md docs/ways/cpu.md

runs every block of Python and every `stepvar` command of a page in an empty folder, with the embedded model.
Each page has a process of its own; what all of them import is imported once.
A block whose first line is a comment that begins with "needs" or "takes" is left out: it needs published
weights, or minutes. A block with a file's name after its language is saved under that name instead of run.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
WAYS = sorted([ROOT / "docs" / "quickstart.md", *(ROOT / "docs" / "ways").glob("*.md")])

SHARED = ("stepvar.models.infinity.pipeline", "stepvar.models.infinitystar.pipeline", "peft")
"""Modules that most pages import."""

_BLOCK = re.compile(r"^```(\w*)[ \t]*(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:stepvar [a-z-]+|python \S+\.py)(?:\s[^`]*)?)`")
_NOT_HERE = re.compile(r"#\s*(needs|takes)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the file it is saved as (or ""), its text."""

    language: str
    file: str
    text: str

    @property
    def runs_here(self) -> bool:
        return not _NOT_HERE.match(self.text)

    def commands(self) -> Iterator[str]:
        """Its shell lines, continued ones joined, comments left out."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line.strip()


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _BLOCK.findall(page.read_text("utf-8"))]


def stepvar_arguments(line: str) -> list[str] | None:
    """Arguments of a line that calls `stepvar`; None for other lines."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    if not words or words[0] != "stepvar":
        return None
    return [word for word in words[1:] if word != "&"]


def inline_commands(page: Path) -> list[str]:
    """Commands in the running text: `stepvar bench --pruning prune`, `python benchmarks/dense.py`."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    return [found.replace("\n", " ") for found in _INLINE.findall(text)]


def script_of(line: str) -> tuple[Path, list[str]] | None:
    """The script of ours that a line runs, and its options; None for other lines."""
    words = shlex.split(line, comments=True)
    names = [word for word in words if re.fullmatch(r"(examples|benchmarks|tests)/[\w/]+\.py", word)]
    if not names or not {"python", "python3", "accelerate", "torchrun"} & set(words):
        return None
    after = words[words.index(names[0]) + 1 :]
    return ROOT / names[0], [word.partition("=")[0] for word in after if re.match(r"--?[a-z]", word)]


def run_page(page: Path) -> int:
    """Runs a page in the current folder; returns how many blocks ran.

    Raises:
        SystemExit: Naming the first command that fails.
    """
    from fuzz_arguments import run_in_process

    sys.path.insert(0, str(Path.cwd()))
    names: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for block in blocks(page):
        if not block.runs_here or block.language not in ("sh", "python"):
            continue
        count += 1
        if block.file:
            Path(block.file).write_text(block.text, "utf-8")
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        else:
            for line in block.commands():
                arguments = stepvar_arguments(line)
                if arguments is None:
                    subprocess.run(["bash", "-c", line], check=True)
                    continue
                code, _stdout, stderr = run_in_process(arguments)
                if code:
                    sys.exit(f"{line}\n{stderr}")
    return count


def run_in_folder(page: Path) -> None:
    """Runs a page in an empty folder and says how many blocks that were."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        count = run_page(page)
        os.chdir(ROOT)
    sys.stdout.write(f"{page.relative_to(ROOT)}: {count} blocks\n")


def main() -> None:
    for name in SHARED:
        importlib.import_module(name)
    failed = False
    for page in sys.argv[1:]:
        # Forked, so that the imports are there already, and nothing that a page does is there for the next.
        process = multiprocessing.get_context("fork").Process(
            target=run_in_folder, args=(Path(page).resolve(),)
        )
        process.start()
        process.join()
        failed = failed or process.exitcode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
