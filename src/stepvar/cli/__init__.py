"""The command line: `stepvar generate | compare | summary | bench | calibrate | reproduce | evaluate | ...`.

torch and the model libraries take seconds to import, so every module here imports them only where a command
needs them: `stepvar --help` answers at once.
"""

from __future__ import annotations


def main() -> None:
    """Runs the command line; the entry point of the `stepvar` program."""
    from stepvar.cli.interrupts import leave_on_interrupt

    # First of all, so that Ctrl-C is quiet while the rest is still being imported.
    leave_on_interrupt()
    from stepvar.allocator import keep_freed_memory
    from stepvar.cli.app import app
    from stepvar.cli.display import tolerate_any_text

    keep_freed_memory()
    tolerate_any_text()
    app()
