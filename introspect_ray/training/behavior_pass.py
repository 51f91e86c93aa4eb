"""One pass of M0 over cases with closed labels: its labels with their logprobs, and the hidden states of its reference.

Both are read off the same forwards: the label trie's inner nodes after x and x∖C are where labels are read, and among
them lie all nodes at which the KL to M0 is taken. The trees, and which of them share a forward, are those of
`build_reference`, so the reference has the same bits.

The work is cut into parts of a few forwards each. What a part gives is one file in the cache,

    passes/<name>/<group>-<first forward>.part    blake2b (16 bytes) of what follows: a safetensors file with
        hidden [L, H]                             the output head's input at the label nodes (label_rows_L)
        logprobs [P]                              natural logprobs of the nodes' children, float32
        argmax [L]                                the likeliest token at each node, int64

so that a pass goes on where it was stopped, and several processes share one. <name> is a hash of all that decides the
values. A part that is missing or damaged is computed where it is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from introspect_ray.cases.answers import make_pair
from introspect_ray.cases.lookup import records_at, records_of
from introspect_ray.errors import UserError
from introspect_ray.policy import policy_id
from introspect_ray.records import BehaviorPair, TokenizedCase
from introspect_ray.storage import open_store
from introspect_ray.training.attention import AttentionChoice, choose_attention
from introspect_ray.training.chunked_loss import evaluate_rows
from introspect_ray.training.label_readings import SidePair, readings_of
from introspect_ray.training.model import TreeModel
from introspect_ray.training.packing import PackedBatch, pack
from introspect_ray.training.prompt_tree import build_tree
from introspect_ray.training.reference import CASES_PER_PACKING, load_m0, measure, reference_key
from introspect_ray.training.reference_writer import ReferenceWriter, publish

PARTS_PER_GROUP = 64  # of CASES_PER_PACKING cases: what is lost when a pass is stopped, and a file
_DIGEST = 16
_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Forwards [start, stop) of a group of CASES_PER_PACKING cases. cases: how many they have."""

    group: int
    start: int
    stop: int
    cases: int


