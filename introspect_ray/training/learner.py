"""The learner: one rank's share of a training step, its weights and its checkpoints.

Every public method that touches weights is a collective: with several ranks, all must call it, in the same order.
One tree per case and one forward give the loss, the current behaviour and the current greedy explanation. So
explanation_self, explanation_orig and realised_at_consumption are those of the weights *before* the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from introspect_ray.cases.answers import label_nodes, read_label
from introspect_ray.cases.label_trie import walk_explanations
from introspect_ray.cases.lookup import records_of
from introspect_ray.cases.tokenize import max_explanation_tokens
from introspect_ray.config import RunConfig
from introspect_ray.engines.checks import make_pair
from introspect_ray.errors import UserError
from introspect_ray.policy import save_policy
from introspect_ray.records import BehaviorPair, Explanation, Label, TokenizedCase
from introspect_ray.training.chunked_loss import Objective, ReferenceRows, TreeOutput
from introspect_ray.training.fsdp import (
    adapter_config,
    build_module,
    describe_state,
    free_gathered,
    full_state,
    full_value,
    load_checkpoint,
    save_checkpoint,
    stream_state,
)
from introspect_ray.training.loss import Scales, loss_scales
from introspect_ray.training.model import LogprobPair, label_logprobs
from introspect_ray.training.packing import PackedBatch, pack, placeholder
from introspect_ray.training.prompt_tree import TreeCache, build_tree
from introspect_ray.training.reference import Reference
from introspect_ray.training.step_sums import StepSums


class Learner:
    """Trains one policy from `policy_path` on labels, regularised towards the reference (paper eq. 2).

    FSDP2 shards the model if torch.distributed is initialised and there are several ranks or a GPU; otherwise the
    module stays whole. The optimizer is AdamW with a constant learning rate on float32 master weights.
    """

    def __init__(
        self,
        cfg: RunConfig,
        policy_path: str,
        reference_path: str | None,
        tokenized: Mapping[str, TokenizedCase],
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str | None = None,
        longest: int | None = None,
    ) -> None:
        """tokenized: every case that can be trained on. device None: the CPU, or this rank's GPU if
        cfg.train.use_gpu.

        longest: most tokens of a q with its explanation; counted over `tokenized` if not given. Raises UserError for a
        policy that cannot be loaded or trained on trees, and for a missing reference.
        """
        self.cfg, self.rank, self.world_size = cfg, rank, world_size
        self._source = policy_path
        self._cases = tokenized
        self._device = torch.device(device or (f"cuda:{torch.cuda.current_device()}" if cfg.train.use_gpu else "cpu"))
        if longest is None:
            longest = max((len(c.question) + max_explanation_tokens(c) for c in tokenized.values()), default=0)
        self.module, self._sharded = build_module(cfg, policy_path, self._device, world_size, longest)
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trained, lr=cfg.learning_rate, weight_decay=cfg.train.weight_decay, fused=True
        )
        self._reference = None if cfg.train.reference == "live" else Reference.open(reference_path, self._device)
        self._trees = TreeCache()
        self._gradients: Tensor | None = None  # of all trained weights
        self.last_logprobs: dict[str, LogprobPair] = {}
        self._checkpoint_group: dist.ProcessGroup | None = None

    def step(self, labels: Sequence[Label], m0: Mapping[str, BehaviorPair]) -> dict[str, float]:
        """One optimizer step on this rank's labels (possibly none) of the global batch. Collective.

        m0: M0's pair of every case. Returns the same global metrics on every rank: loss, cross_entropy (nats per target
        token), kl (nats per behaviour position), grad_norm (before clipping) and the shares explanation_self,
        explanation_orig, behavior_em and realised_at_consumption (see records.StepMetrics). Afterwards `last_logprobs`
        holds this rank's label logprobs (x, x∖C) by case id, before the update.
        Raises UserError if no rank has a label, or the loss or gradient is not finite (nothing is updated).
        """
        case_ids = [label.case_id for label in labels]
        trees = self._trees.trees(self._cases, [(label.case_id, label.explanation) for label in labels])
        m0_pairs = dict(zip(case_ids, records_of(m0, case_ids), strict=True))
        batches = pack(trees, self.cfg.train.token_budget)
        tokens, cases, rounds = self._agree(sum(len(tree.targets) for tree in trees), len(trees), len(batches))
        if not cases:
            raise UserError("a training step without any label: check the task's cases and the batch size")
        scales = loss_scales(tokens, 2 * cases, self.cfg.kl_weight, self.world_size)
        sums, self.last_logprobs = StepSums(), {}
        self._clear_gradients()
        for batch in self._padded(batches, rounds):
            self._accumulate(batch, scales, m0_pairs, sums)
        norm = full_value(nn.utils.clip_grad_norm_(self._trained, self.cfg.train.max_grad_norm)).item()
        metrics = sums.over_ranks(self.world_size, self._device).metrics(self.cfg.kl_weight, norm)
        if not math.isfinite(norm) or not math.isfinite(metrics["loss"]):
            raise UserError(
                f"training diverged: loss {metrics['loss']}, gradient norm {norm} at "
                f"learning_rate={self.cfg.learning_rate}: lower it, and start again or resume from a checkpoint"
            )
        self.optimizer.step()
        return metrics

    def _clear_gradients(self) -> None:
        """Set all gradients to zero. Without FSDP2 they lie in one block, allocated once.

        Allocated one by one between activations, they would fragment the memory.
        """
        if self._sharded:
            self.optimizer.zero_grad(set_to_none=True)
            return
        if self._gradients is None:  # allocated here: an optimizer that has gradients does not load a checkpoint
            sizes = [p.numel() for p in self._trained]
            self._gradients = torch.empty(sum(sizes), device=self._device)
            for p, part in zip(self._trained, self._gradients.split(sizes), strict=True):
                p.grad = part.view_as(p)
        self._gradients.zero_()

    def _accumulate(self, batch: PackedBatch, scales: Scales, m0: Mapping[str, BehaviorPair], sums: StepSums) -> None:
        """Forward and backward of one micro-batch; adds to the gradients, to `sums` and to `last_logprobs`."""
        with self._precision():
            reference = self._reference_rows(batch)
            out = self.module(batch, Objective(reference, scales))
        out.loss.backward()
        sums.cross_entropy += out.cross_entropy.item()
        sums.kl += out.kl.item()
        sums.target_tokens += len(batch.targets_K)
        sums.cases += len(batch.trees)
        self._read_answers(batch, out, m0, sums)

    def _reference_rows(self, batch: PackedBatch) -> ReferenceRows:
        """M0 at the behaviour nodes of `batch`. Collective when the reference is live."""
        if self._reference is not None:
            return self._reference.rows([tree.case_id for tree in batch.trees])
        with self.module.model.disable_adapter():
            return self.module.reference_rows(batch)

    @torch.no_grad()
    def _read_answers(
        self, batch: PackedBatch, out: TreeOutput, m0: Mapping[str, BehaviorPair], sums: StepSums
    ) -> None:
        """Count, from the training forward, what the current policy answers and how it explains itself.

        Its explanation is the greedy one among the valid explanations.
        """
        explanations = walk_explanations([tree.branches for tree in batch.trees], out.walk_P.tolist())
        logprobs = label_logprobs(batch, out.label_logprobs_P)
        for tree, (cued, ablated), explanation in zip(batch.trees, logprobs, explanations, strict=True):
            names, m0_pair = tree.label_names, m0[tree.case_id]
            pair = names[cued.index(max(cued))], names[ablated.index(max(ablated))]
            current = Explanation(pair[0] != pair[1], pair[1])
            self.last_logprobs[tree.case_id] = (cued, ablated)
            sums.explained_self += explanation == current
            sums.explained_orig += explanation == m0_pair.explanation
            sums.same_behavior += pair == (m0_pair.cued, m0_pair.ablated)
            sums.realised += tree.label == current

    def _precision(self) -> AbstractContextManager[object]:
        """Autocast where FSDP2's mixed precision does not cast (a single process)."""
        if self._sharded or self.cfg.train.dtype == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    @staticmethod
    def _padded(batches: Sequence[PackedBatch], rounds: int) -> list[PackedBatch]:
        """`batches` and, up to `rounds`, batches without cases: the other ranks' collectives need this rank too."""
        return [*batches, *[placeholder()] * (rounds - len(batches))]

    def _agree(self, tokens: int, cases: int, rounds: int) -> tuple[int, int, int]:
        """Target tokens and cases of the global batch, and the number of micro-batches of the busiest rank."""
        if self.world_size == 1:
            return tokens, cases, rounds
        counts = torch.tensor([[tokens, cases, rounds]], device=self._device)
        gathered = torch.empty(self.world_size, 3, dtype=counts.dtype, device=self._device)
        dist.all_gather_into_tensor(gathered, counts)
        return int(gathered[:, 0].sum()), int(gathered[:, 1].sum()), int(gathered[:, 2].max())

    @torch.no_grad()
    def probe(self, case: TokenizedCase) -> tuple[float, ...]:
        """Natural label logprobs at x, then at x∖C, on the current weights. Collective."""
        (batch,) = pack([build_tree(case, None)], self.cfg.train.token_budget)
        with self._precision():
            out = self.module(batch)
        free_gathered(self.module)
        ((cued, ablated),) = label_logprobs(batch, out.label_logprobs_P)
        return cued + ablated

    @torch.no_grad()
    def label_pairs(self, cases: Sequence[TokenizedCase], version: int) -> list[BehaviorPair]:
        """y(x), y(x∖C) of this rank's `cases` (possibly none), in order, on the current weights. Collective.

        `version` is the version of these weights. The pairs are those of an engine's label_pairs, computed on packed
        trees of x and x∖C. A case that comes twice is computed once, and which cases share a forward depends on `cases`
        only. Raises ValueError where the logprob of a label is NaN.
        """
        by_id = {case.case_id: case for case in cases}
        trees = self._trees.trees(by_id, [(case_id, None) for case_id in by_id])
        batches = pack(trees, self.cfg.train.token_budget)
        rounds = self._agree(0, 0, len(batches))[2]
        pairs: dict[str, BehaviorPair] = {}
        for batch in self._padded(batches, rounds):
            with self._precision():
                out = self.module(batch)
            logprobs, argmax_2B = label_logprobs(batch, out.label_logprobs_P), out.argmax_2B.tolist()
            for i, (tree, (cued, ablated)) in enumerate(zip(batch.trees, logprobs, strict=True)):
                case, free = by_id[tree.case_id], (argmax_2B[i], argmax_2B[len(batch.trees) + i])
                nodes = label_nodes(case.label_tokens)
                x, without = (read_label(nodes, [side], [top]) for side, top in zip((cued, ablated), free, strict=True))
                pairs[tree.case_id] = make_pair(case, x, without, version)
        free_gathered(self.module)
        return [pairs[case.case_id] for case in cases]

    def weights(self) -> dict[str, Tensor] | None:
        """What engines load: CPU tensors in the compute type, on rank 0; None on the other ranks. Collective.

        full: the whole policy under Hugging Face names, with lm_head.weight even if it is tied. lora: the adapter under
        PEFT's names.
        """
        return full_state(self.module, getattr(torch, self.cfg.train.dtype), keep=self.rank == 0)

    def described(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, type and unsharded shape of every tensor that `stream` yields, in its order. Nothing is gathered."""
        return describe_state(self.module, getattr(torch, self.cfg.train.dtype))

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """The whole policy on this rank's device, one gathered tensor at a time. Collective: every rank exhausts it."""
        return stream_state(self.module, getattr(torch, self.cfg.train.dtype))

    def adapter_config(self) -> dict[str, object]:
        """The content of the LoRA adapter's adapter_config.json, as plain values."""
        return adapter_config(self.module)

    def save_checkpoint(self, folder: str) -> Future[Any]:
        """Write this rank's part of model and optimizer with torch.distributed.checkpoint. Collective.

        Returns once the state is copied; the future ends when it is in `folder`. Ranks may write to different folders;
        their union is the checkpoint.
        """
        if dist.is_initialized() and self._checkpoint_group is None:  # one rank needs it too: its own may be NCCL only
            self._checkpoint_group = dist.new_group(backend="gloo")
        return save_checkpoint(folder, self.module, self.optimizer, self._checkpoint_group)

    def load_checkpoint(self, folder: str) -> None:
        """Continue from a merged checkpoint; the number of ranks may differ. Collective."""
        load_checkpoint(folder, self.module, self.optimizer)

    def export(self, folder: str) -> None:
        """Write the current policy (or LoRA adapter) to `folder` in Hugging Face format, on rank 0. Collective."""
        tensors = self.weights()
        if tensors is not None:
            config = self.adapter_config() if self.cfg.method == "lora" else None
            if config:
                config["base_model_name_or_path"] = self.cfg.policy  # not its folder on this machine
            save_policy(tensors, self._source, folder, self.cfg.method, config)
