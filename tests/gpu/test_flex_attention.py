"""FlexAttention on a CUDA device trains as SDPA does: the same logits, loss and gradients.

The model is sharded by FSDP2, as in every run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from learner_helpers import make_labels, make_pairs, make_texts, with_free_text, with_words

from introspect_ray.cases.probes import case_item
from introspect_ray.config import RunConfig
from introspect_ray.policy import BUNDLED
from introspect_ray.records import TokenizedCase
from introspect_ray.training.fsdp import full_value
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

pytestmark = pytest.mark.gpu
VARIANTS = {
    "full": {},
    "one long row": {"train": {"token_budget": 8192}},
    "checkpointing": {"train": {"activation_checkpointing": "layers"}},
    "lora": {"method": "lora", "lora_rank": 4},
    "responses": {"loss_normalisation": "sequence"},  # words, free text and auxiliary texts
    "live responses": {"method": "lora", "lora_rank": 4, "train": {"reference": "live"}},
    "bfloat16": {"train": {"dtype": "bfloat16", "activation_checkpointing": "layers"}},  # as cluster/h100.yaml
}


@pytest.fixture(autouse=True)
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The organism, and two small random policies with grouped-query attention. Triton needs heads of 16 or more."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("policies")
    common = {
        "vocab_size": 456, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**common)).save_pretrained(folder / "qwen3")
    LlamaForCausalLM(LlamaConfig(**common)).save_pretrained(folder / "llama")
    paths = {kind: str(folder / kind) for kind in ("qwen3", "llama")}
    return {**paths, "organism": str(BUNDLED["organism"])}


def with_responses(cases: list[TokenizedCase]) -> list[TokenizedCase]:
    """Letters, words and free text in turn; tokens below 61 are in every vocabulary here."""
    kinds = (lambda case: case, with_words, with_free_text)
    return [kinds[i % 3](case) for i, case in enumerate(cases)]


def two_steps(
    attention: str, variant: str, policy: str, reference: str, cases: list[TokenizedCase]
) -> tuple[list[dict[str, float]], list[tuple[float, ...]], dict[str, torch.Tensor]]:
    """The metrics of two steps, and the label logprobs and gradients of the second one.

    In the first step LoRA's A has no gradient.
    """
    changes = VARIANTS[variant]
    train = {"token_budget": 1024, "max_grad_norm": 1e9, "use_gpu": True, "attention": attention}
    config = {
        "learning_rate": 1e-4,
        "batch_size": len(cases),
        **changes,
        "train": {**train, **changes.get("train", {})},
    }
    learner = Learner(
        RunConfig.model_validate(config), policy, reference, {case.case_id: case for case in cases}, device="cuda"
    )
    gradients: dict[str, torch.Tensor] = {}

    def keep(optimizer: object, args: object, kwargs: object) -> None:
        named = learner.module.model.named_parameters()
        gradients.update({name: full_value(p.grad.detach()).clone() for name, p in named if p.grad is not None})

    learner.optimizer.register_step_pre_hook(keep)
    labels, m0 = make_labels(cases), make_pairs(cases)
    texts = make_texts(5) if "responses" in variant else []
    metrics = []
    for _ in range(2):
        learner.probe((case_item(cases[0]),))  # a short row, without gradient
        learner.label_pairs([case for case in cases if not case.max_response], 0)
        metrics.append(learner.step(labels, m0, texts))
    logprobs = [side for case in cases for side in learner.last_logprobs[case.case_id]]
    return metrics, logprobs, gradients


@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["qwen3", "llama", "organism"])
def test_flex_trains_as_sdpa(kind, variant, cases, policies, tmp_path: Path):
    """In float32 without TF32, torch's default.

    Beyond the limit on compilations torch would compute the whole score matrix; here it raises instead.
    """
    assert torch.get_float32_matmul_precision() == "highest"
    dtype = VARIANTS[variant].get("train", {}).get("dtype", "float32")
    m0 = str(BUNDLED["organism:second"])  # any policy of this vocabulary
    cases = with_responses(cases) if "responses" in variant else cases
    reference = build_reference(m0, cases, make_pairs(cases), str(tmp_path), dtype)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        ours = two_steps("flex", variant, policies[kind], reference, cases)
    close = 1e-3 if dtype == "float32" else 0.1
    theirs = two_steps("sdpa", variant, policies[kind], reference, cases)
    for a, b in zip(ours[0], theirs[0], strict=True):
        for name in ("loss", "cross_entropy", "kl", "grad_norm", *(["auxiliary"] if "responses" in variant else [])):
            assert a[name] == pytest.approx(b[name], rel=close, abs=1e-5), name  # a live KL begins with 0
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a == pytest.approx(b, abs=1e-3 if dtype == "float32" else 0.2)
    assert ours[2].keys() == theirs[2].keys() and len(ours[2]) > 10
    for name, expected in theirs[2].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours[2][name], expected, rtol=close, atol=close * scale, msg=name)