class BehaviorPass:
    """A pass over `cases` with the policy in a folder. The model is loaded when the first part is computed."""

    def __init__(
        self,
        policy_path: str,
        cases: Sequence[TokenizedCase],
        out_dir: str,
        dtype: str = "float32",
        batch_tokens: int = 2048,
        attention: AttentionChoice = "auto",
    ) -> None:
        """out_dir: the cache, a folder or an s3:// address. The other arguments are those of build_reference. Raises
        UserError for a case that is answered in free text, which no forward shows."""
        self._policy, self._cases, self._out_dir = policy_path, cases, out_dir
        self._dtype, self._budget = dtype, batch_tokens
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._attention = choose_attention(attention, self._device)
        self._store = open_store(out_dir)
        self.folder, self._longest = self._describe()  # of the parts, in the cache
        self._module: TreeModel | None = None
        self._packed: tuple[int, list[PackedBatch]] = (-1, [])

    @cached_property
    def parts(self) -> list[Part]:
        """All parts, in the order of the cases' groups."""
        groups = range(ceil(len(self._cases) / CASES_PER_PACKING))
        return [part for group in groups for part in parts_of(group, self._batches(group))]

    def _describe(self) -> tuple[str, int]:
        """The folder of the parts in the cache, and the most tokens of a prompt with all but the last of a label."""
        how = [policy_id(self._policy), self._dtype, self._attention, self._budget, torch.__version__]
        how += [CASES_PER_PACKING, PARTS_PER_GROUP]
        digest, longest = hashlib.blake2b(json.dumps(how).encode(), digest_size=16), 0
        for case in self._cases:
            if case.max_response:
                raise UserError(f"case {case.case_id!r} is answered in free text, which no pass over prompts shows")
            digest.update(json.dumps([case.case_id, case.label_tokens, case.prompt, case.ablated]).encode())
            answer = max(map(len, case.label_tokens)) - 1
            longest = max(longest, len(case.prompt) + answer, len(case.ablated) + answer)
        return f"passes/{digest.hexdigest()}", longest

    def missing(self) -> list[Part]:
        """The parts that the cache does not have yet, in order."""
        there = set(self._store.list(self.folder))
        return [part for part in self.parts if self._file(part) not in there]

    def load(self) -> TreeModel:
        """M0, loaded at the first call. Raises UserError as `build_reference`."""
        if self._module is None:
            how = (self._dtype, self._attention, self._device, self._longest, self._cases[0])
            self._module = load_m0(self._policy, *how)
        return self._module

    def make(self, part: Part) -> dict[str, Tensor]:
        """Compute a part and write it to the cache; what its file holds."""
        module, batches = self.load(), self._batches(part.group)[part.start : part.stop]
        made: dict[str, list[Tensor]] = {"hidden": [], "logprobs": [], "argmax": []}
        with torch.no_grad():
            for batch in batches:
                hidden_NH = module.hidden(batch).to(module.compute)
                out = evaluate_rows(hidden_NH, module.output_head, batch, None)
                of_batch = (hidden_NH, out.label_logprobs_P, out.argmax_L)
                for rows, tensor in zip(made.values(), of_batch, strict=True):
                    rows.append(tensor.cpu())
        tensors = {name: torch.cat(rows) for name, rows in made.items()}
        content = save(tensors)
        self._store.write_bytes(self._file(part), _digest(content) + content)
        return tensors

    def pairs(self) -> Iterator[BehaviorPair]:
        """M0's pairs of all cases, in their order, as an engine's label_pairs gives them: version 0, not calibrated."""
        for group, parts in groupby(self.parts, key=lambda part: part.group):
            readings: dict[str, SidePair | None] = {}
            for part in parts:
                for batch, tensors in self._results(part):
                    found = readings_of(batch, tensors["logprobs"].tolist(), tensors["argmax"].tolist())
                    readings |= dict(zip([tree.case_id for tree in batch.trees], found, strict=True))
            for case in self._group(group):
                sides = readings[case.case_id]
                assert sides is not None  # free text is refused
                yield make_pair(case, *sides, 0)

    def reference(self, pairs: Mapping[str, BehaviorPair]) -> str:
        """Put M0's reference together unless it is there; returns its folder or s3:// prefix, as `build_reference`.

        pairs: M0's by case id, as the run reads them (calibrated, if it is): the KL is taken along their answers.
        """

        def write(work: Path) -> None:
            layout, module = measure(self._cases, pairs)[0], self.load()
            writer = ReferenceWriter(work, layout, module.output_head, module.compute)
            for part in self.parts:
                for batch, tensors in self._results(part):
                    ids, hidden_LH = [tree.case_id for tree in batch.trees], tensors["hidden"]
                    if any(len(tree.label_trie) > 1 for tree in batch.trees):  # else each label node is a row
                        hidden_LH = hidden_LH[path_rows(batch, records_of(pairs, ids))]
                    writer.put(ids, hidden_LH)
            writer.finish(policy_id(self._policy))

        key = reference_key(self._policy, self._cases, pairs, self._dtype, self._attention)
        return publish(self._out_dir, f"references/{key}", write)

    def _results(self, part: Part) -> Iterator[tuple[PackedBatch, dict[str, Tensor]]]:
        """Each forward of a part with its own tensors."""
        tensors = self._read(part) or self.make(part)
        batches = self._batches(part.group)[part.start : part.stop]
        nodes, children = ([len(rows) for rows in column] for column in _columns(batches))
        sizes = {"hidden": nodes, "logprobs": children, "argmax": nodes}
        split = {name: tensor.split(sizes[name]) for name, tensor in tensors.items()}
        for i, batch in enumerate(batches):
            yield batch, {name: pieces[i] for name, pieces in split.items()}

    def _read(self, part: Part) -> dict[str, Tensor] | None:
        """What a part's file holds; None if it is not there, or damaged, which a warning says."""
        try:
            content = self._store.read_bytes(self._file(part))
        except FileNotFoundError:
            return None
        if _digest(content[_DIGEST:]) != content[:_DIGEST]:
            _log.warning("%s is damaged: it is computed again", self._store.join(self._file(part)))
            return None
        return load(content[_DIGEST:])

    def _file(self, part: Part) -> str:
        return f"{self.folder}/{part.group:06d}-{part.start:06d}.part"

    def _group(self, group: int) -> Sequence[TokenizedCase]:
        first = group * CASES_PER_PACKING
        return records_at(self._cases, range(first, min(first + CASES_PER_PACKING, len(self._cases))))

    def _batches(self, group: int) -> list[PackedBatch]:
        """The forwards of a group; those of the group asked for last are kept."""
        if self._packed[0] != group:
            self._packed = group, pack([build_tree(case, None, None) for case in self._group(group)], self._budget)
        return self._packed[1]


def parts_of(group: int, batches: Sequence[PackedBatch]) -> list[Part]:
    """The parts of a group: all of its forwards in order, in at most PARTS_PER_GROUP parts of equal length.

    Example: 130 forwards make 44 parts, of three forwards each and one of the last.
    """
    size = ceil(len(batches) / PARTS_PER_GROUP)
    cuts = range(0, len(batches), size) if batches else ()
    return [Part(group, i, min(i + size, len(batches)), sum(len(b.trees) for b in batches[i : i + size])) for i in cuts]


def path_rows(batch: PackedBatch, pairs: Sequence[BehaviorPair]) -> list[int]:
    """Which label nodes of a forward are the rows of its reference: the ends of x of all cases and what follows them
    along M0's answers, then those of x∖C. pairs: M0's, of the cases of the forward in their order.

    Example: one case with the labels A = (1, 2), B = (1, 3) and C = (4,), so its nodes are () and (1,). M0 answers x
    with B and x∖C with C: rows 0 and 1 of x, and row 2 of x∖C.
    """
    rows, at = [], 0
    for side in ("cued", "ablated"):
        for tree, pair in zip(batch.trees, pairs, strict=True):
            label = tree.label_names.index(getattr(pair, side))
            last = next(node.prefix for node in tree.label_trie if ~label in node.leads_to)
            rows += [at + i for i, node in enumerate(tree.label_trie) if node.prefix == last[: len(node.prefix)]]
            at += len(tree.label_trie)
    return rows


def _columns(batches: Sequence[PackedBatch]) -> tuple[list, list]:
    return [batch.label_rows_L for batch in batches], [batch.label_rows_P for batch in batches]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
