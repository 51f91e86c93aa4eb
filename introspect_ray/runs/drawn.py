"""Values of a swept key that are drawn at random, as Ray Tune draws them: kl_weight=loguniform(1e-3,10)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from introspect_ray.errors import UserError

# Of Ray Tune's search spaces those with two bounds. q...: also a step, e.g. quniform(0,1,0.1).
KINDS = ("uniform", "loguniform", "quniform", "qloguniform", "randint", "lograndint")
_WRITTEN = re.compile(rf"({'|'.join(sorted(KINDS, key=len, reverse=True))})\(([^()]*)\)")
_DIGITS = 4  # significant ones of a drawn number: as many as stand in the name of a trial's folder


def is_drawn(value: Any) -> bool:
    """Whether a value is written as a distribution."""
    return isinstance(value, str) and _WRITTEN.fullmatch(value.replace(" ", "")) is not None


def draw(key: str, written: str, count: int, seed: int) -> list[float]:
    """`count` values of a distribution, the same ones each time; each key has a stream of its own.

    Raises UserError for bounds that Ray Tune does not take.
    """
    import numpy as np
    from ray import tune

    found = _WRITTEN.fullmatch(written.replace(" ", ""))
    kind, given = found.groups() if found else ("", "")
    try:
        whole = kind.endswith("randint")
        bounds = [int(one) if whole else float(one) for one in given.split(",")]
        values = getattr(tune, kind)(*bounds).sample(
            size=count, random_state=np.random.RandomState([seed, *key.encode()])
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{key}={written}: {error}; e.g. {key}=loguniform(1e-3,10)") from None
    drawn = values if isinstance(values, list | np.ndarray) else [values]
    return [int(one) if whole else float(f"{one:.{_DIGITS}g}") for one in drawn]


def points(keys: Sequence[str], values: Sequence[Any], samples: int, seed: int) -> list[tuple[Any, ...]]:
    """The points of a sweep: every combination of the listed values; with drawn keys, of each of `samples` draws.

    values: of each key a list, or a distribution as it is written. A point that was drawn before is left out.
    """
    drawn = {place: draw(keys[place], value, samples, seed) for place, value in enumerate(values) if is_drawn(value)}
    made: dict[tuple[Any, ...], None] = {}
    for number in range(samples if drawn else 1):
        row = [[drawn[place][number]] if place in drawn else value for place, value in enumerate(values)]
        made.update(dict.fromkeys(itertools.product(*row)))
    return list(made)
