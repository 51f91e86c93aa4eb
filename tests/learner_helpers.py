"""Tiny random policies and cases, and cases of the organism, for the tests of the learner."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from introspect_ray.cases.probes import case_item
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import RunConfig, TaskConfig
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.policy import BUNDLED, load_tokenizer
from introspect_ray.records import AuxiliaryText, BehaviorPair, Explanation, Label, Provenance, TokenizedCase
from introspect_ray.tasks import load_cases
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import Reference

VOCAB = 61
LETTERS = ("A", "B", "C", "D")
LETTER_IDS = (10, 11, 12, 13)
WORDS = {"NTA": (14, 15), "YTA": (16, 15), "ESH": (16, 17, 18)}  # labels of several tokens
VERDICTS = {"refuse": (27, 28), "comply": (29,)}  # how the labels of free text are written in explanations
MAX_RESPONSE = 3  # of free text
END = 2


def explanations(labels: Mapping[str, tuple[int, ...]]) -> dict[Explanation, tuple[int, ...]]:
    """The tokens of "would change to X ." are 20 21 22 x 26 2, of "would not change from X ." 20 23 21 24 x 26 2."""
    made: dict[Explanation, tuple[int, ...]] = {}
    for label, tokens in labels.items():
        made[Explanation(True, label)] = (20, 21, 22, *tokens, 26, END)
        made[Explanation(False, label)] = (20, 23, 21, 24, *tokens, 26, END)
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
                explanations(dict(zip(LETTERS, ((i,) for i in LETTER_IDS), strict=True))),
            )
        )
    return cases


def with_words(case: TokenizedCase) -> TokenizedCase:
    """The case with WORDS as its labels."""
    return replace(case, labels=tuple(WORDS), label_tokens=tuple(WORDS.values()), explanations=explanations(WORDS))


def with_free_text(case: TokenizedCase) -> TokenizedCase:
    """The case answered in free text of at most MAX_RESPONSE tokens."""
    return replace(
        case, labels=tuple(VERDICTS), label_tokens=(), explanations=explanations(VERDICTS), max_response=MAX_RESPONSE
    )


def make_response_cases(count: int) -> list[TokenizedCase]:
    """Letters, words and free text in turn."""
    kinds = (lambda case: case, with_words, with_free_text)
    return [kinds[i % 3](case) for i, case in enumerate(make_cases(count))]


def make_texts(count: int) -> list[AuxiliaryText]:
    """Auxiliary texts of 2 to 20 random tokens, of which some are targets."""
    rng = random.Random(1)
    texts = []
    for i in range(count):
        tokens = tuple(rng.randrange(30, VOCAB) for _ in range(rng.randint(2, 20)))
        targets = (False, *(rng.random() < 0.6 for _ in tokens[2:]), i % 2 == 0)
        texts.append(AuxiliaryText(f"text-{i}", tokens, targets))
    return texts


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
    """A pair per case. Letters: the first label on x and the second on x∖C; words and free text: all combinations."""
    return {case.case_id: _pair(case, i) for i, case in enumerate(cases)}


def _pair(case: TokenizedCase, i: int) -> BehaviorPair:
    """Responses of free text have 0 to 3 tokens; those of 3 were cut."""
    shift = 0 if all(len(tokens) == 1 for tokens in case.label_tokens) and case.label_tokens else i // 3
    cued, ablated = (case.labels[(shift + side) % len(case.labels)] for side in range(2))
    pair = BehaviorPair(case.case_id, cued, ablated, (), (), False, False, 0)
    if not case.max_response:
        return pair
    response = tuple(range(40 + i, 40 + i + MAX_RESPONSE))
    lengths = shift % (MAX_RESPONSE + 1), (shift + 2) % (MAX_RESPONSE + 1)
    return replace(pair, cued_response=response[: lengths[0]], ablated_response=response[: lengths[1]])


def make_config(**changes: object) -> RunConfig:
    return RunConfig.model_validate({"learning_rate": 1e-2, "batch_size": 8, **changes})


def weight_update(learner: Learner, version: int, case: TokenizedCase) -> WeightUpdate:
    """The learner's current weights, as the trainer sends them to engines, with a case as the probe."""
    probe = (case_item(case),)
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
    cued, ablated = rows.head.logits(rows.hidden_BH).log_softmax(-1).chunk(2)
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
