"""``samplerpool doctor``: whether this machine can run pools, and what to do where it cannot."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from samplerpool.cli.main import EXIT_FAILED

if TYPE_CHECKING:
    from samplerpool.pool.diagnosis import Finding

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failure": ("✗", "red")}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="The findings for programs to read.")
def command(as_json: bool) -> int:
    """Check this machine: packages, devices, memory, folders, and what dead pools left behind.

    Changes nothing. The exit code is 1 if something will not work, and 0 if there are only warnings.
    """
    from samplerpool.pool.diagnosis import diagnose
    from samplerpool.pool.machine import look

    findings = diagnose(look())
    failed = any(finding.level == "failure" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _show(findings)
    return EXIT_FAILED if failed else 0


def _show(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark, colour = _MARKS[finding.level]
        click.echo(f"{click.style(mark, fg=colour)} {finding.check:{width}}  {finding.text}")
        if finding.advice:
            click.echo(f"  {'':{width}}  → {finding.advice}")
    click.echo(_summary(findings))


def _summary(findings: list[Finding]) -> str:
    failures = sum(finding.level == "failure" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if failures:
        return f"Pools will not run here before this is mended: {failures} of {len(findings)} findings."
    if warnings:
        return "Pools can run here; the lines with an arrow say what could be better."
    return "All is well."
