"""The learner: one rank's share of a training step, its weights and its checkpoints.

Every public method that touches weights is a collective: with several ranks all must call it, in the
same order. One tree a case and one forward give the loss, the current behaviour and the current greedy
explanation, so Self, Orig and the realised agreement are those of the weights *before* the update.

Shape suffixes: B cases, K target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from introspect_ray.cases.label_trie import walk_explanations
from introspect_ray.cases.tokenize import max_explanation_tokens
from introspect_ray.config import RunConfig
from introspect_ray.engines.checks import Answer, make_pair
from introspect_ray.errors import UserError
from introspect_ray.policy import save_policy
from introspect_ray.records import BehaviorPair, Explanation, Label, TokenizedCase
from introspect_ray.train.chunked_loss import Objective, ReferenceRows, TreeOutput
from introspect_ray.train.fsdp import (
    adapter_config,
    build_module,
    describe_state,
    full_state,
    full_value,
    load_checkpoint,
    save_checkpoint,
    stream_state,
)
from introspect_ray.train.loss import Scales, loss_scales
from introspect_ray.train.model import LogprobPair, label_logprobs
from introspect_ray.train.packing import PackedBatch, PromptTree, build_tree, pack, placeholder
from introspect_ray.train.reference import Reference

TREE_CACHE = 2_000_000  # tokens of the trees kept, 32 bytes each


@dataclass
class Sums:
    """What a step adds up over micro-batches and ranks."""

    cross_entropy: float = 0.0  # nats, over target tokens
    kl: float = 0.0  # nats, over behaviour positions
    target_tokens: int = 0
    cases: int = 0
    explained_self: int = 0
    explained_orig: int = 0
    behaved: int = 0
    realised: int = 0


class Learner:
    """Trains one policy from `policy_path` on labels, regularised towards the reference (paper eq. 2).

    With torch.distributed initialised, and several ranks or a GPU, the model is sharded by FSDP2;
    a single process without it uses the plain module. AdamW with a constant rate; float32 master weights.
    `tokenized` holds every case that can be trained on; `longest`, if known, the most tokens of a q with its
    explanation. `device` None: this rank's GPU if cfg.train.use_gpu.
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
        self._trees: dict[tuple[str, Explanation | None], PromptTree] = {}
        self._tree_tokens = 0
        self._gradients: Tensor | None = None  # of all trained weights
        self.last_logprobs: dict[str, LogprobPair] = {}
        self._writers: dist.ProcessGroup | None = None  # of checkpoints

    def step(self, labels: Sequence[Label], m0: Mapping[str, BehaviorPair]) -> dict[str, float]:
        """One optimizer step on this rank's labels (possibly none) of the global batch.

        m0: M0's pair of every case. Returns the same global metrics on every rank: loss, cross_entropy
        (nats a target token), kl (nats a behaviour position), grad_norm (before clipping) and the shares
        explanation_self, explanation_orig, behavior_em, realised_at_consumption. `last_logprobs` then
        holds this rank's label logprobs (x, x∖C) before the update.
        Raises UserError if the step has no label on any rank, or the loss is not finite (nothing is updated).
        """
        trees = [self._tree(label.case_id, label.explanation) for label in labels]
        batches = pack(trees, self.cfg.train.token_budget)
        tokens, cases, rounds = self._agree(sum(len(tree.targets) for tree in trees), len(trees), len(batches))
        if not cases:
            raise UserError("a training step without any label: check the task's cases and the batch size")
        scales = loss_scales(tokens, 2 * cases, self.cfg.kl_weight, self.world_size)
        sums, self.last_logprobs = Sums(), {}
        self._clear_gradients()
        for batch in [*batches, *[placeholder()] * (rounds - len(batches))]:
            self._accumulate(batch, scales, m0, sums)
        norm = full_value(nn.utils.clip_grad_norm_(self._trained, self.cfg.train.max_grad_norm)).item()
        metrics = self._metrics(self._total(sums), norm)
        if not math.isfinite(norm) or not math.isfinite(metrics["loss"]):
            raise UserError(
                f"training diverged: loss {metrics['loss']}, gradient norm {norm} at "
                f"learning_rate={self.cfg.learning_rate}: lower it and start again or resume from a checkpoint"
            )
        self.optimizer.step()
        return metrics

    def _clear_gradients(self) -> None:
        """Zeros in one block that stays, where nobody shards: gradients made between activations would leave holes."""
        if self._sharded:
            return self.optimizer.zero_grad(set_to_none=True)
        if self._gradients is None:  # not before: an optimizer that sees gradients does not load a state
            sizes = [p.numel() for p in self._trained]
            self._gradients = torch.empty(sum(sizes), device=self._device)
            for p, part in zip(self._trained, self._gradients.split(sizes), strict=True):
                p.grad = part.view_as(p)
        self._gradients.zero_()

    def _tree(self, case_id: str, label: Explanation | None) -> PromptTree:
        tree = self._trees.get((case_id, label))
        if tree is None:
            tree = build_tree(self._cases[case_id], label)
            if self._tree_tokens + len(tree) > TREE_CACHE:
                self._trees.clear()
                self._tree_tokens = 0
            self._trees[case_id, label] = tree
            self._tree_tokens += len(tree)
        return tree

    def _accumulate(self, batch: PackedBatch, scales: Scales, m0: Mapping[str, BehaviorPair], sums: Sums) -> None:
        """Forward and backward of one micro-batch; adds to the gradients, `sums` and `last_logprobs`.

        A rank that is done has batches without cases, since the others still run collectives.
        """
        with self._precision():
            reference = self._reference_rows(batch)
            out = self.module(batch, Objective(reference, scales))
        out.loss.backward()
        sums.cross_entropy += out.cross_entropy.item()
        sums.kl += out.kl.item()
        sums.target_tokens += len(batch.targets_K)
        sums.cases += len(batch.trees)
        self._read_off(batch, out, m0, sums)

    def _reference_rows(self, batch: PackedBatch) -> ReferenceRows:
        """M0 at the behaviour nodes of `batch`; collective when the reference is live."""
        if self._reference is not None:
            return self._reference.rows([tree.case_id for tree in batch.trees])
        with self.module.model.disable_adapter():
            return self.module.reference_rows(batch)

    @torch.no_grad()
    def _read_off(self, batch: PackedBatch, out: TreeOutput, m0: Mapping[str, BehaviorPair], sums: Sums) -> None:
        """The current policy's behaviour and its explanations among the valid ones, from the training forward."""
        said = walk_explanations([tree.branches for tree in batch.trees], out.walk_P.tolist())
        behaviours = label_logprobs(batch, out.label_logprobs_P)
        for tree, (cued, ablated), explanation in zip(batch.trees, behaviours, said, strict=True):
            names, origin = self._cases[tree.case_id].labels, m0[tree.case_id]
            pair = names[cued.index(max(cued))], names[ablated.index(max(ablated))]
            current = Explanation(pair[0] != pair[1], pair[1])
            self.last_logprobs[tree.case_id] = (cued, ablated)
            sums.explained_self += explanation == current
            sums.explained_orig += explanation == origin.explanation
            sums.behaved += pair == (origin.cued, origin.ablated)
            sums.realised += tree.label == current

    def _precision(self) -> AbstractContextManager[object]:
        """Autocast where FSDP's mixed precision does not already cast (a single process)."""
        if self._sharded or self.cfg.train.dtype == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _agree(self, tokens: int, cases: int, rounds: int) -> tuple[int, int, int]:
        """Target tokens and cases of the global batch, and the micro-batches of the busiest rank."""
        if self.world_size == 1:
            return tokens, cases, rounds
        counts = torch.tensor([[tokens, cases, rounds]], device=self._device)
        gathered = torch.empty(self.world_size, 3, dtype=counts.dtype, device=self._device)
        dist.all_gather_into_tensor(gathered, counts)
        return int(gathered[:, 0].sum()), int(gathered[:, 1].sum()), int(gathered[:, 2].max())

    def _total(self, sums: Sums) -> Sums:
        if self.world_size == 1:
            return sums
        values = torch.tensor(list(asdict(sums).values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(values)
        return Sums(*values.tolist())

    def _metrics(self, sums: Sums, norm: float) -> dict[str, float]:
        ce, kl = sums.cross_entropy / sums.target_tokens, sums.kl / (2 * sums.cases)
        return {
            "loss": ce + self.cfg.kl_weight * kl if self.cfg.kl_weight else ce,
            "cross_entropy": ce,
            "kl": kl,
            "grad_norm": norm,
            "explanation_self": sums.explained_self / sums.cases,
            "explanation_orig": sums.explained_orig / sums.cases,
            "behavior_em": sums.behaved / sums.cases,
            "realised_at_consumption": sums.realised / sums.cases,
        }

    @torch.no_grad()
    def probe(self, case: TokenizedCase) -> tuple[float, ...]:
        """Natural label logprobs of x, then of x∖C, on the current weights. Collective."""
        (batch,) = pack([build_tree(case, None)], self.cfg.train.token_budget)
        with self._precision():
            out = self.module(batch)
        if self._sharded:
            self.module.reshard()  # the root stays gathered after a forward without backward
        ((cued, ablated),) = label_logprobs(batch, out.label_logprobs_P)
        return cued + ablated

    @torch.no_grad()
    def label_pairs(self, cases: Sequence[TokenizedCase], version: int) -> list[BehaviorPair]:
        """y(x), y(x∖C) of this rank's `cases` (possibly none) on the current weights, called `version`. Collective.

        As an engine's label_pairs, by packed trees of x and x∖C alone; a case that comes twice is computed once, and
        what is computed together depends on `cases` only. Raises ValueError where a label's logprob is NaN.
        """
        by_id = {case.case_id: case for case in cases}
        batches = pack([self._tree(case_id, None) for case_id in by_id], self.cfg.train.token_budget)
        rounds = self._agree(0, 0, len(batches))[2]
        made: dict[str, BehaviorPair] = {}
        for batch in [*batches, *[placeholder()] * (rounds - len(batches))]:
            with self._precision():
                out = self.module(batch)
            logprobs, free_2B = label_logprobs(batch, out.label_logprobs_P), out.free_2B.tolist()
            for i, (tree, (cued, ablated)) in enumerate(zip(batch.trees, logprobs, strict=True)):
                x, without = Answer(cued, free_2B[i]), Answer(ablated, free_2B[len(batch.trees) + i])
                made[tree.case_id] = make_pair(by_id[tree.case_id], x, without, version)
        if self._sharded:
            self.module.reshard()
        return [made[case.case_id] for case in cases]

    def weights(self) -> dict[str, Tensor] | None:
        """What engines load: CPU tensors in the compute type, on rank 0; None elsewhere. Collective.

        full: the whole policy under Hugging Face names, lm_head.weight included when tied. lora: the
        adapter under the names PEFT saves.
        """
        return full_state(self.module, getattr(torch, self.cfg.train.dtype), keep=self.rank == 0)

    def described(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, type and whole shape of every tensor that `stream` yields, in its order. Nothing is gathered."""
        return describe_state(self.module, getattr(torch, self.cfg.train.dtype))

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """The whole policy on this rank's device, one gathered tensor at a time. Collective, to its end."""
        return stream_state(self.module, getattr(torch, self.cfg.train.dtype))

    def adapter_config(self) -> dict[str, object]:
        """adapter_config.json of the LoRA adapter as a dict of plain values."""
        return adapter_config(self.module)

    def save_checkpoint(self, folder: str) -> Future[Any]:
        """This rank's part of model and optimizer, by torch.distributed.checkpoint. Collective.

        Returns once the state is copied; the future ends when it is in `folder`. Ranks may write to different folders;
        their union is the checkpoint.
        """
        if dist.is_initialized() and self._writers is None:  # also for one rank: its default group may be NCCL's alone
            self._writers = dist.new_group(backend="gloo")
        return save_checkpoint(folder, self.module, self.optimizer, self._writers)

    def load_checkpoint(self, folder: str) -> None:
        """Continue from a merged checkpoint; the number of ranks may differ. Collective."""
        load_checkpoint(folder, self.module, self.optimizer)

    def export(self, folder: str) -> None:
        """Write the current policy (or LoRA adapter) in Hugging Face format, on rank 0. Collective."""
        tensors = self.weights()
        if tensors is not None:
            config = self.adapter_config() if self.cfg.method == "lora" else None
            if config:
                config["base_model_name_or_path"] = self.cfg.policy  # not the folder it lies in on this machine
            save_policy(tensors, self._source, folder, self.cfg.method, config)
