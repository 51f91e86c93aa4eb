"""Tiny random policies (two layers, width 64, head size 32, 64 tokens) and cases for the tests of engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from introspect_ray.records import BehaviorPair, Explanation, TokenizedCase

if TYPE_CHECKING:
    import torch

VOCAB, EOS, LABELS = 64, 5, (10, 11, 12, 13)
TOLERANCE = 1e-4  # of a natural-log probability, float32


def save_policy(folder: Path, family: str = "qwen3", tied: bool = True, seed: int = 0, positions: int = 256) -> str:
    """Save a random float32 policy, with weights wide enough for peaked distributions; returns its path."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_cls, model_cls = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    config = config_cls(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=positions, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=EOS, pad_token_id=0, initializer_range=0.25,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = model_cls(config).float()
    model.save_pretrained(folder)
    return str(folder)


def make_cases(count: int, length: int = 40, seed: int = 0) -> list[TokenizedCase]:
    """Cases of different lengths: x is a stem, a cue of four tokens and an end; x∖C is the same without the cue."""
    import random

    rng = random.Random(seed)

    def random_tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(14, VOCAB) for _ in range(n))

    cases = []
    for index in range(count):
        stem, cue, end = random_tokens(length + index % 7), random_tokens(4), random_tokens(3)
        cases.append(
            TokenizedCase(
                f"case-{index}",
                ("A", "B", "C", "D"),
                tuple((i,) for i in LABELS),
                stem + cue + end,
                stem + end,
                stem + cue + end,
                {},
            )
        )
    return cases


def label_ids(case: TokenizedCase) -> list[int]:
    """The tokens of labels that have one each."""
    return [token for (token,) in case.label_tokens]


def assert_serves(engine: Any, cases: Sequence[TokenizedCase], expected: Any) -> list[BehaviorPair]:
    """Labels, label logprobs and off-format flags of `cases` are those of expected(prompts): [n, vocab]."""
    import torch

    pairs = engine.label_pairs(cases)
    assert [pair.case_id for pair in pairs] == [case.case_id for case in cases]
    for side, prompts in (("cued", [c.prompt for c in cases]), ("ablated", [c.ablated for c in cases])):
        for case, pair, row in zip(cases, pairs, expected(prompts), strict=True):
            want = row[label_ids(case)]
            got = getattr(pair, f"{side}_logprobs")
            torch.testing.assert_close(torch.tensor(got), want, atol=TOLERANCE, rtol=0)
            assert getattr(pair, side) == case.labels[int(want.argmax())]
            assert getattr(pair, f"{side}_off_format") == (int(row.argmax()) not in label_ids(case))
            assert pair.weight_version == engine.weight_version
    return pairs


# Sets of labels of several tokens: NTA/YTA-like with a shared end, and one, two and three tokens mixed.
TRIES = (
    (("NTA", "YTA"), ((10, 12), (11, 12))),
    (("A", "BC", "BDE", "BDF"), ((10,), (11, 12), (11, 13, 10), (11, 13, 14))),
)


def make_trie_cases(count: int) -> list[TokenizedCase]:
    """As make_cases, with label sets of several tokens and of one in turn."""
    cases = make_cases(count)
    for index in range(0, count, 3):
        for offset, (labels, tokens) in enumerate(TRIES):
            if index + offset < count:
                cases[index + offset] = replace(cases[index + offset], labels=labels, label_tokens=tokens)
    return cases


