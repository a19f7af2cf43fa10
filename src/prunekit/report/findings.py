"""Findings of a study: sentences from its numbers, which claim nothing that the spreads do not carry."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup, escape

from prunekit.report.best import (
    SAME_RATIO,
    Best,
    best_table,
    max_compression_within_tolerance,
    point_at,
)
from prunekit.report.format import Primary, names, overlap, primary_of, times
from prunekit.report.points import Point, dense_of, methods_of, points_of, removes_nothing
from prunekit.report.read_tables import check_tables, read_results
from prunekit.study_files import RESULTS_CSV, STUDY_JSON, StudyFile, read_study

# Control characters that no name can hold once it is cleaned, so that a name is always found whole.
_OPEN, _CLOSE = "\x02", "\x03"
_NAME = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")


def named(method: str) -> str:
    """A method's name, marked as one within a sentence."""
    return f"{_OPEN}{method.replace(_OPEN, '').replace(_CLOSE, '')}{_CLOSE}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence; a 'caution' limits what the others mean. ``marked`` holds names marked by ``named``."""

    kind: Literal["result", "caution"]
    marked: str

    @property
    def text(self) -> str:
        """The plain sentence."""
        return _NAME.sub(r"\1", self.marked)

    @property
    def markup(self) -> Markup:
        """The sentence for a page, its names in bold."""
        return Markup(_NAME.sub(r"<b>\1</b>", str(escape(self.marked))))


def findings(study: StudyFile, points: Sequence[Point], primary: Primary) -> list[Finding]:
    """All findings, results first; plain text that a template must escape."""
    bests = best_table(points, primary)
    results = [
        _dense(study, points, primary),
        *_max_compressions(study, points, primary),
        *_leads(bests, primary),
        *_against_random(study, points, bests, primary),
    ]
    cautions = [
        *_few_seeds(points),
        *_uneven(points),
        *_diverged(points, primary),
        *_absent(study, points),
    ]
    return [*(Finding("result", text) for text in results), *(Finding("caution", text) for text in cautions)]


def compared(study: StudyFile, points: Sequence[Point]) -> list[str]:
    """The methods that prune and are no control."""
    random = study.controls.random
    return [m for m in methods_of(points) if m != random and not removes_nothing(points, m)]


def _list(methods: Sequence[str]) -> str:
    return names([named(method) for method in methods])


def _dense(study: StudyFile, points: Sequence[Point], primary: Primary) -> str:
    dense = dense_of(points)
    metric = dense.values[primary.test]
    seeds = "1 seed" if dense.seeds == 1 else f"{dense.seeds} seeds"
    text = f"The dense network has a {primary.name} of {primary.show_spread(metric)} ({seeds})"
    label = study.controls.dense_trained_as_long
    longer = [point for point in points if point.method == label]
    if not longer:
        return text + "."
    trained = longer[-1].values[primary.test]
    text += f"; trained for as long as the pruned ones, with nothing removed, {primary.show_spread(trained)}"
    if overlap(trained, metric) is False:
        better = primary.better(trained.mean, metric.mean) > 0
        return text + f", so longer training alone {'helps' if better else 'hurts'}."
    return text + "."


def _max_compressions(study: StudyFile, points: Sequence[Point], primary: Primary) -> list[str]:
    """How far methods go before they lose more than the tolerance."""
    methods = compared(study, points)
    if not methods:
        return []
    margin = primary.format_tolerance(dense_of(points).values[primary.test])
    reached = {m: point for m in methods if (point := max_compression_within_tolerance(points, m, primary))}
    if not reached:
        return [f"No method stays within {margin} of dense at any compression that was tried."]
    order = sorted(reached, key=lambda m: -reached[m].ratio)
    top = reached[order[0]].ratio
    first = [m for m in order if reached[m].ratio * SAME_RATIO >= top]  # equal schedules end at one ratio
    verb = "holds" if len(first) == 1 else "hold"
    text = f"{_list(first)} {verb} out furthest: still within {margin} of dense at {times(top)}"
    if len(methods) == 1:
        text = f"{_list(first)} is still within {margin} of dense at {times(top)}"
    rest = order[len(first) : len(first) + 3]
    if rest:
        text += "; then " + names([f"{named(m)} at {times(reached[m].ratio)}" for m in rest])
    found = [text + "."]
    never = [m for m in methods if m not in reached]
    if never:
        verb = "loses" if len(never) == 1 else "lose"
        found.append(f"{_list(never)} {verb} more than that at every compression that was tried.")
    return found


