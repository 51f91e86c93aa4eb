"""TransformersEngine: the Engine protocol on plain transformers, for machines without vLLM and to check vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from introspect_ray.cases.answers import Tokens
from introspect_ray.config import RolloutConfig
from introspect_ray.engines import checks
from introspect_ray.engines.determinism import NOT_IN_TRANSFORMERS, use_deterministic_algorithms
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.engines.versioned_engine import VersionedEngine

if TYPE_CHECKING:
    import torch

_BATCH = 64  # prompts per forward; a constant, so that the batch of a prompt depends on the call alone


class TransformersEngine(VersionedEngine):
    """The Engine protocol on transformers with SDPA."""

    def __init__(
        self,
        policy_path: str,
        rollout: RolloutConfig,
        max_model_len: int,
        method: Literal["full", "lora"],
        lora_rank: int,
        seed: int,
        deterministic: bool = False,
    ) -> None:
        """Arguments as for VLLMEngine. `seed` is unused: nothing is sampled, and an adapter comes with an update."""
        if deterministic:
            use_deterministic_algorithms()
            self._shortfall = NOT_IN_TRANSFORMERS
        import torch
        from transformers import AutoModelForCausalLM

        super().__init__(policy_path, max_model_len, method, lora_rank)
        self._adapter_config: dict[str, object] | None = None
        torch.set_num_threads(rollout.threads)
        self._device = torch.device("cuda" if rollout.num_gpus and torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, rollout.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(
            policy_path, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
        self._model: Any = model.to(self._device).eval()

    def rest(self) -> None:
        """Nothing to do: this engine shares its GPU with no trainer (ipc is vLLM's)."""

    def generate(self, prompts: Sequence[Tokens], max_tokens: int) -> list[Tokens]:
        """Greedy continuations without the end-of-turn token, at most `max_tokens` each. Raises as label_pairs."""
        import torch
        from transformers import GenerationConfig

        self._require_usable()
        checks.check_prompts(prompts, max_tokens, self._max_model_len)
        # a new config: that of the folder may ask for penalties or sampling
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(self._eos),
            pad_token_id=self._eos[0],
        )
        out: list[Tokens] = []
        for start in range(0, len(prompts), _BATCH):
            tokens_BT, mask_BT = self._left_padded(prompts[start : start + _BATCH])
            with torch.inference_mode():
                full_BT = self._model.generate(input_ids=tokens_BT, attention_mask=mask_BT, generation_config=config)
            out += [self._until_eos(row) for row in full_BT[:, tokens_BT.shape[1] :].tolist()]
        return out

    def close(self) -> None:
        super().close()
        self._model = None

    def _apply(self, update: WeightUpdate) -> None:
        if update.kind == "full":
            self._model.load_state_dict(dict(update.tensors))
        else:
            self._load_adapter(update)

    def _load_adapter(self, update: WeightUpdate) -> None:
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

        config = dict(update.adapter_config or {})
        if self._adapter_config != config:  # the first adapter, or one of another rank
            if self._adapter_config is not None:
                self._model = self._model.unload()
            self._model = get_peft_model(self._model, PeftConfig.from_peft_type(**config)).eval()
            self._adapter_config = config
        set_peft_model_state_dict(self._model, dict(update.tensors))

    def _next_tokens(
        self, prompts: Sequence[Tokens], asked: Sequence[Tokens], keep: bool = False
    ) -> list[checks.NextToken]:
        import torch

        answers: list[checks.NextToken] = []
        for start in range(0, len(prompts), _BATCH):
            tokens_BT, mask_BT = self._left_padded(prompts[start : start + _BATCH])
            positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits_BV = self._model(
                    input_ids=tokens_BT,
                    attention_mask=mask_BT,
                    position_ids=positions_BT,
                    logits_to_keep=1,
                    use_cache=False,
                ).logits[:, -1]
                logprobs_BV = logits_BV.float().log_softmax(-1)
            free_B = logprobs_BV.argmax(-1).tolist()
            for row, free, ids in zip(logprobs_BV.cpu(), free_B, asked[start : start + _BATCH], strict=True):
                answers.append(checks.NextToken(tuple(row[list(ids)].tolist()), free))
        return answers

    def _left_padded(self, prompts: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 tokens [batch, time] and mask, padded on the left: the last column holds all answer positions."""
        import torch

        width = max(len(prompt) for prompt in prompts)
        rows = [(0,) * (width - len(prompt)) + tuple(prompt) for prompt in prompts]
        masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(rows, device=self._device), torch.tensor(masks, device=self._device)

    def _until_eos(self, tokens: Sequence[int]) -> tuple[int, ...]:
        end = next((i for i, token in enumerate(tokens) if token in self._eos), len(tokens))
        return tuple(tokens[:end])
