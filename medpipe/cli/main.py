"""The `medpipe` command: verbs by name, each in a file of its own.

No verb's module is imported before it is used, and none of them imports torch
to list, plan or validate: `medpipe ls` answers in a fraction of a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from medpipe import __version__
from medpipe.errors import MedpipeError

__all__ = ["EXIT_INTERRUPTED", "EXIT_USAGE", "VERBS", "app", "invoke", "main"]

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = App(
    name="medpipe",
    version=__version__,
    help="""Run named medical imaging workflows, from DICOM or NIfTI to a visual report.

First steps, with simulated patients:

    medpipe data demo hospital/
    medpipe ls
    medpipe run dicom-import hospital/cases.csv out/

and open `out/index.html`. Run the same command again to resume: what is done
is never done twice.""",
    help_format="markdown",
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
)

VERBS = (
    "ls", "show", "plan", "validate", "run", "report", "doctor", "manifest", "data", "bids",
    "outcome-train", "synthesis-evaluate",
)  # fmt: skip
_MODULES = {"outcome-train": "outcome", "synthesis-evaluate": "synthesis"}
_GROUPS = ("manifest", "data")  # verbs with verbs of their own
for _verb in VERBS:
    _name = "app" if _verb in _GROUPS else _verb.replace("-", "_")
    app.command(f"medpipe.cli.{_MODULES.get(_verb, _verb)}:{_name}", name=_verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 all well; 2 the command, a manifest or a workflow is wrong;
    3 some cases failed; 4 all cases failed; 130 interrupted.
    """
    sys.exit(invoke(sys.argv[1:] if arguments is None else list(arguments)))


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    if not arguments or arguments[0] in app.help_flags:
        for verb in VERBS:
            app[verb]  # load it, for its one line in the list
    try:
        code = app(
            arguments,
            exit_on_error=False,
            print_error=True,
            result_action="return_value",
        )
        # Flush inside the try, so that a closed pipe is caught here.
        sys.stdout.flush()
    except CycloptsError:
        return EXIT_USAGE
    except MedpipeError as error:
        from medpipe.cli.output import print_error

        print_error(error)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `medpipe ls | head`: not an error. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0
