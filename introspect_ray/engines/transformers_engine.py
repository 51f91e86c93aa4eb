"""TransformersEngine: the Engine protocol on plain transformers, for machines without vLLM and as its check."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from introspect_ray.config import RolloutConfig
from introspect_ray.engines import checks
from introspect_ray.engines.base import WeightUpdate, checksum
from introspect_ray.records import BehaviorPair, Delivery, TokenizedCase

if TYPE_CHECKING:
    import torch

_BATCH = 64  # prompts a forward; a constant, so that a prompt's batch depends on the call alone


class TransformersEngine:
    """The Engine protocol on transformers with SDPA. Starts at version 0, the policy in `policy_path`.

    An exception inside a weight update leaves the weights undefined: every later call raises
    RuntimeError until the engine is replaced.
    """

    def __init__(
        self,
        policy_path: str,
        rollout: RolloutConfig,
        max_model_len: int,
        method: Literal["full", "lora"],
        lora_rank: int,
        seed: int,
    ) -> None:
        """As VLLMEngine; `seed` is unused, since nothing is sampled and the adapter comes with an update."""
        import torch
        from transformers import AutoModelForCausalLM

        self._expected = checks.policy_shapes(policy_path)
        self._eos = checks.eos_token_ids(policy_path)
        self._max_model_len = max_model_len
        self._method = method
        self._lora_rank = lora_rank
        self._version = 0
        self._unusable: str | None = None
        self._adapter_config: dict[str, object] | None = None
        torch.set_num_threads(rollout.threads)
        self._device = torch.device("cuda" if rollout.num_gpus and torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, rollout.dtype)
        self._model: Any = AutoModelForCausalLM.from_pretrained(policy_path, dtype=dtype).to(self._device).eval()

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def prefix_cache_hit_rate(self) -> float | None:
        """None: there is no prefix cache."""
        return None

    def label_pairs(self, cases: Sequence[TokenizedCase]) -> list[BehaviorPair]:
        """y(x), y(x∖C) of each case, in order. Raises ValueError for prompts that do not fit."""
        self._require_usable()
        prompts = [prompt for case in cases for prompt in (case.prompt, case.ablated)]
        checks.check_prompts(prompts, 1, self._max_model_len)
        answers = self._answers(prompts, [ids for case in cases for ids in (case.label_ids, case.label_ids)])
        return [checks.make_pair(c, answers[2 * i], answers[2 * i + 1], self._version) for i, c in enumerate(cases)]

    def generate(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[tuple[int, ...]]:
        """Greedy continuations without the end-of-turn token, at most `max_tokens` each. Raises as label_pairs."""
        import torch
        from transformers import GenerationConfig

        self._require_usable()
        checks.check_prompts(prompts, max_tokens, self._max_model_len)
        # a fresh config: the folder's own may carry penalties or sampling
        config = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, num_beams=1, eos_token_id=list(self._eos), pad_token_id=self._eos[0]
        )
        out: list[tuple[int, ...]] = []
        for start in range(0, len(prompts), _BATCH):
            tokens_BT, mask_BT = self._left_padded(prompts[start : start + _BATCH])
            with torch.inference_mode():
                full_BT = self._model.generate(input_ids=tokens_BT, attention_mask=mask_BT, generation_config=config)
            out += [self._until_eos(row) for row in full_BT[:, tokens_BT.shape[1] :].tolist()]
        return out

    def load_weights(self, update: WeightUpdate) -> Delivery:
        """Serve `update` from now on.

        Raises ValueError, with the old version still served, where names or shapes do not fit; any later
        exception leaves the engine unusable.
        """
        start = time.perf_counter()
        self._require_usable()
        self._check(update)
        with self._unusable_on_error(f"weight update to version {update.version} failed"):
            if update.kind == "full":
                self._model.load_state_dict(dict(update.tensors))
            else:
                self._load_adapter(update)
            self._version = update.version
            case = update.probe
            answers = self._answers([case.prompt, case.ablated], [case.label_ids] * 2)
        return Delivery(
            version=update.version,
            checksum=checksum(update.tensors),
            probe=answers[0].logprobs + answers[1].logprobs,
            seconds=time.perf_counter() - start,
            bytes=checks.nbytes(update.tensors),
        )

    def close(self) -> None:
        """Free the model; later calls raise. A second close does nothing."""
        self._model = None
        self._unusable = self._unusable or "it was closed"

    def _check(self, update: WeightUpdate) -> None:
        if (update.kind == "adapter") != (self._method == "lora"):
            raise ValueError(f"update of kind {update.kind!r} for an engine started with method={self._method!r}")
        if update.kind == "full":
            checks.check_full(update, self._expected)
        else:
            checks.check_adapter(update, self._expected, self._lora_rank)
            if self._adapter_config not in (None, dict(update.adapter_config or {})):
                raise ValueError(f"adapter_config of version {update.version} differs from the one served: replace the engine")
        checks.check_prompts([update.probe.prompt, update.probe.ablated], 1, self._max_model_len)

    def _load_adapter(self, update: WeightUpdate) -> None:
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

        config = dict(update.adapter_config or {})
        if self._adapter_config is None:
            self._model = get_peft_model(self._model, PeftConfig.from_peft_type(**config)).eval()
            self._adapter_config = config
        set_peft_model_state_dict(self._model, dict(update.tensors))

    def _answers(self, prompts: Sequence[tuple[int, ...]], label_ids: Sequence[tuple[int, ...]]) -> list[checks.Answer]:
        import torch

        answers: list[checks.Answer] = []
        for start in range(0, len(prompts), _BATCH):
            tokens_BT, mask_BT = self._left_padded(prompts[start : start + _BATCH])
            positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits_BV = self._model(
                    input_ids=tokens_BT, attention_mask=mask_BT, position_ids=positions_BT, logits_to_keep=1, use_cache=False
                ).logits[:, -1]
                logprobs_BV = logits_BV.float().log_softmax(-1)
            free_B = logprobs_BV.argmax(-1).tolist()
            for row, free, ids in zip(logprobs_BV.cpu(), free_B, label_ids[start : start + _BATCH], strict=True):
                answers.append(checks.Answer(tuple(row[list(ids)].tolist()), free))
        return answers

    def _left_padded(self, prompts: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 tokens [batch, time] and mask; padded on the left, so that the last column is every answer position."""
        import torch

        width = max(len(prompt) for prompt in prompts)
        rows = [(0,) * (width - len(prompt)) + tuple(prompt) for prompt in prompts]
        masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(rows, device=self._device), torch.tensor(masks, device=self._device)

    def _until_eos(self, tokens: Sequence[int]) -> tuple[int, ...]:
        end = next((i for i, token in enumerate(tokens) if token in self._eos), len(tokens))
        return tuple(tokens[:end])

    def _require_usable(self) -> None:
        if self._unusable:
            raise RuntimeError(f"this transformers engine cannot be used: {self._unusable}. Replace the engine")

    @contextmanager
    def _unusable_on_error(self, reason: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._unusable = f"{reason} ({error!r})"
            raise
