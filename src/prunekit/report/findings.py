"""Findings of a study: sentences that its spreads carry, and the cautions that limit what they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import escape

from prunekit.errors import starved
from prunekit.report.best import SAME_RATIO, Best, best_table, max_compression_within_tolerance, point_at
from prunekit.report.points import (
    LayerPoint,
    Point,
    Primary,
    dense_of,
    grouped,
    judged,
    layer_points_of,
    methods_of,
    names,
    points_of,
    primary_of,
    removes_nothing,
    times,
)
from prunekit.report.read_tables import check_tables, read_layers, read_results
from prunekit.study_files import LAYERS_CSV, RESULTS_CSV, STUDY_JSON, StudyFile, read_study

# Control characters that no name can hold once it is cleaned, so that a name is always found whole.
_OPEN, _CLOSE = "\x02", "\x03"
_NAME = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")


def named(method: str) -> str:
    """A method's name, marked as one within a sentence."""
    return f"{_OPEN}{method.replace(_OPEN, '').replace(_CLOSE, '')}{_CLOSE}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence. ``marked`` holds names marked by ``named``, which a page shows in bold."""

    marked: str

    def __str__(self) -> str:
        return _NAME.sub(r"\1", self.marked)

    def __html__(self) -> str:
        return _NAME.sub(r"<b>\1</b>", str(escape(self.marked)))


@dataclass(frozen=True)
class Overview:
    """A study's title, its findings, and the cautions that limit what they mean."""

    title: str
    findings: tuple[Finding, ...]
    cautions: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "title": self.title,
            "findings": [str(finding) for finding in self.findings],
            "cautions": [str(finding) for finding in self.cautions],
        }


def study_overview(folder: Path) -> Overview:
    """What the report of a study's folder finds.

    Raises:
        DataError: as `write_report`.
    """
    study = read_study(folder / STUDY_JSON)
    check_tables(folder)
    points = points_of(read_results(folder / RESULTS_CSV))
    layers = layer_points_of(read_layers(folder / LAYERS_CSV))
    return findings(study, points, primary_of(study.primary), layers)


def findings(
    study: StudyFile, points: Sequence[Point], primary: Primary, layers: Sequence[LayerPoint] = ()
) -> Overview:
    """All that can be said of a study's points, and of its layers."""
    measured, points = points, judged(study, points)
    bests = best_table(points, primary)
    results = [
        _dense(study, points, primary),
        *_max_compressions(study, points, primary),
        *_leads(bests, primary),
        *_against_random(study, points, bests, primary),
        *_against_own(study.random_of, _AT_RANDOM, points, bests, primary),
        *_against_own(study.from_scratch("retraining"), _RETRAINED, points, bests, primary),
        *_against_own(study.from_scratch("whole"), _WHOLE, points, bests, primary),
    ]
    cautions = [
        *_few_seeds(points),
        *_uneven(points),
        *_diverged(points, primary),
        *_absent(study, measured),
        *_emptied(points, layers),
        *_starved(points, layers),
    ]
    return Overview(study.title, tuple(map(Finding, results)), tuple(map(Finding, cautions)))


def compared(study: StudyFile, points: Sequence[Point]) -> list[str]:
    """The methods that prune and are no control."""
    controls = {study.controls.random, *study.control_of}
    return [m for m in methods_of(points) if m not in controls and not removes_nothing(points, m)]


def _list(methods: Iterable[str]) -> str:
    return names([named(method) for method in methods])


def _once(ratios: Iterable[str]) -> str:
    """Ratios in a sentence, each once, though points of one ratio may answer for two that are asked for."""
    return names(list(dict.fromkeys(ratios)))


def _dense(study: StudyFile, points: Sequence[Point], primary: Primary) -> str:
    dense = dense_of(points)
    metric = dense.values.get(primary.test)
    if metric is None:
        return (
            "The network before pruning is not trained, and no control says what a dense network has that is "
            "trained for as long as the pruned ones."
        )
    text = f"The dense network has a {primary.name} of {primary.show_spread(metric)} ({dense.seeds_text})"
    label = study.controls.dense_trained_as_long
    if study.begins_untrained and label is not None:
        return (
            f"{text}: it is {named(label)}, trained for as long as the pruned ones, since the network before "
            "pruning is not trained."
        )
    longer = [point for point in points if point.method == label]
    if not longer:
        return text + "."
    trained = longer[-1].values[primary.test]
    text += f"; trained for as long as the pruned ones, with nothing removed, {primary.show_spread(trained)}"
    if trained.overlaps(metric) is False:
        better = primary.better(trained.mean, metric.mean) > 0
        return text + f", so longer training alone {'helps' if better else 'hurts'}."
    return text + "."


