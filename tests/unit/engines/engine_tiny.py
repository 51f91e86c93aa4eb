"""Tiny random policies (two layers, width 64, head size 32, 64 tokens) and cases for the tests of engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from introspect_ray.records import TokenizedCase

if TYPE_CHECKING:
    import torch

VOCAB, EOS, LABELS = 64, 5, (10, 11, 12, 13)


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
