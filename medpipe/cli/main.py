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

__all__ = ["EXIT_ALL_FAILED", "EXIT_SOME_FAILED", "EXIT_USAGE", "app", "main"]

EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_ALL_FAILED = 4
EXIT_INTERRUPTED = 130

app = App(
    name="medpipe",
    version=__version__,
    help="""Run named medical imaging workflows, from DICOM or NIfTI to a visual report.

First steps, with simulated patients:

    medpipe data demo hospital/
    medpipe ls
    medpipe run dicom-import hospital/cases.csv out/

and open out/index.html. Run the same command again to resume: what is done is never done twice.""",
    help_format="plaintext",
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
)

app.command("medpipe.cli.ls:ls", name="ls", help="List the workflows, or the steps.")
app.command("medpipe.cli.show:show", name="show", help="Explain one workflow or one step.")
app.command("medpipe.cli.validate:validate", name="validate", help="Check a manifest or workflow.")
app.command("medpipe.cli.plan:plan", name="plan", help="Say what a run would do; do nothing.")
app.command("medpipe.cli.run:run", name="run", help="Run a workflow over a case or a manifest.")
app.command("medpipe.cli.report:report", name="report", help="Build the HTML report of a run.")
app.command("medpipe.cli.doctor:doctor", name="doctor", help="Check this machine, or a run folder.")
app.command("medpipe.cli.manifest:app", name="manifest", help="Make and check lists of cases.")
app.command("medpipe.cli.data:app", name="data", help="Make simulated patients with known truth.")
app.command("medpipe.cli.bids:bids", name="bids", help="Run a workflow as a BIDS app.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 all well; 2 the command, a manifest or a workflow is wrong;
    3 some cases failed; 4 all cases failed; 130 interrupted.
    """
    sys.exit(invoke(sys.argv[1:] if arguments is None else list(arguments)))


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
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
