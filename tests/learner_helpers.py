"""Tiny random policies and cases, and cases of the organism, for the tests of the learner."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import RunConfig, TaskConfig
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.policy import BUNDLED, load_tokenizer
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, TokenizedCase
from introspect_ray.tasks import load_cases
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import Reference

VOCAB = 61
LETTERS = ("A", "B", "C", "D")
LETTER_IDS = (10, 11, 12, 13)
END = 2


def explanations() -> dict[Explanation, tuple[int, ...]]:
    """The tokens of "would change to X ." are 20 21 22 x 26 2, of "would not change from X ." 20 23 21 24 x 26 2."""
    made: dict[Explanation, tuple[int, ...]] = {}
    for letter, token in zip(LETTERS, LETTER_IDS, strict=True):
        made[Explanation(True, letter)] = (20, 21, 22, token, 26, END)
        made[Explanation(False, letter)] = (20, 23, 21, 24, token, 26, END)
    return made


def make_cases(count: int, seed: int = 0, stem: tuple[int, int] = (5, 14)) -> list[TokenizedCase]:
    """Cases with x = 1 <stem> 3 <letter> 4, where "3 <letter>" is the cue; in q, the question stands before the 4.

    stem: the least and the most tokens of <stem>.
    """
    rng = random.Random(seed)
    cases = []
    for i in range(count):
        body = (1, *(rng.randrange(30, VOCAB) for _ in range(rng.randint(*stem))))
        cue = (3, rng.choice(LETTER_IDS))
        question = (*body, *cue, 5, 6, 7, 4)
        cases.append(
            TokenizedCase(
                f"case-{i}",
                LETTERS,
                tuple((i,) for i in LETTER_IDS),
                (*body, *cue, 4),
                (*body, 4),
                question,
                explanations(),
            )
        )
    return cases


@cache
def organism_cases(count: int) -> list[TokenizedCase]:
    """The first training cases of the organism."""
    tokenizer = load_tokenizer(str(BUNDLED["organism"]))
    return [tokenize_case(case, tokenizer) for case in islice(load_cases(TaskConfig())[0], count)]


def make_model(kind: str = "qwen3", tied: bool = True, layers: int = 2, hidden: int = 32) -> PreTrainedModel:
    torch.manual_seed(0)
    common = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,  # large enough for peaked, distinct predictions
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": END,
    }
    return Qwen3ForCausalLM(Qwen3Config(**common)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**common))


def save_model(folder: Path, kind: str = "qwen3", tied: bool = True) -> str:
    make_model(kind, tied).save_pretrained(folder)
    return str(folder)


def make_labels(cases: Sequence[TokenizedCase], seed: int = 0) -> list[Label]:
    """A random explanation for each case."""
    rng = random.Random(seed)
    how = Provenance("fixed", "tiny", 0, 0, seed, -1, False, float("nan"))
    return [Label(case.case_id, rng.choice(list(case.explanations)), None, how) for case in cases]


def make_pairs(cases: Sequence[TokenizedCase]) -> dict[str, BehaviorPair]:
    """A pair per case that answers with its first label on x and with its second on x∖C."""
    return {c.case_id: BehaviorPair(c.case_id, *c.labels[:2], (), (), False, False, 0) for c in cases}


def make_config(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"learning_rate": 1e-2, "batch_size": 8, **changes})


def weight_update(learner: Learner, version: int, probe: TokenizedCase) -> WeightUpdate:
    """The learner's current weights, as the trainer sends them to engines."""
    tensors = learner.weights()
    assert tensors is not None
    if learner.cfg.method == "full":
        return WeightUpdate(version, "full", tensors, probe)
    return WeightUpdate(version, "adapter", tensors, probe, learner.adapter_config())


def pair_logprobs(pair: BehaviorPair) -> tuple[float, ...]:
    return pair.cued_logprobs + pair.ablated_logprobs


def assert_same_pairs(ours: Sequence[BehaviorPair], theirs: Sequence[BehaviorPair]) -> None:
    """Labels, flags and versions are equal, logprobs within float32 rounding."""
    for a, b in zip(ours, theirs, strict=True):
        assert pair_logprobs(a) == pytest.approx(pair_logprobs(b), abs=1e-4)
        for name in ("case_id", "cued", "ablated", "cued_off_format", "ablated_off_format", "weight_version"):
            assert getattr(a, name) == getattr(b, name), (name, a, b)


def reference_logprobs(where: str, case_ids: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """M0's natural logprobs [B, V] at x and at x∖C, from the reference that build_reference wrote to `where`."""
    rows = Reference.open(where).rows(case_ids)
    cued, ablated = rows.head.logits(rows.hidden_2BH).log_softmax(-1).chunk(2)
    return cued, ablated


def resident_kb(file: Path) -> int:
    """The resident memory of this process that maps `file`, in KiB."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found
