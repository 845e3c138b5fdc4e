"""Made-up pages of every kind, with what is hard to draw: many mistakes, empty classes, long names, failures."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from transfer.catalog.model import BaseDigest, ModelVersion, Provenance, ReportedMetrics, TrainedWeights
from transfer.catalog.run import EpochRow
from transfer.config import GateConfig
from transfer.evaluation.against import AgainstServing
from transfer.evaluation.metrics import Tally
from transfer.evaluation.mistakes import worst_mistakes
from transfer.evaluation.page import render_html
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report
from transfer.nights.page import render_night
from transfer.nights.summary import ClassChange, DataChange, Finding, NightSummary, Outcome, Step
from transfer.pages.contents import Contents, ModelRow, NightRow, RateRow, Rows, RunRow, SweepRow
from transfer.pages.page import Page
from transfer.pages.write import render_index
from transfer.registry.comparison import Answered, Comparison, Contender, HeldOut, compare, judge
from transfer.registry.describe import DescribedVersion, Refusal
from transfer.registry.gate import decide
from transfer.registry.retention_log import Pin
from transfer.registry.versions import Promotion
from transfer.reports.thumbnails import Thumbnail, make_thumbnail
from transfer.training.history import FinalEpoch
from transfer.tuning import lr_page
from transfer.tuning import page as sweep_page
from transfer.tuning.lr_curve import FoundRate, RateCurve
from transfer.tuning.records import SweepResult, TrialRecord, winner_of

CLASSES = ["mammal", "vehicle", "bird", "musical instrument", "fruit", "vegetable", "drink", "building"]
EMPTY = "val"
"""A class without images."""
_CONFUSED = {"vehicle": "building", "vegetable": "fruit", "drink": "fruit", "bird": "mammal"}


def write_examples(folder: Path) -> None:
    """Write a page of every kind into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    good = _predictions(0.86, images=180)
    always_first = np.tile(np.array([0.84] + 8 * [0.02], np.float32), (len(good.keys), 1))
    collapsed = Predictions(good.keys, good.labels, always_first, good.classes)
    serving = AgainstServing(
        version=3, dataset="things/00000004", split="test", accuracy=0.811, gained=19, lost=8, p_value=0.026
    )
    many = _predictions(0.7, images=4000, classes=[f"species {index}" for index in range(120)])
    pages = {
        "report": _report(good, serving=serving),
        "report-collapsed": _report(collapsed),
        "report-two": _report(_predictions(0.97, images=60, classes=["cat", "dog"]), history=_history(1)),
        "report-many": _report(many),
        "sweep": sweep_page.render(_sweep()),
        "rate": lr_page.render(_found_rate()),
    }
    pages |= _nights()
    pages["index"] = render_index(_contents())
    for name, html in pages.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")


def _predictions(skill: float, *, images: int, classes: list[str] | None = None) -> Predictions:
    """Answers of a model that is right in `skill` of the cases, and else mostly confuses certain pairs."""
    random = np.random.default_rng(images)
    names = [*CLASSES, EMPTY] if classes is None else classes
    present = len(CLASSES) if classes is None else len(names)
    weights = np.linspace(3, 1, present)
    labels = random.choice(present, images, p=weights / weights.sum())
    sure = random.uniform(0.5, 0.99, images)
    probabilities = np.repeat((1 - sure)[:, None] / (len(names) - 1), len(names), axis=1)
    for row, label in enumerate(labels):
        other = _CONFUSED.get(names[label], names[0])
        wrong = names.index(other) if random.random() < 0.7 and other in names else random.integers(present)
        probabilities[row, label if random.random() < skill else wrong] = sure[row]
    keys = [f"{names[label]}/IMG_2024_{row:05d} from the second shoot.jpg" for row, label in enumerate(labels)]
    return Predictions(keys, labels.astype(np.int32), probabilities.astype(np.float32), names)


