"""Two models' answers to compare, and nights to show, without training or publishing any."""

import hashlib

import numpy as np

from transfer.config import GateConfig
from transfer.nights.summary import ClassChange, DataChange, Finding, NightSummary, Step
from transfer.registry import comparison
from transfer.registry.comparison import Answered, Contender, HeldOut, judge
from transfer.registry.gate import decide


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def heads(digests):
    """The first 8 bytes of each digest, as a number."""
    return np.array([int(each[:16], 16) for each in digests], np.uint64)


def held_out(labels, classes, *, comparable=None):
    keys = [f"images/{row:04d}.png" for row in range(len(labels))]
    comparable = np.ones(len(labels), bool) if comparable is None else np.asarray(comparable, bool)
    return HeldOut(keys, [digest(key) for key in keys], np.asarray(labels, np.int32), comparable, list(classes))


def compare(challenger, champion, images, gate):
    """Compare two models, each given as a pair of who it is and what it answers, or one with nothing."""
    (ours, answers), (theirs, before) = challenger, champion or (None, None)
    return comparison.compare(judge(images, answers, before), ours, theirs, classes=images.classes, gate=gate)


def contender(answers, classes, *, version=2, sure=0.8, latency_ms=10.0, size_bytes=14 * 1024**2):
    """A model that answers each image with a class, by name, of which it is more or less sure; and these answers."""
    classes = list(classes)
    sure = np.broadcast_to(sure, len(answers))
    probabilities = np.empty((len(answers), len(classes)), np.float32)
    for row, (answer, probability) in enumerate(zip(answers, sure, strict=True)):
        probabilities[row] = (1 - probability) / (len(classes) - 1)
        probabilities[row, classes.index(answer)] = probability
    who = Contender(version, f"run-{version}", "flowers/00000003", size_bytes, latency_ms, classes)
    return who, Answered(classes, probabilities)


def compared(*, both=40, gained=12, lost=3, neither=5, classes=("daisy", "rose", "tulip"), gate=None, **of_challenger):
    """A comparison with so many images of each kind; classes take turns, and what is wrong is taken for the next."""
    classes = list(classes)
    kinds = ["both"] * both + ["gained"] * gained + ["lost"] * lost + ["neither"] * neither
    labels = np.arange(len(kinds)) % len(classes)

    def answers(*right_kinds):
        shift = [kind not in right_kinds for kind in kinds]
        return [classes[(label + off) % len(classes)] for label, off in zip(labels, shift, strict=True)]

    return compare(
        contender(answers("both", "gained"), classes, version=12, **of_challenger),
        contender(answers("both", "lost"), classes, version=9),
        held_out(labels, classes),
        gate or GateConfig(),
    )


def alone(*, right=45, wrong=15, classes=("daisy", "rose", "tulip")):
    """A comparison of a first model with nothing."""
    labels = np.arange(right + wrong) % len(classes)
    answers = [classes[(label + (row >= right)) % len(classes)] for row, label in enumerate(labels)]
    return compare(contender(answers, classes, version=1), None, held_out(labels, classes), GateConfig())


def summed_up(classes, *, before, now, rejected):
    """A change whose totals are those of its classes."""
    return DataChange(
        before=before,
        now=now,
        images=sum(each.before + each.new - each.gone for each in classes),
        new=sum(each.new for each in classes),
        gone=sum(each.gone for each in classes),
        shards=7,
        new_shards=1,
        rejected=rejected,
        classes=classes,
    )


def changed(classes=("daisy", "rose", "tulip"), *, before="flowers/00000002"):
    old = 1 if before else 0
    rows = [
        ClassChange(name=name, before=old * (100 + 7 * index), new=5 * (index % 3), gone=old * (index % 2))
        for index, name in enumerate(classes)
    ]
    return summed_up(rows, before=before, now="flowers/00000003", rejected=2)


FINDINGS = (
    Finding(check="volume", found=0.01, limit=0.2, passed=True, action="refuse", text="1.0 % of the images are gone."),
    Finding(check="drift", found=0.91, limit=0.8, passed=False, action="warn", text="New images look different."),
    Finding(check="agreement", found=None, limit=0.25, passed=True, action="warn", text="Only 5 images are new."),
)
STEPS = (
    Step(name="ingest", seconds=4.25, text="flowers/00000003: 1,204 images."),
    Step(name="train", seconds=61.5, text="Run flowers-0123456789ab on 843 images."),
    Step(name="compare models", seconds=0.0, text=""),
)


def night(outcome, *, gate=None, **changes):
    """A night that ended so, with what is known of one that did."""
    content = {
        "name": "flowers",
        "night": 14,
        "outcome": outcome,
        "reason": f"Because it was {outcome}.",
        "champion": 9,
    }
    content |= {"started": "2026-03-01T02:00:05+00:00", "ended": "2026-03-01T02:01:30+00:00", "steps": STEPS}
    content["dataset"] = "flowers/00000003"
    if outcome in {"promoted", "kept", "refused"}:
        content |= {"change": changed(), "findings": FINDINGS}
    if outcome in {"promoted", "kept"}:
        comparison = changes.get("comparison") or compared()
        content |= {"comparison": comparison, "decision": decide(gate or GateConfig(), comparison)}
        content |= {"challenger": comparison.challenger.version, "run": comparison.challenger.run}
    if outcome == "promoted":
        content["promotion"] = 6
    return NightSummary(**(content | changes))
