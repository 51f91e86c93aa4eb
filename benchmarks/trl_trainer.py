"""TRL's side of train_step.py: seconds of the same optimizer steps by one of its trainers. Not a benchmark of its own.

`gkd` is the nearest one (trl.experimental.gkd.GKDTrainer, lmbda=0, beta=0): a live teacher M0 and KL(M0 || M) on the
completions. On x and x∖C, with one answer token as completion, that is exactly our regulariser. On q + e it is KL to M0
again where we have cross-entropy, so it makes one teacher forward pass on q + e more than ours. `sft` (trl.SFTTrainer)
has cross-entropy on the completions of the same sequences and no reference, so it does less than ours. Its fused head
goes over the vocabulary in torch operations where there is no Triton. Both trainers average over all completion tokens.

Tokens, micro-batches (eight x, eight x∖C, eight q + e, padded by TRL's collator), dtype, learning rate, AdamW, gradient
clipping and threads are those of the usual loop. TRL's defaults of gradient checkpointing and bfloat16 are off, and so
are logging, saving and reporting. The first step, with the longest case, is not counted, nor is any set-up. GKD holds
about ten [tokens x vocabulary] matrices per micro-batch, 17 GB with SmolLM2-135M.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.common import peak_rss
from introspect_ray.policy import load_model
from introspect_ray.records import TokenizedCase

BATCH = 8
IGNORED = -100


def available() -> bool:
    """Whether TRL is installed (pip install '.[bench]')."""
    return all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


def sequences(cases: Sequence[TokenizedCase], explanations: Sequence[tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    """Examples of each step in turn: eight x, eight x∖C, eight q + e, with the tokens that are no completion masked."""
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        answered = [(case.prompt, case.label_tokens[0]) for case in part] + [
            (case.ablated, case.label_tokens[0]) for case in part
        ]
        explained = [(c.question, e) for c, e in zip(part, explanations[start : start + BATCH], strict=True)]
        for prompt, completion in answered + explained:
            labels = [IGNORED] * len(prompt) + list(completion)
            mask = [0] * len(prompt) + [1] * len(completion)
            yield {"input_ids": [*prompt, *completion], "labels": labels, "completion_mask": mask, "prompt": ""}


def make_trainer(kind: str, policy: str, examples: Sequence[dict[str, Any]], rate: float, folder: str) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    settings: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 1,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    model = load_model(policy, torch.float32)
    rest: dict[str, Any] = {"train_dataset": Dataset.from_list(list(examples)), "processing_class": tokenizer}
    if kind == "sft":
        return SFTTrainer(model, args=SFTConfig(**settings), **rest)
    # lmbda: share of completions sampled from the student; beta 0: KL(teacher || student)
    teacher = load_model(policy, torch.float32)
    return GKDTrainer(model, teacher, args=GKDConfig(lmbda=0.0, beta=0.0, **settings), **rest)


def measure(
    kind: str,
    policy: str,
    cases: Sequence[TokenizedCase],
    explanations: Sequence[tuple[int, ...]],
    rate: float,
) -> dict[str, float]:
    """Seconds (wall, CPU) of all optimizer steps but the first; loss on the first step's q + e with M0's weights."""
    import torch
    from transformers import TrainerCallback

    examples, ends = list(sequences(cases, explanations)), []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(kind, policy, examples, rate, folder)
        trainer.add_callback(Watch())
        explained = trainer.data_collator(examples[2 * BATCH : 3 * BATCH])
        with torch.no_grad():
            first = trainer.compute_loss(trainer.model, explained).item()
        trainer.train()
    wall, cpu = (last - begun for begun, last in zip(ends[0], ends[-1], strict=True))
    return {"wall_s": wall, "cpu_s": cpu, "steps": len(ends) - 1, "first_loss": first, "peak_mb": peak_rss() / 2**20}