def _history(phases: int = 2) -> list[EpochRow]:
    rows = []
    for epoch in range(6 + 8 * (phases - 1)):
        phase = 0 if epoch < 6 else 1
        seen = 1 - math.exp(-(epoch + 1) / 4)
        rows.append(
            EpochRow(
                phase=phase,
                epoch=epoch,
                loss=2.1 - 1.75 * seen,
                accuracy=0.2 + 0.75 * seen,
                validation_loss=2.0 - 1.4 * seen + 0.01 * epoch,
                validation_accuracy=0.25 + 0.61 * seen - 0.02 * (epoch % 3),
                learning_rate=1e-3 if phase == 0 else 1e-4 * (1 + math.cos(math.pi * (epoch - 6) / 8)) / 2 + 1e-7,
                seconds=4.2,
            )
        )
    return rows


def _report(predictions: Predictions, **changes: object) -> str:
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    mistakes = worst_mistakes(predictions, 24, digests=predictions.keys)
    splits = {"train": 5, "validation": 1, "test": 1}
    content: dict[str, object] = {
        "name": "things",
        "dataset": "things/00000004",
        "run_id": "things-5d2f0a91c3be",
        "split": "test",
        "base": "MobileNetV2",
        "metrics": Tally.of(predictions).metrics(),
        "history": _history(),
        "validation_accuracy": 0.861,
        "untrained_classes": [EMPTY] if EMPTY in predictions.classes else [],
        "weights": "imagenet",
        "kept": FinalEpoch(phase=1, epoch=6, of=8, best_by="loss", value=0.4127),
        "mistakes": mistakes,
        "counts": {
            split: {name: int(times * count) for name, count in zip(predictions.classes, counts, strict=True)}
            for split, times in splits.items()
        },
        "config": {
            "name": "things",
            "base": {"model": "keras://MobileNetV2"},
            "phases": [
                {"unfreeze": 0, "epochs": 6, "learning_rate": 1e-3, "optimizer": {"name": "adam"}},
                {"unfreeze": 2, "epochs": 8, "learning_rate": 1e-4, "optimizer": {"name": "adam"}},
            ],
            "training": {"batch_size": 32, "seed": 0},
        },
    }
    return render_html(
        Report.model_validate(content | changes),
        thumbnails={mistake.sha256: _picture(mistake.key) for mistake in mistakes},
        storage="s3://pictures-of-things/transfer",
    )


