"""What the parts of benchmarks.gpu work on: a device, random policies of a real shape, and cases of real lengths.

Nothing is downloaded. How long a forward takes does not depend on what the weights and tokens are, so both are random.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from introspect_ray.config import RunConfig
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, TokenizedCase

# Tokens of x∖C of 32 MMLU questions (benchmarks/data), as SmolLM2's tokenizer reads them.
LENGTHS = (
    108, 130, 85, 96, 81, 105, 143, 134, 114, 105, 112, 150, 80, 147, 362, 89,
    147, 83, 83, 112, 144, 146, 154, 76, 219, 261, 482, 320, 257, 249, 94, 260,
)  # fmt: skip
CUE, META, TARGET = 5, 15, 9  # tokens of the hint, of the question how the answer would change, of an explanation
LETTERS = "ABCD"

EXACT = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Qwen3-0.6B's: large enough to keep a GPU busy, and its Adam state is 10 GB.
REAL = EXACT | {
    "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "initializer_range": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """folder: for policies and references. exact: a small policy on which float32 references are affordable; second:
    another one of its shape. policy: the one that is timed."""

    device: torch.device
    dtype: str  # in which `policy` is timed
    folder: str
    exact: str
    second: str
    policy: str
    batch: int  # cases per step
    steps: int  # that are timed
    token_budget: int
    shorten: int  # the cases' lengths are divided by it

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def config(self, dtype: str | None = None, **train: Any) -> RunConfig:
        """The configuration of a learner on this device. train: further keys of its section `train`."""
        section = {"use_gpu": self.on_gpu, "dtype": dtype or self.dtype, "token_budget": self.token_budget, **train}
        return RunConfig.model_validate({"learning_rate": 1e-5, "batch_size": self.batch, "train": section})

    def cases(self, count: int, policy: str, seed: int = 0) -> list[TokenizedCase]:
        """`count` cases of real lengths, of random tokens that `policy` (one of the three) knows."""
        vocabulary, rng = self.shape(policy)["vocab_size"], random.Random(seed)
        lengths = [LENGTHS[i % len(LENGTHS)] // self.shorten + rng.randrange(-4, 5) for i in range(count)]
        return [_case(f"case-{i}", length, vocabulary, rng) for i, length in enumerate(lengths)]

    def shape(self, policy: str) -> dict[str, Any]:
        """The keys of the configuration of one of the three policies."""
        return REAL if policy not in (self.exact, self.second) else EXACT

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        """Most bytes of the GPU's memory that tensors took since the last `reset_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated() if self.on_gpu else None

    def reset_peak(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def make_setting(folder: str, small: bool) -> Setting:
    """The setting of this machine; its policies are written to `folder` unless they are there. small: on the CPU."""
    device = torch.device("cpu" if small else "cuda:0")
    exact, second = _policy(Path(folder, "exact"), EXACT, 0), _policy(Path(folder, "second"), EXACT, 1)
    if small:
        return Setting(device, "float32", folder, exact, second, exact, 4, 2, 512, 4)
    return Setting(device, "bfloat16", folder, exact, second, _policy(Path(folder, "real"), REAL, 2), 32, 8, 16384, 1)


@contextmanager
def one_rank(setting: Setting) -> Iterator[None]:
    """On a GPU the learner is sharded by FSDP2, in a group of one rank, as Ray Train makes it with train.offload."""
    if not setting.on_gpu:
        yield
        return
    torch.cuda.set_device(setting.device)
    store = Path(setting.folder, "rendezvous")
    store.unlink(missing_ok=True)
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def labels_of(cases: Sequence[TokenizedCase]) -> list[Label]:
    """An explanation for each case, in turn."""
    how = Provenance("fixed", "random", 0, 0, 0, -1, False, float("nan"))
    return [Label(c.case_id, list(c.explanations)[i % len(c.explanations)], None, how) for i, c in enumerate(cases)]


def pairs_of(cases: Sequence[TokenizedCase]) -> dict[str, BehaviorPair]:
    """Stand-ins for M0's pairs: of labels of one token they feed metrics alone."""
    return {c.case_id: BehaviorPair(c.case_id, "A", "B", (0.0,) * 4, (0.0,) * 4, False, False, 0) for c in cases}


def _case(name: str, length: int, vocabulary: int, rng: random.Random) -> TokenizedCase:
    """x = stem cue end, x∖C = stem end, q = stem cue meta end; the tokens 10 to 13 are the letters."""

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(30, vocabulary) for _ in range(count))

    stem, cue, meta, end = some(length - 4), some(CUE), some(META), (3, 4, 5, 6)
    spoken = {
        Explanation(changed, letter): (20 + changed, *range(22, 22 + TARGET - 3), 10 + i, 2)
        for i, letter in enumerate(LETTERS)
        for changed in (True, False)
    }
    label_tokens = tuple((10 + i,) for i in range(len(LETTERS)))
    prompts = (*stem, *cue, *end), (*stem, *end), (*stem, *cue, *meta, *end)
    return TokenizedCase(name, tuple(LETTERS), label_tokens, *prompts, spoken)


def _policy(folder: Path, shape: dict[str, Any], seed: int) -> str:
    """A random policy of this shape in `folder`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(folder)
    return str(folder)
