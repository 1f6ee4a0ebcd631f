"""Plans and statuses as plain text; ``make`` and the command line print the same."""

from __future__ import annotations

from driver_patch.install.plan import Plan
from driver_patch.install.status import Status


def plan_lines(plan: Plan) -> list[str]:
    """Return a plan as lines: what was found, what will be done, what to know, what is wrong."""
    lines = [plan.title, *_rows(plan.facts)]
    if plan.nothing_to_do:
        lines += ["", "Nothing to do."]
    elif plan.steps:
        lines += ["", "Steps:", *(f"  {n}. {step}" for n, step in enumerate(plan.steps, 1))]
    lines += _section("Note:", plan.notes)
    lines += _section("Refused:", plan.refusals)
    return lines


def done_lines(plan: Plan, done: Plan) -> list[str]:
    """Return what is to be said after ``plan`` was shown and carried out as ``done``."""
    news = [note for note in done.notes if note not in plan.notes]
    return ([] if done.nothing_to_do else ["", "Done."]) + [f"  - {note}" for note in news]


def status_lines(status: Status) -> list[str]:
    """Return a status as lines."""
    lines = _rows(status.rows())
    lines += _section("Needs attention:", list(status.problems))
    lines += _section("Next:", list(status.advice))
    return lines


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {value}" for name, value in rows]


def _section(title: str, items: list[str]) -> list[str]:
    return ["", title, *(f"  - {item}" for item in items)] if items else []