def assert_reads_tries(engine: Any, cases: Sequence[TokenizedCase], folder: str, tensors: dict[str, Any]) -> None:
    """Labels, logprobs and off-format flags are those of one plain forward over prompt + label per label.

    A label's logprob is the sum over its tokens. The greedy label is found by walking: among the labels that agree with
    the tokens chosen so far, the likeliest next token.
    """
    for case, pair in zip(cases, engine.label_pairs(cases), strict=True):
        assert (pair.case_id, pair.weight_version) == (case.case_id, engine.weight_version)
        for side, prompt in (("cued", case.prompt), ("ablated", case.ablated)):
            prefixes = sorted({label[:n] for label in case.label_tokens for n in range(len(label))})
            rows = reference_logprobs(folder, tensors, [prompt + prefix for prefix in prefixes])
            after = dict(zip(prefixes, rows, strict=True))
            sums = [sum(float(after[t[:n]][t[n]]) for n in range(len(t))) for t in case.label_tokens]
            assert getattr(pair, f"{side}_logprobs") == pytest.approx(sums, abs=3e-4)
            chosen: tuple[int, ...] = ()
            left_labels = False
            while chosen not in case.label_tokens:
                next_tokens = {t[len(chosen)] for t in case.label_tokens if t[: len(chosen)] == chosen}
                left_labels |= int(after[chosen].argmax()) not in next_tokens
                chosen += (max(next_tokens, key=lambda token: float(after[chosen][token])),)
            assert getattr(pair, side) == case.labels[case.label_tokens.index(chosen)]
            assert getattr(pair, f"{side}_off_format") == left_labels


def explained_cases(count: int) -> list[TokenizedCase]:
    """As make_cases, with explanations that part after 20, and again before their label."""
    heads = {True: (20, 21, 22), False: (20, 23, 21, 24)}
    explanations = {
        Explanation(changed, label): (*head, token, 26, EOS)
        for changed, head in heads.items()
        for label, token in zip("ABCD", LABELS, strict=True)
    }
    return [replace(case, question=(*case.prompt, 30, 31), explanations=explanations) for case in make_cases(count)]


def assert_explains(
    found: Sequence[tuple[int, ...]], cases: Sequence[TokenizedCase], folder: str, tensors: Any
) -> None:
    """`found` is what plain greedy decoding writes that may write at each token only what a valid explanation goes on
    with: a full forward per token."""
    for case, tokens in zip(cases, found, strict=True):
        written: tuple[int, ...] = ()
        while written not in case.explanations.values():
            valid = {e[len(written)] for e in case.explanations.values() if e[: len(written)] == written}
            (row,) = reference_logprobs(folder, tensors, [case.question + written])
            written += (max(sorted(valid), key=lambda token: float(row[token])),)
        assert tokens == written[:-1]


def state(folder: str, seed: int = 0, scale: float = 0.0) -> dict[str, torch.Tensor]:
    """The state_dict() of the policy in `folder`, tied head included, plus seeded noise of `scale`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # a tied head gets the noise of its embedding
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def reference_logprobs(folder: str, tensors: dict[str, torch.Tensor], prompts: list[tuple[int, ...]]) -> torch.Tensor:
    """float32 [prompts, VOCAB]: log-softmax at the last position, by one unpadded forward per prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        return torch.stack([model(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts])


def reference_greedy(
    folder: str, tensors: dict[str, torch.Tensor], prompts: list[tuple[int, ...]], max_tokens: int
) -> list[tuple[int, ...]]:
    """Greedy continuations by argmax, one unpadded forward per token; they end before the policy's eos token."""
    import json

    import torch
    from transformers import AutoModelForCausalLM

    eos = json.loads((Path(folder) / "config.json").read_text())["eos_token_id"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_state_dict(tensors)
    out = []
    with torch.no_grad():
        for prompt in prompts:
            tokens: list[int] = []
            while len(tokens) < max_tokens:
                token = int(model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].argmax())
                if token == eos:
                    break
                tokens.append(token)
            out.append(tuple(tokens))
    return out


def peft_adapter(folder: str, seed: int, rank: int):
    """A LoRA adapter with random A and B on all linear layers, α = r.

    Returns its PEFT state, its adapter_config.json, and a function from prompts to float32 [prompts, VOCAB], the
    log-softmax at their last positions.
    """
    import json
    import tempfile

    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero, and an adapter that changes nothing would test nothing
            torch.nn.init.normal_(parameter, std=0.2)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        written = json.loads((Path(saved) / "adapter_config.json").read_text())
    tensors = {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(model).items()}

    def expected(prompts):
        with torch.no_grad():
            return torch.stack([model(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts])

    return tensors, written, expected
