"""Loss and gradients of the learner, variant by variant, against plain transformers forwards in float32.

The reference computes x, x∖C and q + e of every case on its own, without padding. M0 is another policy than the one
that is trained, so that the KL has a gradient. The gradients are those that the optimizer gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.loops import PlainLoop
from benchmarks.gpu.setting import EXACT, Setting, labels_of, one_rank, pairs_of
from introspect_ray.records import TokenizedCase
from introspect_ray.training import chunked_loss
from introspect_ray.training.fsdp import full_value
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

CASES = 12
# Largest difference from float32: of the loss and, as norms over all weights, of the gradients; both relative.
LIMITS = {"float32": (1e-4, 1e-3), "bfloat16": (3e-2, 0.1)}


class Variant(NamedTuple):
    """What one learner does differently. rows: of logits in a chunk; None: as ever."""

    train: Mapping[str, Any]
    rows: int | None = None


CPU: dict[str, Variant] = {
    "sdpa": Variant({"attention": "sdpa"}),
    "several micro-batches": Variant({"attention": "sdpa", "token_budget": 128}),
    "chunks of 5 rows": Variant({"attention": "sdpa"}, rows=5),
    "layers again": Variant({"attention": "sdpa", "activation_checkpointing": "layers"}),
    "elementwise again": Variant({"attention": "sdpa", "activation_checkpointing": "elementwise"}),
    "bfloat16": Variant({"attention": "sdpa", "dtype": "bfloat16"}),
}
GPU: dict[str, Variant] = {
    "flex": Variant({"attention": "flex"}),
    "flex, several micro-batches": Variant({"attention": "flex", "token_budget": 512}),
    "flex, layers again": Variant({"attention": "flex", "activation_checkpointing": "layers"}),
    "flex, chunks of 5 rows": Variant({"attention": "flex"}, rows=5),
    "offload": Variant({"attention": "flex", "offload": True}),
    "flex, bfloat16": Variant({"attention": "flex", "dtype": "bfloat16"}),
    "flex, bfloat16, layers again": Variant(  # as cluster/h100.yaml
        {"attention": "flex", "dtype": "bfloat16", "activation_checkpointing": "layers"}
    ),
}
Gradients = dict[str, torch.Tensor]


def measure(setting: Setting) -> dict[str, Any]:
    """By variant the relative differences {"loss", "gradients"}; "ok": whether all are within LIMITS."""
    if torch.get_float32_matmul_precision() != "highest":
        raise RuntimeError("TF32 is on: float32 would be no reference")
    cases = setting.cases(CASES, setting.exact)
    loop = PlainLoop(setting, "unpadded", setting.exact, setting.second, cases, "float32")
    loss = loop.backward(cases, labels_of(cases))
    expected = {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}
    variants = CPU | (GPU if setting.on_gpu else {})
    rows = {name: _compared(setting, variant, cases, loss, expected) for name, variant in variants.items()}
    return {"variants": rows, "limits": LIMITS, "ok": all(row["ok"] for row in rows.values())}


def _compared(
    setting: Setting, variant: Variant, cases: list[TokenizedCase], loss: float, expected: Gradients
) -> dict[str, Any]:
    """{"loss", "gradients", "ok"} of one variant, or {"error", "ok"}: the others are to run in any case."""
    try:
        found, gradients = _step(setting, variant, cases)
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:1000]}
    if gradients.keys() != expected.keys():
        return {"ok": False, "error": f"gradients of {len(gradients)} weights, of {len(expected)} expected"}
    row = {"loss": abs(found - loss) / abs(loss), "gradients": _distance(gradients, expected)}
    most_loss, most_gradients = LIMITS[variant.train.get("dtype", "float32")]
    return {**row, "ok": row["loss"] <= most_loss and row["gradients"] <= most_gradients}


def _step(setting: Setting, variant: Variant, cases: list[TokenizedCase]) -> tuple[float, Gradients]:
    """Loss and gradients of one step of a learner."""
    dtype = variant.train.get("dtype", "float32")
    attention = variant.train["attention"]
    with one_rank(setting), _chunks(setting, variant.rows):
        torch._dynamo.reset()
        reference = build_reference(setting.second, cases, None, setting.folder, dtype, attention=attention)
        cfg = setting.config(**{"dtype": "float32", "max_grad_norm": 1e9, **variant.train})
        by_id = {case.case_id: case for case in cases}
        learner = Learner(cfg, setting.exact, reference, by_id, device=setting.device)
        gradients: Gradients = {}

        def keep(*_: object) -> None:
            for name, weight in learner.module.model.named_parameters():
                if weight.grad is not None:
                    gradients[name] = full_value(weight.grad).to(setting.device, copy=True)

        learner.optimizer.register_step_pre_hook(keep)
        loss = learner.step(labels_of(cases), pairs_of(cases))["loss"]
        assert loss is not None
        return loss, gradients


@contextmanager
def _chunks(setting: Setting, rows: int | None) -> Iterator[None]:
    """The output head in chunks of `rows`."""
    kind = setting.device.type
    before = chunked_loss.CHUNK_ELEMENTS[kind]
    if rows is not None:
        chunked_loss.CHUNK_ELEMENTS[kind] = rows * EXACT["vocab_size"]
    try:
        yield
    finally:
        chunked_loss.CHUNK_ELEMENTS[kind] = before


def _distance(found: Gradients, expected: Gradients) -> float:
    """Norm of the difference over the norm, of all weights together."""
    apart = sum((found[name].double() - g.double()).square().sum() for name, g in expected.items())
    return float((apart / sum(g.double().square().sum() for g in expected.values())) ** 0.5)  # type: ignore[operator]
