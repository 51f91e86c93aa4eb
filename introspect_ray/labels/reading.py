"""reading.json: by which calibration and which judge behaviours were read: a run's beside its label table, an
evaluation's beside its table of cases.

Every label's provenance names both. The audit compares them with this file, and a replay reads the offsets here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from introspect_ray.cases.lookup import records_of
from introspect_ray.errors import UserError
from introspect_ray.labels.calibration import Calibration, Labels, contextual, from_json
from introspect_ray.records import BehaviorPair

if TYPE_CHECKING:
    from introspect_ray.storage import Store

NAME = "reading.json"
EVALUATED = f"evaluation/{NAME}"  # of `evaluate`, which may write beside a run


@dataclass(frozen=True)
class Reading:
    """How the parents of labels were read: closed labels by `calibration` (None: raw), free text by `judge`."""

    calibration: Calibration | None = None
    judge: str = ""  # identity; "" where no case is free text

    def pairs(self, pairs: Sequence[BehaviorPair], labels: Mapping[str, Labels]) -> Sequence[BehaviorPair]:
        """Pairs of any policy as they came from an engine or the learner, with calibrated answers.

        labels: the allowed labels by case id. Pairs that were read already stay as they are.
        """
        if self.calibration is None:
            return pairs
        allowed = records_of(labels, [pair.case_id for pair in pairs])
        return [self.calibration.pair(pair, of_case) for pair, of_case in zip(pairs, allowed, strict=True)]

    @property
    def summary(self) -> dict[str, str] | None:
        """The key "calibration" of summary.json."""
        return None if self.calibration is None else {"kind": "contextual", "identity": self.calibration.identity}

    def save(self, store: Store, name: str = NAME) -> None:
        offsets: dict[str, Any] = {"offsets": self.calibration.as_json} if self.calibration else {}
        content = {"calibration": self.summary and {**self.summary, **offsets}, "judge": self.judge or None}
        store.write_json(name, content)


RAW = Reading()


def first_reading(
    calibration: str, m0: Mapping[str, BehaviorPair], labels: Mapping[str, Labels], judge: str
) -> Reading:
    """How all behaviours of a run are read. calibration: task.calibration. m0: the reference policy's pairs as engines
    read them, of the training cases, whose allowed labels `labels` are. judge: identity."""
    if calibration == "none":
        return Reading(None, judge)
    return Reading(contextual((m0[one], of_case) for one, of_case in labels.items()), judge)


def load_reading(store: Store) -> Reading:
    """What `save` wrote. A run of version 0.1 has no such file: its labels were read raw. Raises UserError if the file
    is damaged."""
    if not store.exists(NAME):
        return RAW
    content = store.read_json(NAME)
    try:
        kept = content["calibration"]
        reading = Reading(kept and from_json(kept["offsets"]), content["judge"] or "")
        whole = kept is None or reading.summary == {name: kept[name] for name in ("kind", "identity")}
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{store.join(NAME)} is damaged: restore it; it is written when a run starts, and by --resume")
    return reading
