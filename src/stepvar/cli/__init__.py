"""The command line: `stepvar generate | compare | summary | bench | calibrate | reproduce | evaluate | ...`.

torch and the model libraries take seconds to import, so every module here imports them only where a command
needs them: `stepvar --help` answers at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; the entry point of the `stepvar` program."""
    from stepvar.cli.interrupts import install_signal_handlers

    # First of all, so that Ctrl-C is quiet while the rest is still being imported.
    install_signal_handlers()
    from stepvar.allocator import keep_freed_memory
    from stepvar.cli.app import app
    from stepvar.cli.display import escape_unprintable_output
    from stepvar.cli.errors import report

    keep_freed_memory()
    escape_unprintable_output()
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:  # what fails outside a command, such as printing the help
        sys.exit(report(error))
