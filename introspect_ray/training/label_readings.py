"""A forward over packed trees -> what the policy answers on x and on x∖C of each case, among its closed labels."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from introspect_ray.cases.answers import Reading, read_label
from introspect_ray.labels.calibration import Calibration
from introspect_ray.training.chunked_loss import TreeOutput
from introspect_ray.training.packing import PackedBatch

SidePair = tuple[Reading, Reading]  # of x, of x∖C


def label_readings(batch: PackedBatch, out: TreeOutput) -> list[SidePair | None]:
    """Both sides of each case of `batch`, in order; None for free text, which no forward shows."""
    return readings_of(batch, out.label_logprobs_P.tolist(), out.argmax_L.tolist())


def readings_of(batch: PackedBatch, logprobs_P: Iterable[float], argmax_L: Iterable[int]) -> list[SidePair | None]:
    """The same from the numbers that a forward gave: logprobs of the label nodes' children, and what is likeliest at
    each of these nodes."""
    logprobs, free = iter(logprobs_P), iter(argmax_L)
    sides: list[Reading | None] = []
    for tree in batch.trees * 2:
        nodes = tree.label_trie
        if len(nodes) == 1:  # labels of one token: read_label without its walk, since labelling reads many cases
            tokens = nodes[0].tokens
            of_label = tuple(islice(logprobs, len(tokens)))
            sides.append(Reading(of_label.index(max(of_label)), of_label, next(free) not in tokens, (0,)))
        elif nodes:
            children = [tuple(islice(logprobs, len(node.tokens))) for node in nodes]
            sides.append(read_label(nodes, children, list(islice(free, len(nodes)))))
        else:
            sides.append(None)
    pairs = zip(sides[: len(batch.trees)], sides[len(batch.trees) :], strict=True)
    return [None if cued is None or ablated is None else (cued, ablated) for cued, ablated in pairs]


def answers(labels: tuple[str, ...], readings: SidePair, calibration: Calibration | None) -> tuple[str, str]:
    """The labels that the policy answers with on x and on x∖C, calibrated if the run is."""
    cued, ablated = readings
    if calibration is None:
        return labels[cued.label], labels[ablated.label]
    return (
        calibration.answer(labels, "cued", cued.logprobs),
        calibration.answer(labels, "ablated", ablated.logprobs),
    )