def _max_compressions(study: StudyFile, points: Sequence[Point], primary: Primary) -> list[str]:
    """How far methods go before they lose more than the tolerance."""
    methods, dense = compared(study, points), dense_of(points).values.get(primary.test)
    if not methods or dense is None:
        return []
    margin = primary.format_tolerance(dense)
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
            ahead.setdefault(best.point.method, []).append(f"{times(best.point.ratio)} (by {gap})")
    found = [
        f"{named(m)} is ahead of every other method measured there, beyond the spread, at {_once(ratios)}."
        for m, ratios in ahead.items()
    ]
    close = [times(best.point.ratio) for best in bests if best.verdict == "within the spread"]
    if close:
        found.append(
            f"At {_once(close)} the best methods lie within the spread of each other: no winner there."
        )
    for best in bests:
        if best.verdict == "behind on test":
            verb = "is" if len(best.rivals) == 1 else "are"
            found.append(
                f"At {times(best.point.ratio)} validation chooses {named(best.point.method)}, but on the "
                f"test set {_list(best.rivals)} {verb} better, beyond the spread."
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
        found = {m: _beats(points, m, label, best.asked, primary) for m in alike}
        failed = [method for method, beats in found.items() if beats is False]
        ratio = _ratio_run(points, label, best.asked, primary)
        for method in failed:
            lost.setdefault(method, []).append(ratio)
        if not failed and any(found.values()):
            everywhere.append(ratio)
    if not everywhere and not lost:
        return []
    every = (
        "every method" if len(alike) == len(compared(study, points)) else "every method retrained as it is"
    )
    parts = [f"beaten beyond the spread by {every} at {_once(everywhere)}"] if everywhere else []
    together = grouped(lost, lambda method: tuple(lost[method]))
    parts += [f"not beaten by {_list(those)} at {_once(ratios)}" for ratios, those in together.items()]
    return [f"Removal at random is {'; '.join(parts)}."]


_AT_RANDOM = "a random choice with {} own densities per layer"
_RETRAINED = "{} own final shape trained from scratch for as long as the retraining"
_WHOLE = "{} own final shape trained from scratch for as long as all training"


def _against_own(
    controls: Mapping[str, str], what: str, points: Sequence[Point], bests: Sequence[Best], primary: Primary
) -> list[str]:
    """Whether methods beat controls of their own, where both have points."""
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for control, method in controls.items():
        beats = {b.asked: _beats(points, method, control, b.asked, primary) for b in bests}
        won, lost = (
            tuple(_ratio_run(points, control, at, primary) for at, beat in beats.items() if beat is one)
            for one in (True, False)
        )
        if won or lost:
            found[method] = won, lost
    sentences = []
    for (won, lost), methods in grouped(found, lambda method: found[method]).items():
        one = len(methods) == 1
        verb = ("beats" if one else "beat") if won else ("does not beat" if one else "do not beat")
        but = f", but not at {_once(lost)}" if won and lost else ""
        sentences.append(
            f"Beyond the spread, {_list(methods)} {verb} {what.format('its' if one else 'their')} "
            f"at {_once(won or lost)}{but}."
        )
    return sentences


def _retraining(study: StudyFile, method: str) -> list[str]:
    """How a method's networks are trained after a step, whatever values that starts from; one per cell."""
    note = study.methods.get(method)
    recipes = [] if note is None else note.recipes
    found = [(recipe.get("retrain") or {}, recipe.get("retrain_every", 1)) for recipe in recipes]
    return sorted(
        {
            json.dumps([part.get("training") if isinstance(part, dict) else part, every], sort_keys=True)
            for part, every in found
        }
    )


def _beats(points: Sequence[Point], method: str, control: str, asked: float, primary: Primary) -> bool | None:
    """Whether a method is better than a control beyond the spread; None where that cannot be known."""
    found = [point_at(points, each, asked, primary) for each in (method, control)]
    mine, theirs = (None if point is None else point.values[primary.test] for point in found)
    if mine is None or theirs is None or (touches := mine.overlaps(theirs)) is None:
        return None
    return not touches and primary.better(mine.mean, theirs.mean) > 0


def _ratio_run(points: Sequence[Point], control: str, asked: float, primary: Primary) -> str:
    """The ratio that a control was run at where it answers for the asked one; empty if it has no point."""
    point = point_at(points, control, asked, primary)
    return "" if point is None else times(point.ratio)


def _few_seeds(points: Sequence[Point]) -> list[str]:
    most = max(point.seeds for point in points)
    if most == 1:
        return ["There is one seed only: the spread is unknown, and no difference here is proof of anything."]
    if most < 5:
        return [f"With {most} seeds a standard deviation is itself rough: read small gaps with care."]
    return []


def _uneven(points: Sequence[Point]) -> list[str]:
    most = max(point.seeds for point in points)
    short = dict.fromkeys(point.method for point in points if point.seeds < most)
    if not short:
        return []
    return [f"Not every seed is in for {_list(short)}: those means are over fewer than {most}."]


def _diverged(points: Sequence[Point], primary: Primary) -> list[str]:
    columns = (primary.test, primary.validation, "test_loss")
    lost = [p.method for p in points if any(c in p.values and not p.values[c].finite for c in columns)]
    if not lost:
        return []
    return [f"Some runs of {_list(dict.fromkeys(lost))} diverged; the figures leave those points out."]


def _absent(study: StudyFile, points: Sequence[Point]) -> list[str]:
    there = {point.method for point in points}
    gone = [label for label in study.methods if label not in there]
    return [f"There are no results yet for {_list(gone)}."] if gone else []


def _emptied(points: Sequence[Point], layers: Sequence[LayerPoint]) -> list[str]:
    """Which methods leave nothing at all of which layers, first at which sparsity, and in which seeds."""
    first = _first(points, layers, lambda layer, sparsity: bool(layer.emptied))
    return [
        f"{named(method)} empties "
        + names([f"{each.layer} (first at a sparsity of {at:.1%}, {_seeds(each)})" for at, each in found])
        + ": an empty layer passes nothing of its input on."
        for method, found in grouped(first.values(), lambda item: item[1].method).items()
    ]


def _first(
    points: Sequence[Point], layers: Sequence[LayerPoint], holds: Callable[[LayerPoint, float], bool]
) -> dict[tuple[str, str], tuple[float, LayerPoint]]:
    """By method and layer the lowest sparsity of the network at which something holds of a layer's point."""
    whole = {(point.method, point.cell, point.step): point.sparsity for point in points}
    first: dict[tuple[str, str], tuple[float, LayerPoint]] = {}
    for each in layers:
        sparsity = whole.get((each.method, each.cell, each.step))
        if sparsity is None or not holds(each, sparsity):
            continue
        place = each.method, each.layer
        if place not in first or sparsity < first[place][0]:
            first[place] = sparsity, each
    return first


def _seeds(layer: LayerPoint) -> str:
    """The seeds in which a layer is emptied: 'seeds 0 and 2 of 3', 'all 3 seeds'."""
    if len(layer.seeds) == len(layer.emptied) > 1:
        return f"all {len(layer.seeds)} seeds"
    which = names([str(seed) for seed in layer.emptied])
    return f"seed{'s' if len(layer.emptied) > 1 else ''} {which} of {len(layer.seeds)}"


def _starved(points: Sequence[Point], layers: Sequence[LayerPoint]) -> list[str]:
    """Which methods leave almost nothing of which layers, but not nothing, and from which sparsity on."""

    def is_starved(layer: LayerPoint, sparsity: float) -> bool:
        shape = [int(length) for length in layer.shape.split("x")]
        left = (1 - layer.sparsity) * layer.parameters
        return not layer.emptied and starved(shape, left, 1 - sparsity)

    first = _first(points, layers, is_starved)
    return [
        f"{named(method)} leaves almost nothing of {names([layer for _, layer in places])}, first at a "
        f"sparsity of {min(first[place][0] for place in places):.1%}: "
        "the allocation per_layer or a higher floor keeps more."
        for method, places in grouped(first, lambda place: place[0]).items()
    ]