def _leads(bests: Sequence[Best], primary: Primary) -> list[str]:
    """A sentence for each method that is ahead of all others somewhere, one for ratios without winner."""
    ahead: dict[str, list[str]] = {}
    for best in bests:
        if best.verdict == "ahead" and best.runner_up is not None:
            mine, theirs = best.test(primary).mean, best.runner_up.values[primary.test].mean
            gap = primary.gap(mine - theirs, theirs)
            ahead.setdefault(best.point.method, []).append(f"{times(best.asked)} (by {gap})")
    found = [
        f"{named(m)} is ahead of every other method measured there, beyond the spread, at {names(ratios)}."
        for m, ratios in ahead.items()
    ]
    close = [times(best.asked) for best in bests if best.verdict == "within the spread"]
    if close:
        found.append(
            f"At {names(close)} the best methods lie within the spread of each other: no winner there."
        )
    for best in bests:
        if best.verdict == "behind on test":
            verb = "is" if len(best.rivals) == 1 else "are"
            found.append(
                f"At {times(best.asked)} validation chooses {named(best.point.method)}, but on the test set "
                f"{_list(best.rivals)} {verb} better, beyond the spread."
            )
    return found


def _against_random(
    study: StudyFile, points: Sequence[Point], bests: Sequence[Best], primary: Primary
) -> list[str]:
    """Whether the methods beat removal at random, at each asked ratio where both have points.

    Only those that are retrained as the control is: a control that was trained longer beats many a choice.
    """
    label = study.controls.random
    if label is None:
        return []
    alike = [m for m in compared(study, points) if _retraining(study, m) == _retraining(study, label)]
    everywhere: list[str] = []
    lost: dict[str, list[str]] = {}
    for best in bests:
        control = point_at(points, label, best.asked, primary)
        found = (point_at(points, m, best.asked, primary) for m in alike)
        there = [point for point in found if point is not None]
        if control is None or not there or control.values[primary.test].sd is None:
            continue
        failed = [point.method for point in there if not _beats(point, control, primary)]
        for method in failed:
            lost.setdefault(method, []).append(times(best.asked))
        if not failed:
            everywhere.append(times(best.asked))
    if not everywhere and not lost:
        return []
    every = (
        "every method" if len(alike) == len(compared(study, points)) else "every method retrained as it is"
    )
    parts = [f"beaten beyond the spread by {every} at {names(everywhere)}"] if everywhere else []
    together: dict[tuple[str, ...], list[str]] = {}
    for method, ratios in lost.items():
        together.setdefault(tuple(ratios), []).append(method)
    parts += [f"not beaten by {_list(those)} at {names(list(ratios))}" for ratios, those in together.items()]
    return [f"Removal at random is {'; '.join(parts)}."]


def _retraining(study: StudyFile, method: str) -> list[str]:
    """How a method's networks are trained after a step, whatever values that starts from; one per cell."""
    note = study.methods.get(method)
    recipes = [] if note is None else note.recipe if isinstance(note.recipe, list) else [note.recipe]
    found = [(recipe.get("retrain") or {}, recipe.get("retrain_every", 1)) for recipe in recipes]
    return sorted(
        {
            json.dumps([part.get("training") if isinstance(part, dict) else part, every], sort_keys=True)
            for part, every in found
        }
    )


def _beats(point: Point, control: Point, primary: Primary) -> bool:
    mine, theirs = point.values[primary.test], control.values[primary.test]
    return overlap(mine, theirs) is False and primary.better(mine.mean, theirs.mean) > 0


def _few_seeds(points: Sequence[Point]) -> list[str]:
    most = max(point.seeds for point in points)
    if most == 1:
        return ["There is one seed only: the spread is unknown, and no difference here is proof of anything."]
    if most < 5:
        return [f"With {most} seeds a standard deviation is itself rough: read small gaps with care."]
    return []


def _uneven(points: Sequence[Point]) -> list[str]:
    most = max(point.seeds for point in points)
    short = list(dict.fromkeys(point.method for point in points if point.seeds < most))
    if not short:
        return []
    return [f"Not every seed is in for {_list(short)}: those means are over fewer than {most}."]


def _diverged(points: Sequence[Point], primary: Primary) -> list[str]:
    columns = (primary.test, primary.validation, "test_loss")
    lost = [p.method for p in points if any(c in p.values and not p.values[c].finite for c in columns)]
    if not lost:
        return []
    return [f"Some runs of {_list(list(dict.fromkeys(lost)))} diverged; the figures leave those points out."]


def _absent(study: StudyFile, points: Sequence[Point]) -> list[str]:
    there = {point.method for point in points}
    gone = [label for label in study.methods if label not in there]
    return [f"There are no results yet for {_list(gone)}."] if gone else []


@dataclass(frozen=True)
class Overview:
    """A study's title, and its findings and cautions as plain sentences."""

    title: str
    findings: tuple[str, ...]
    cautions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"title": self.title, "findings": list(self.findings), "cautions": list(self.cautions)}


def study_overview(folder: Path) -> Overview:
    """What the report of a study's folder finds.

    Raises:
        DataError: as `write_report`.
    """
    study = read_study(folder / STUDY_JSON)
    check_tables(folder)
    points = points_of(read_results(folder / RESULTS_CSV))
    found = findings(study, points, primary_of(study.primary))
    return Overview(
        study.title,
        tuple(finding.text for finding in found if finding.kind == "result"),
        tuple(finding.text for finding in found if finding.kind == "caution"),
    )
