"""The learner: one rank's share of a training step, its weights and its checkpoints.

Every public method that touches weights is a collective: with several ranks, all must call it, in the same order.
One tree per case and one forward give the loss, the current behaviour and the current greedy explanation. So
explanation_self, explanation_orig and realised_at_consumption are those of the weights *before* the update. What the
policy answers in free text no forward shows, so the shares that need it count the other cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from introspect_ray.cases.answers import make_pair
from introspect_ray.cases.label_trie import walk_explanations
from introspect_ray.cases.lookup import records_of
from introspect_ray.cases.probes import Probe
from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.labels.calibration import Calibration
from introspect_ray.policy import save_policy
from introspect_ray.records import AuxiliaryText, BehaviorPair, Label, TokenizedCase
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
from introspect_ray.training.label_readings import answers, label_readings
from introspect_ray.training.loss import Counts, Scales, loss_scales
from introspect_ray.training.packing import PackedBatch, pack, placeholder
from introspect_ray.training.prompt_tree import TreeCache, item_tree, longest_sequence, text_tree
from introspect_ray.training.reference import Reference
from introspect_ray.training.step_sums import StepSums

LogprobPair = tuple[tuple[float, ...], tuple[float, ...]]  # natural label logprobs at x, at x∖C; () for free text


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
        calibration: Calibration | None = None,
    ) -> None:
        """tokenized: every case that can be trained on. device None: the CPU, or this rank's GPU if
        cfg.train.use_gpu.

        longest: most tokens on a path of any case's tree (prompt_tree.longest_sequence), counted over `tokenized` if
        not given. calibration: by which the current answers are read. Raises UserError for a policy that cannot be
        loaded or trained on trees, and for a missing reference.
        """
        self.cfg, self.rank, self.world_size = cfg, rank, world_size
        self._source = policy_path
        self._cases, self._calibration = tokenized, calibration
        self._device = torch.device(device or (f"cuda:{torch.cuda.current_device()}" if cfg.train.use_gpu else "cpu"))
        if longest is None:
            longest = max(map(longest_sequence, tokenized.values()), default=0)
        if cfg.auxiliary.path or cfg.auxiliary.hub_id:
            longest = max(longest, cfg.auxiliary.max_tokens)
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

    def step(
        self, labels: Sequence[Label], m0: Mapping[str, BehaviorPair], auxiliary: Sequence[AuxiliaryText] = ()
    ) -> dict[str, float | None]:
        """One optimizer step on this rank's labels and auxiliary texts (possibly none) of the global batch. Collective.

        m0: M0's pair of every case; its responses are where the KL is taken. Returns the same global metrics on every
        rank: loss, cross_entropy, kl, auxiliary (nats per target token; None without texts), grad_norm (before
        clipping) and the shares explanation_self, explanation_orig, behavior_em and realised_at_consumption (see
        records.StepMetrics). cross_entropy is in nats per target token and kl per position of M0's responses; under
        loss_normalisation=sequence per case and per prompt. Afterwards `last_logprobs` holds this rank's raw label
        logprobs (x, x∖C) by case id, before the update. Raises UserError if no rank has a label, or the loss or
        gradient is not finite (nothing is updated).
        """
        case_ids = [label.case_id for label in labels]
        m0_pairs = dict(zip(case_ids, records_of(m0, case_ids), strict=True))
        trees = self._trees.trees(self._cases, [(label.case_id, label.explanation) for label in labels], m0_pairs)
        texts = [tree for tree in map(text_tree, auxiliary) if tree is not None]
        batches = pack([*trees, *texts], self.cfg.train.token_budget)
        counts = Counts(
            len(trees),
            sum(len(tree.targets) for tree in trees),
            sum(len(side.kl_nodes) for tree in trees for side in tree.sides),
            sum(len(tree.targets) for tree in texts),
        )
        total, rounds = self._agree(counts, len(batches))
        if not total.cases:
            raise UserError("a training step without any label: check the task's cases and the batch size")
        cfg = self.cfg
        how = cfg.loss_normalisation, cfg.auxiliary.weight
        scales = loss_scales(total, cfg.kl_weight, self.world_size, *how)
        sums, self.last_logprobs = StepSums(), {}
        self._clear_gradients()
        for batch in self._padded(batches, rounds):
            self._accumulate(batch, scales, m0_pairs, sums)
        norm = full_value(nn.utils.clip_grad_norm_(self._trained, cfg.train.max_grad_norm)).item()
        metrics = sums.over_ranks(self.world_size, self._device).metrics(cfg.kl_weight, norm, *how)
        if not math.isfinite(norm) or not math.isfinite(metrics["loss"] or 0.0):
            raise UserError(
                f"training diverged: loss {metrics['loss']}, gradient norm {norm} at "
                f"learning_rate={cfg.learning_rate}: lower it, and start again or resume from a checkpoint"
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
        sums.add_losses(batch, out)
        self._read_answers(batch, out, m0, sums)

    def _reference_rows(self, batch: PackedBatch) -> ReferenceRows:
        """M0 at the KL rows of `batch`. Collective when the reference is live."""
        if self._reference is not None:
            positions = np.array([[len(side.kl_nodes) for side in tree.sides] for tree in batch.trees], np.int64)
            return self._reference.rows([tree.case_id for tree in batch.trees], positions.reshape(-1, 2).T)
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
        for tree, readings, stated in zip(batch.trees, label_readings(batch, out), explanations, strict=True):
            now = None if readings is None else answers(tree.label_names, readings, self._calibration)
            sums.add_answers(tree.label, stated, m0[tree.case_id], now)
            self.last_logprobs[tree.case_id] = (readings[0].logprobs, readings[1].logprobs) if readings else ((), ())

    def _precision(self) -> AbstractContextManager[object]:
        """Autocast where FSDP2's mixed precision does not cast (a single process)."""
        if self._sharded or self.cfg.train.dtype == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    @staticmethod
    def _padded(batches: Sequence[PackedBatch], rounds: int) -> list[PackedBatch]:
        """`batches` and, up to `rounds`, batches without cases: the other ranks' collectives need this rank too."""
        return [*batches, *[placeholder()] * (rounds - len(batches))]

    def _agree(self, counts: Counts, rounds: int) -> tuple[Counts, int]:
        """The counts of the global batch, and the number of micro-batches of the busiest rank."""
        if self.world_size == 1:
            return counts, rounds
        mine = torch.tensor([[*counts, rounds]], device=self._device)
        gathered = torch.empty(self.world_size, mine.shape[1], dtype=mine.dtype, device=self._device)
        dist.all_gather_into_tensor(gathered, mine)
        return Counts(*gathered[:, :-1].sum(0).tolist()), int(gathered[:, -1].max())

    @property
    def vocabulary(self) -> int:
        """Tokens that the policy has embeddings and logits for."""
        size: int = self.module.causal_lm.config.get_text_config().vocab_size
        return size

    @torch.no_grad()
    def probe(self, probe: Probe) -> tuple[float, ...]:
        """The natural logprobs of a probe, item by item, on the current weights. Collective."""
        found: dict[str, tuple[float, ...]] = {}
        for batch in pack([item_tree(str(i), item) for i, item in enumerate(probe)], self.cfg.train.token_budget):
            with self._precision():
                out = self.module(batch)
            for tree, readings in zip(batch.trees, label_readings(batch, out), strict=True):
                found[tree.case_id] = readings[0].logprobs + readings[1].logprobs if readings else ()
        free_gathered(self.module)
        return tuple(value for i in range(len(probe)) for value in found[str(i)])

    @torch.no_grad()
    def label_pairs(self, cases: Sequence[TokenizedCase], version: int) -> list[BehaviorPair]:
        """y(x), y(x∖C) of this rank's `cases` (possibly none), in order, on the current weights. Collective.

        `version` is the version of these weights. The pairs are those of an engine's label_pairs, not calibrated,
        computed on packed trees of x and x∖C. A case that comes twice is computed once, and which cases share a forward
        depends on `cases` only. Raises UserError for free text, and ValueError where the logprob of a label is NaN.
        """
        free = [case.case_id for case in cases if case.max_response]
        if free:
            raise UserError(
                f"the training workers cannot write the responses that case {free[0]!r} ({len(free)} of {len(cases)}) "
                "asks for: set rollout.engine=vllm"
            )
        by_id = {case.case_id: case for case in cases}
        trees = self._trees.trees(by_id, [(case_id, None) for case_id in by_id])
        batches = pack(trees, self.cfg.train.token_budget)
        rounds = self._agree(Counts(), len(batches))[1]
        pairs: dict[str, BehaviorPair] = {}
        for batch in self._padded(batches, rounds):
            with self._precision():
                out = self.module(batch)
            for tree, readings in zip(batch.trees, label_readings(batch, out), strict=True):
                if readings is not None:
                    pairs[tree.case_id] = make_pair(by_id[tree.case_id], *readings, version)
        free_gathered(self.module)
        return [pairs[case.case_id] for case in cases]

    def weights(self, *, copy: bool = True) -> dict[str, Tensor] | None:
        """What engines load: CPU tensors in the compute type, on rank 0; None on the other ranks. Collective.

        full: the whole policy under Hugging Face names, with lm_head.weight even if it is tied. lora: the adapter under
        PEFT's names. copy=False is for a caller that is done with them before the next step, which may change them.
        """
        return full_state(self.module, getattr(torch, self.cfg.train.dtype), keep=self.rank == 0, copy=copy)

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
