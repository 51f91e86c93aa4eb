"""Tiny random policies and cases for the learner's tests."""

from __future__ import annotations

import random
import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from introspect_ray.config import RunConfig
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, TokenizedCase
from introspect_ray.train.reference import Reference

VOCAB = 61
LETTERS = ("A", "B", "C", "D")
LETTER_IDS = (10, 11, 12, 13)
END = 2


def explanations() -> dict[Explanation, tuple[int, ...]]:
    """ "would change to X ." is 20 21 22 x 26 2; "would not change from X ." is 20 23 21 24 x 26 2."""
    made: dict[Explanation, tuple[int, ...]] = {}
    for letter, token in zip(LETTERS, LETTER_IDS, strict=True):
        made[Explanation(True, letter)] = (20, 21, 22, token, 26, END)
        made[Explanation(False, letter)] = (20, 23, 21, 24, token, 26, END)
    return made


def make_cases(count: int, seed: int = 0, stem: tuple[int, int] = (5, 14)) -> list[TokenizedCase]:
    """Chats 1 <stem> [3 <letter>] 4 (the cue is "3 <letter>"); q continues x before its last token."""
    rng = random.Random(seed)
    cases = []
    for i in range(count):
        body = (1, *(rng.randrange(30, VOCAB) for _ in range(rng.randint(*stem))))
        cue = (3, rng.choice(LETTER_IDS))
        question = (*body, *cue, 5, 6, 7, 4)
        cases.append(
            TokenizedCase(f"case-{i}", LETTERS, LETTER_IDS, (*body, *cue, 4), (*body, 4), question, explanations())
        )
    return cases


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


def make_labels(cases: list[TokenizedCase], seed: int = 0) -> list[Label]:
    rng = random.Random(seed)
    how = Provenance("fixed", "tiny", 0, 0, seed, -1, False, float("nan"))
    return [Label(case.case_id, rng.choice(list(case.explanations)), None, how) for case in cases]


def make_pairs(cases: list[TokenizedCase]) -> dict[str, BehaviorPair]:
    zeros = (0.0,) * len(LETTERS)
    return {c.case_id: BehaviorPair(c.case_id, "A", "B", zeros, zeros, False, False, 0) for c in cases}


def make_config(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"learning_rate": 1e-2, "batch_size": 8, **changes})


def reference_logprobs(where: str, case_ids: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """M0's natural logprobs [B, V] at x and at x∖C, by the reference that build_reference wrote."""
    rows = Reference.open(where).rows(case_ids)
    cued, ablated = rows.head.logits(rows.hidden_2BH).log_softmax(-1).chunk(2)
    return cued, ablated


def resident_kb(file: Path) -> int:
    """Memory of this process that the mappings of `file` occupy."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found
