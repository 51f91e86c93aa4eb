"""What torch compiles over an epoch of real shapes, and when: each new kind of row may cost a compilation.

Beyond training/attention.py's limit torch would compute whole score matrices and only warn. Here that raises.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.setting import Setting, labels_of, one_rank, pairs_of
from introspect_ray.training.attention import FLEX_MAX_COMPILATIONS
from introspect_ray.training.learner import Learner
from introspect_ray.training.packing import pack
from introspect_ray.training.prompt_tree import ONE_TOKEN, build_tree
from introspect_ray.training.reference import build_reference

STEPS = 40  # one epoch


def measure(setting: Setting) -> dict[str, Any]:
    """{"compilations", "last_at_step", "limit", "steps", "shapes": different (rows, length), "slowest_s": the slowest
    step, "last_s": the last one}; "ok": compilations are within the limit and end in the first half of the epoch."""
    steps = STEPS if setting.on_gpu else setting.steps
    cases = setting.cases(setting.batch * steps, setting.exact)
    labels, pairs, shapes, seconds, compiled = labels_of(cases), pairs_of(cases), set(), [], [0]
    with one_rank(setting), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        reference = build_reference(setting.exact, cases, None, setting.folder, setting.dtype)
        torch._dynamo.reset()
        counters.clear()
        by_id = {case.case_id: case for case in cases}
        learner = Learner(setting.config(), setting.exact, reference, by_id, device=setting.device)
        for start in range(0, len(cases), setting.batch):
            part = slice(start, start + setting.batch)
            began = time.perf_counter()
            learner.label_pairs(cases[part], 0)  # rows without gradient, as online labels of the learner need them
            learner.step(labels[part], pairs)
            setting.wait()
            seconds.append(time.perf_counter() - began)
            compiled.append(counters["stats"]["unique_graphs"])
            trees = [build_tree(c, label.explanation, ONE_TOKEN) for c, label in zip(cases[part], labels[part])]
            shapes |= {batch.tokens_RT.shape for batch in pack(trees, setting.token_budget)}
    last = max((i for i, (a, b) in enumerate(pairwise(compiled)) if b > a), default=0)
    return {
        "compilations": compiled[-1],
        "last_at_step": last,
        "limit": FLEX_MAX_COMPILATIONS,
        "steps": steps,
        "shapes": len(shapes),
        "slowest_s": max(seconds),
        "last_s": seconds[-1],
        "ok": compiled[-1] <= FLEX_MAX_COMPILATIONS and last <= steps // 2,
    }
