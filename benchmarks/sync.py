"""Seconds of a weight sync over those of a memcpy of the same bytes: SmolLM2-135M, object store, one vLLM engine.

    python -m benchmarks.sync [--small] [--repeats N]

A full sync begins with the trainer's tensors in a dict. It ends when the engine serves them and its receipt is
verified: the fingerprints of every group, and the probe against the trainer's own forward pass. The weights are random,
have exactly that architecture, and change between syncs. The memcpy is torch's copy_ of the same tensors into memory
that was touched before, on one thread, in the same run. Of both the fastest of several counts. `parts` are the seconds
of one sync taken apart; in a real sync the trainer's probe and fingerprint overlap with the engine's work. An adapter
(LoRA, rank 32) is measured in the same way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import torch

from benchmarks.common import parser, report, run_main
from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import EngineSpec
from introspect_ray.actors.weight_sync import Tolerance, expect, pack, probe_tolerance, verify
from introspect_ray.actors.weight_transfer import ObjectStoreTransfer
from introspect_ray.cases.probes import Probe, ProbePlan, prompts_of
from introspect_ray.config import load_config
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.policy import BUNDLED, add_lora
from introspect_ray.records import TokenizedCase
from introspect_ray.runs.cluster import connect

NAME, GOAL, RANK = "sync", "<= 3", 32
ORGANISM = BUNDLED["organism"]
LONG = tuple(range(200, 350))  # token ids of a prompt as long as a Hint-MMLU case; the probe takes a part of it
CASE = TokenizedCase("probe", ("A", "B"), ((330,), (331,)), LONG, (*LONG[:-4], 7, 8, 9, 10), (5, 6), {})
PROBE = ProbePlan([CASE], np.arange(49152) < 2000, load_config(None, {}).rollout.probe_tokens, seed=0).at(0)


class Trainer:
    """What a transfer asks of a learner, around a plain transformers model whose tensors lie ready."""

    def __init__(self, folder: str, method: str) -> None:
        from transformers import AutoModelForCausalLM

        self.method = method
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if method == "lora":
            self.model = add_lora(self.model, RANK, seed=0).eval()
        self.tensors = self._tensors()
        self.move(scale=0.02)

    def _tensors(self) -> dict[str, torch.Tensor]:
        if self.method == "full":
            return dict(self.model.state_dict())
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

    @torch.no_grad()
    def move(self, scale: float = 1e-3) -> None:
        """Make another version of the weights: change every matrix in place."""
        for tensor in self.tensors.values():
            if tensor.ndim == 2:
                tensor.add_(torch.randn(tensor.shape[1]) * scale)

    def weights(self) -> dict[str, torch.Tensor]:
        return self.tensors

    def adapter_config(self) -> dict[str, object]:
        config = self.model.peft_config["default"].to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}

    @torch.no_grad()
    def probe(self, probe: Probe) -> tuple[float, ...]:
        """One forward per prompt; the learner packs them."""
        found: list[float] = []
        for prompt, asked in zip(*prompts_of(probe)):
            logits = self.model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
            found += logits.log_softmax(-1)[list(asked)].tolist()
        return tuple(found)


def make_policy(folder: str, layers: int) -> None:
    """SmolLM2-135M's architecture with random weights; the tokenizer beside it is never used."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ORGANISM / name, folder)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def memcpy_seconds(tensors: dict[str, torch.Tensor], repeats: int) -> tuple[float, int]:
    """Fastest copy of the distinct tensors into touched memory, and their bytes."""
    distinct = list({t.data_ptr(): t for t in tensors.values()}.values())
    copies = [torch.ones_like(t) for t in distinct]

    def copy() -> None:
        for target, source in zip(copies, distinct):
            target.copy_(source)

    seconds = min(timed(copy)[0] for _ in range(repeats))
    return seconds, sum(t.numel() * t.element_size() for t in distinct)


def measure(folder: str, method: str, repeats: int) -> tuple[float, dict[str, float], Trainer]:
    """On a new engine: seconds of the fastest verified sync, seconds of one sync by part, and the trainer."""
    cfg = load_config(None, {"method": method, "lora_rank": RANK, "output_dir": folder})
    connect(cfg)
    pool = RolloutPool(cfg, EngineSpec(folder, 256, method, RANK, 0), [])
    trainer, probe = Trainer(folder, method), PROBE
    tolerance = probe_tolerance(cfg)
    transfer = ObjectStoreTransfer(method, pool, 0, tolerance)

    def sync(version: int) -> None:
        sent = transfer.send(trainer, version, probe)
        verify(sent.expected, ray.get(sent.receipts))

    seconds = []
    for version in range(1, repeats + 1):
        seconds.append(timed(lambda version=version: sync(version))[0])
        print(f"{method} sync {version}: {seconds[-1]:.3f} s", flush=True)
        trainer.move()
    rows = [taken_apart(trainer, pool, repeats + 1 + i, probe, tolerance) for i in range(repeats)]
    pool.close()
    return min(seconds), {part: min(row[part] for row in rows) for part in rows[0]}, trainer


def taken_apart(trainer: Trainer, pool: RolloutPool, version: int, probe: Probe, tolerance: Tolerance) -> dict:
    """Seconds of each part of a sync, in turn. engine_*: by the engine itself; "message": the call around it."""
    kind, config = ("adapter", trainer.adapter_config()) if trainer.method == "lora" else ("full", None)
    update = WeightUpdate(version, kind, trainer.weights(), probe, config)
    packing, packed = timed(lambda: pack(update))
    putting, stored = timed(lambda: ray.put(packed))
    loading, (receipt,) = timed(lambda: ray.get(pool.load_weights(stored)))
    marking, _ = timed(lambda: fingerprints(update.tensors))
    probing, expected = timed(lambda: trainer.probe(probe))
    verify(expect(update, expected, tolerance), [receipt])
    engine = {f"engine_{part}": value for part, value in receipt.seconds.items()}
    own = {"pack": packing, "put": putting, "trainer_fingerprint": marking, "trainer_probe": probing}
    return {**own, **engine, "message": loading - sum(receipt.seconds.values())}


def main() -> None:
    arguments = parser(__doc__)  # --small: 2 of the 30 layers
    arguments.add_argument("--repeats", type=int, default=6)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_policy(folder, 2 if args.small else 30)
        full_s, parts, trainer = measure(folder, "full", args.repeats)
        memcpy_s, size = memcpy_seconds(trainer.tensors, args.repeats)
        adapter_s, adapter_parts, adapter = measure(folder, "lora", args.repeats)
    report(
        NAME,
        full_s / memcpy_s,
        GOAL,
        full_s=full_s,
        memcpy_s=memcpy_s,
        bytes=size,
        adapter_bytes=sum(t.numel() * t.element_size() for t in adapter.tensors.values()),
        adapter_s=adapter_s,
        parts=parts,
        adapter_parts=adapter_parts,
    )


if __name__ == "__main__":
    run_main(main)
