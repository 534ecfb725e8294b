"""`doctor`: what is installed, what is used, whether the store is whole, and how to mend what is not.

Knows nothing about what is checked: that is `hybridqa.doctor`. Exit code 1 when there is a problem.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hybridqa.cli import output
from hybridqa.cli.context import PARTIAL, AsJson, command, options, quieten

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@command
def doctor(
    context: typer.Context,
    mend: Annotated[bool, typer.Option("--mend", help="Make damaged full-text indexes anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the installation, the models and the store, and say how to mend what is wrong."""
    given = options(context)
    quieten(given.debug)
    from hybridqa.doctor import examine

    with output.err().status("looking…", spinner="dots"):
        report = examine(given.store, given.name, mend=mend)
    if as_json:
        output.say_json(report.as_json())
    else:
        for finding in report.findings:
            output.say(f"{finding.level:<8} {finding.subject:<12} {finding.text}", style=STYLES[finding.level])
            if finding.mend:
                output.say(f"{'':<21} → {finding.mend}")
        problems = sum(finding.level == "problem" for finding in report.findings)
        output.say(f"\n{problems} problem{'s' if problems != 1 else ''} found." if problems else "\nAll is well.")
    if not report.ok:
        raise typer.Exit(PARTIAL)