def _picture(key: str) -> bytes:
    """A colored shape, another one for each key."""
    random = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    size = (160, 120) if random.random() < 0.7 else (110, 150)
    image = Image.new("RGB", size, tuple(random.integers(150, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = random.integers(0, 90, 2).tolist()
        box = (left, top, left + 50, top + 40)
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape(box, fill=tuple(random.integers(0, 200, 3).tolist()))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG")
    return encoded.getvalue()


def _sweep() -> SweepResult:
    random = np.random.default_rng(4)
    trials = []
    for number in range(1, 25):
        depth, rate = int(random.choice([0, 1, 3])), float(f"{10 ** random.uniform(-5, -1):.3g}")
        values = {
            "phases.0.unfreeze": depth,
            "phases.0.learning_rate": rate,
            "head.dropout": float(f"{random.uniform(0, 0.5):.2g}"),
        }
        epochs = int(random.choice([2, 6, 12]))
        failed = number == 7
        value = 0.9 - 0.05 * abs(math.log10(rate) + 3) ** 2 + 0.01 * depth + random.normal(0, 0.02)
        rows = tuple(row.model_copy(update={"phase": 0, "seconds": 1.5 + depth}) for row in _history()[:epochs])
        trials.append(
            TrialRecord(
                number=number,
                values=values,
                run_id=f"things-{number:012x}",
                status="failed" if failed else "stopped" if epochs < 12 else "finished",
                stopped_by="scheduler" if epochs < 12 and not failed else None,
                reason="The loss became nan in phase 0." if failed else "by asha" if epochs < 12 else None,
                rows=rows,
                value=None if failed else round(60 * min(value, 0.93)) / 60,
                depth=[depth],
                trained_flops=1e6 * (1 + 20 * depth),
                packed_with=4 if depth == 0 else 1,
            )
        )
    winner = winner_of(trials, "accuracy")
    return SweepResult(
        id="things-sweep-0123456789ab",
        name="things",
        dataset="things/00000004",
        metric="accuracy",
        images=60,
        search="random",
        scheduler="asha",
        trials=tuple(trials),
        winner=winner.number if winner else None,
        ended_by="every trial ended",
        seconds=731.0,
    )


def _found_rate() -> FoundRate:
    random = np.random.default_rng(2)
    rates = np.geomspace(1e-7, 10, 200)
    falling = 1.72 - 0.55 / (1 + np.exp(-2.2 * (np.log10(rates) + 2.2)))
    losses = falling + 0.06 * random.normal(size=200) + np.where(rates > 0.6, 2.4 * np.log10(rates / 0.6) ** 2, 0)
    curve = RateCurve(rates=tuple(rates.tolist()), losses=tuple(losses.tolist()), diverged=False)
    return FoundRate(
        id="0123456789ab",
        name="things",
        dataset="things/00000004",
        base="MobileNetV2",
        phase=0,
        unfreeze=0,
        optimizer="adam",
        batch_size=32,
        curve=curve,
        suggestion=curve.steepest,
        tenth_of_minimum=curve.tenth_of_minimum,
    )


def _nights() -> dict[str, str]:
    outcomes: list[Outcome] = ["promoted", "kept", "nothing new", "promoted", "refused", "kept", "failed", "promoted"]
    summaries: list[NightSummary] = []
    pages = {}
    champion: int | None = None
    for number, outcome in enumerate(outcomes, start=1):
        summary = _night(number, outcome, champion)
        champion = summary.challenger if outcome == "promoted" else champion
        summaries.append(summary)
        pages[f"night-{number}-{outcome.replace(' ', '-')}"] = render_night(
            summary, _flipped(summary), earlier=summaries[:-1]
        )
    return {name: pages[name] for name in pages if name[6] in "3678"}


def _night(number: int, outcome: Outcome, champion: int | None) -> NightSummary:
    content: dict[str, object] = {
        "name": "things",
        "night": number,
        "outcome": outcome,
        "reason": f"Because it was {outcome}.",
        "champion": champion,
        "started": f"2026-03-{number:02d}T02:00:05+00:00",
        "ended": f"2026-03-{number:02d}T02:04:30+00:00",
        "steps": [
            Step(name="ingest", seconds=4.25, text=f"things/{number:08d}: 1,204 images."),
            Step(name="train", seconds=61.5, text="Run things-0123456789ab on 843 images."),
            Step(name="evaluate", seconds=3.1, text="Report 1."),
        ],
        "dataset": f"things/{number:08d}",
    }
    if outcome in {"promoted", "kept", "refused"}:
        rows = [
            ClassChange(name=name, before=100 + 9 * index, new=7 * (index % 3), gone=index % 2)
            for index, name in enumerate(CLASSES)
        ]
        content["change"] = DataChange(
            before=f"things/{number - 1:08d}",
            now=f"things/{number:08d}",
            images=sum(row.before + row.new - row.gone for row in rows),
            new=sum(row.new for row in rows),
            gone=sum(row.gone for row in rows),
            shards=7,
            new_shards=1,
            rejected=2,
            classes=rows,
        )
        content["findings"] = [
            Finding(check="volume", found=0.01, limit=0.2, passed=True, action="refuse", text="1 % is gone."),
            Finding(check="drift", found=0.91, limit=0.8, passed=False, action="warn", text="New images differ."),
            Finding(check="agreement", found=None, limit=0.25, passed=True, action="warn", text="Only 5 are new."),
        ]
    if outcome in {"promoted", "kept"}:
        comparison = _comparison(number, champion, better=outcome == "promoted")
        content |= {"comparison": comparison, "decision": decide(GateConfig(), comparison), "challenger": number}
        content["run"] = comparison.challenger.run
    return NightSummary.model_validate(content | ({"promotion": number} if outcome == "promoted" else {}))


def _comparison(number: int, champion: int | None, *, better: bool) -> Comparison:
    ours = _predictions(0.74 + 0.02 * number, images=200 + number)
    theirs = _predictions(0.7 if better else 0.85, images=200 + number)
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in ours.keys]
    held_out = HeldOut(ours.keys, digests, ours.labels, np.ones(len(ours.keys), bool), ours.classes)

    def contender(version: int, latency_ms: float) -> Contender:
        run, dataset = f"things-{version:012x}", f"things/{version:08d}"
        return Contender(version, run, dataset, 14 * 1024**2, latency_ms, ours.classes)

    answers, before = (Answered(ours.classes, each.probabilities) for each in (ours, theirs))
    judged = judge(held_out, answers, None if champion is None else before)
    other = None if champion is None else contender(champion, 11.2)
    return compare(judged, contender(number, 10.4), other, classes=ours.classes, gate=GateConfig())


def _flipped(summary: NightSummary) -> dict[str, Thumbnail]:
    flips = summary.comparison.flips if summary.comparison else ()
    made = {flip.sha256: make_thumbnail(_picture(flip.key)) for flip in flips[3:]}
    return {sha256: thumbnail for sha256, thumbnail in made.items() if thumbnail is not None}


def _contents() -> Contents:
    data = "things/00000004"
    versions = [
        ModelVersion(
            model="things",
            number=number,
            published_at=f"2026-03-0{number}T02:04:00+00:00",
            files=(),
            classes=tuple(CLASSES),
            provenance=Provenance(
                run=f"things-{number:012x}",
                dataset=data,
                base=BaseDigest(model="MobileNetV2", sha256="b" * 64),
                weights=TrainedWeights(checkpoint=1, sha256="c" * 64),
                report=1,
                metrics=ReportedMetrics(accuracy=0.8 + 0.02 * number, loss=0.5, split="test"),
                config={},
            ),
        )
        for number in (3, 2, 1)
    ]
    promotion = Promotion(version=2, since="2026-03-02T02:04:30+00:00", reason="night 2: 12 more are right", replaces=1)
    pin = Pin(version=1, reason="the catalogue of spring", since="2026-03-05T09:00:00+00:00")
    sweep_id = "things-sweep-0123456789ab"
    sweep = SweepRow(sweep_id, "things", data, 24, "things-000000000004", "accuracy", "93.3 %", Page("", "sweep.html"))
    nights = tuple(
        NightRow(
            "things",
            number,
            f"2026-03-0{number}T02:00:10+00:00",
            f"2026-03-0{number}T02:04:30+00:00" if ended else None,
            outcome,
            "Because of that.",
            Page("", "night.html") if ended else None,
        )
        for number, outcome, ended in (
            (4, "interrupted", False),
            (3, "kept", True),
            (2, "promoted", True),
            (1, "promoted", True),
        )
    )
    rule = {"name": "significant", "passed": False, "text": "p is 0.21; at most 0.05."}
    refusal = Refusal(at="2026-03-03T02:04:30+00:00", champion=2, evidence={"night": 3, "rules": [rule]})
    runs = tuple(
        RunRow(id_, "things", data, 0.82, "test", started_by, Page("", f"run {id_}.html"))
        for id_, started_by in (
            ("things-000000000004", f"sweeps/{sweep_id}"),
            ("things-000000000003", "nights/things/00000003"),
            ("things-000000000002", "nights/things/00000002"),
            ("things-000000000001", ""),
        )
    )
    return Contents(
        storage="s3://pictures-of-things/transfer",
        models=Rows((ModelRow("other-things", 0, None, None), ModelRow("things", 3, promotion, versions[1]))),
        versions=Rows(
            tuple(
                DescribedVersion(
                    each,
                    each.number == 2,
                    pin if each.number == 1 else None,
                    refusal if each.number == 3 else None,
                )
                for each in versions
            )
        ),
        nights=Rows(nights, more=361),
        sweeps=Rows((sweep,)),
        rates=Rows((RateRow("0123456789ab", "things", data, 0, "head", "0.0466", Page("", "rate.html")),)),
        runs=Rows(runs, more=1200),
        not_evaluated=23,
        run_pages={run.id: run.page for run in runs},
    )
