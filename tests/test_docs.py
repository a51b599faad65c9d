"""Documentation: its links lead somewhere, its commands exist, and what can run here runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import typer

from doc_pages import PAGES, ROOT, WAYS, blocks, inline_commands, script_of, stepvar_arguments
from stepvar.cli.app import app

_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    links = [link for link in _LINK.findall(page.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_have_the_options_they_are_given(page):
    for block in blocks(page):
        for line in () if block.language == "python" else block.commands():
            arguments = stepvar_arguments(line)
            if arguments:
                parse(arguments, line)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_in_the_text_have_the_options_they_are_given(page):
    for line in inline_commands(page):
        arguments = stepvar_arguments(line)
        options = [word.partition("=")[0] for word in arguments or () if word.startswith("--")]
        command, known = command_of(arguments or [])
        assert set(options) <= known, f"{line}: {command} has no {set(options) - known}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_scripts_on_pages_have_the_options_they_are_given(page):
    in_blocks = [line for block in blocks(page) if block.language != "python" for line in block.commands()]
    for line in (*in_blocks, *inline_commands(page)):
        script, options = script_of(line) or (None, [])
        if script is not None:
            source = script.read_text("utf-8")
            assert [name for name in options if f'"{name}"' not in source] == [], line


def command_of(words):
    """The command that words begin with, and all its options."""
    command, rest = typer.main.get_command(app), list(words)
    while getattr(command, "commands", None) and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    found = (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    return command.name, {*found, "--help", "--version"}


def parse(arguments, line):
    """Parses a command line without running it; an unknown command or option is an error."""
    command = typer.main.get_command(app)
    while getattr(command, "commands", None) and arguments:
        assert arguments[0] in command.commands, line
        command = command.commands[arguments.pop(0)]
    context = command.context_class(command, info_name="stepvar")
    command.make_parser(context).parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_python_on_pages_compiles_and_names_what_exists(page):
    import stepvar

    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(page), "exec")
            for name in re.findall(r"\bstepvar\.([A-Za-z_]+)\(", block.text):
                assert hasattr(stepvar, name), name


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_and_names_on_a_page_exist(page):
    text = (ROOT / page).read_text("utf-8")
    package = ROOT / "src" / "stepvar"
    source = "\n".join(path.read_text("utf-8") for path in package.rglob("*.py"))
    quoted = {name.strip() for name in re.findall(r"`([^`\n]+)`", text)}
    files = {part for name in quoted for part in re.findall(r"[\w*/]+\.py\b", name)}
    places = (ROOT, package, *(folder for folder in package.rglob("*") if folder.is_dir()))
    assert [file for file in files if not any(any(place.glob(file)) for place in places)] == []
    names = {name.split(".")[-1] for name in quoted if re.fullmatch(r"[A-Za-z_]+(\.[A-Za-z_]+)*", name)}
    names -= {"py", "toml", "yml", "NAMEPipeline"}
    assert [name for name in names if not re.search(rf"\b{name}\b", source)] == []


@pytest.fixture(scope="module")
def run_pages():
    """What running all pages printed, and what went wrong."""
    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "doc_pages.py"), *map(str, WAYS)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first page waits for all
@pytest.mark.parametrize("page", names(WAYS))
def test_a_page_runs(page, run_pages):
    [count] = re.findall(rf"^{page}: (\d+) blocks$", run_pages.stdout, re.MULTILINE) or [None]
    assert count is not None, run_pages.stderr[-4000:]
    assert (int(count) > 0) == any(
        block.runs_here and block.language in ("sh", "python") for block in blocks(ROOT / page)
    )


def test_every_way_in_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in WAYS if page.relative_to(ROOT).as_posix() not in readme] == []
    assert readme.count("\n") <= 120
