"""M0's next-token distribution along its own responses, computed once and kept.

B(M0) never changes. So the last hidden state (the output head's input, after the final norm) at the ends of x and of
x∖C and after each token of M0's responses, together with M0's output head, gives the exact full-vocabulary distribution
with one matrix product, and no second model is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from introspect_ray.cases.lookup import records_of
from introspect_ray.errors import UserError
from introspect_ray.policy import discard, load_model, new_folder, policy_id
from introspect_ray.records import BehaviorPair, TokenizedCase
from introspect_ray.storage import is_remote, open_store
from introspect_ray.training.attention import AttentionChoice, choose_attention
from introspect_ray.training.chunked_loss import ReferenceRows
from introspect_ray.training.model import TreeModel
from introspect_ray.training.output_head import MappedWeight, OutputHead
from introspect_ray.training.packing import pack
from introspect_ray.training.prompt_tree import ONE_TOKEN, Paths, PromptTree, build_tree, response_paths
from introspect_ray.training.reference_files import (
    INDEX,
    CheckedTensors,
    Damage,
    Layout,
    damaged,
    download_cache,
    read_index,
)
from introspect_ray.training.reference_writer import SIDES, ReferenceWriter, publish
from introspect_ray.training.supported import check_architecture, check_tree_forward

CASES_PER_PACKING = 4096  # trees take some hundred bytes per token, so the cases are packed in groups
_log = logging.getLogger(__name__)


def reference_key(
    policy: str,
    cases: Sequence[TokenizedCase],
    pairs: Mapping[str, BehaviorPair] | None,
    dtype: str,
    attention: str = "sdpa",
) -> str:
    """The name of a reference: 16 hex digits over all that decides its values.

    These are the policy's content, the compute type, the attention implementation, the tokens of x and x∖C of all cases
    and those of M0's responses, unless they are one token long.
    """
    how = dtype if attention == "sdpa" else f"{dtype}|{attention}"
    digest = hashlib.blake2b(f"{policy_id(policy)}|{how}".encode(), digest_size=8)
    for case, paths in _with_paths(cases, pairs):
        responses = [] if paths == ONE_TOKEN else [paths]
        digest.update(json.dumps([case.case_id, case.prompt, case.ablated, *responses]).encode())
    return digest.hexdigest()


def build_reference(
    policy_path: str,
    cases: Sequence[TokenizedCase],
    pairs: Mapping[str, BehaviorPair] | None,
    out_dir: str,
    dtype: str = "float32",
    batch_tokens: int = 2048,
    attention: AttentionChoice = "auto",
    advance: Callable[[int], None] = lambda cases: None,
) -> str:
    """Compute M0's reference for `cases` unless `out_dir` has it whole; returns its folder or s3:// prefix.

    One that is there is read once and checked; a damaged one is deleted and made again, and a warning says so.

    pairs: M0's, by case id; None where all labels have one token, whose responses are at the end of the prompts.
    dtype: compute and storage type, "float32" or "bfloat16". attention: train.attention, so that M0 is computed as the
    policy is. advance: called with the number of cases of every batch that is done. Runs on a GPU if there is one. A
    folder appears in one rename; on S3 the index is written last, so no reader sees a part. Raises UserError for a
    policy that cannot be loaded or trained on trees, and where the disk has no room for the tensors; ValueError for a
    case id that occurs twice and for a missing pair.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose_attention(attention, device)

    def write(work: Path) -> None:
        layout, longest = measure(cases, pairs)
        module = load_m0(policy_path, dtype, chosen, device, longest, cases[0])
        writer = ReferenceWriter(work, layout, module.output_head, module.compute)
        with torch.no_grad():
            for trees in _grouped_trees(cases, pairs):
                for batch in pack(trees, batch_tokens):
                    hidden_BH = module.hidden(batch)[: batch.sections.kl].to("cpu", module.compute)
                    writer.put([tree.case_id for tree in batch.trees], hidden_BH)
                    advance(len(batch.trees))
        writer.finish(policy_id(policy_path))

    return publish(out_dir, f"references/{reference_key(policy_path, cases, pairs, dtype, chosen)}", write)


def load_m0(policy_path: str, dtype: str, attention: str, device: str, longest: int, first: TokenizedCase) -> TreeModel:
    """M0 on a device, checked: whether it can be computed on trees, and is on `first`, a case. longest: most tokens of
    a prompt with a response. Raises UserError where it cannot be loaded, or not be computed on trees."""
    compute = getattr(torch, dtype)
    model = load_model(policy_path, compute, attention)
    check_architecture(model.config, longest, attention)
    module = TreeModel(model, compute).to(device)
    check_tree_forward(module, first)
    return module


def measure(cases: Sequence[TokenizedCase], pairs: Mapping[str, BehaviorPair] | None) -> tuple[Layout, int]:
    """Where the rows of a reference lie, and the most tokens of a prompt with a response. pairs: as in build_reference.

    Raises ValueError for a case id that occurs twice and for a missing pair.
    """
    ids, longest = [], 0
    positions = array("q")
    for case, paths in _with_paths(cases, pairs):
        ids.append(case.case_id)
        positions.extend(len(path) + 1 for path in paths)
        longest = max(longest, len(case.prompt) + len(paths[0]), len(case.ablated) + len(paths[1]))
    return Layout(ids, np.array(positions, np.int64).reshape(-1, 2).T), longest


def _with_paths(
    cases: Sequence[TokenizedCase], pairs: Mapping[str, BehaviorPair] | None
) -> Iterator[tuple[TokenizedCase, Paths]]:
    """All cases with M0's responses; the pairs of a group of cases are looked up in one call.

    Raises ValueError for a case that needs a pair and has none.
    """
    rest = iter(cases)
    while group := list(islice(rest, CASES_PER_PACKING)):
        needy = [case for case in group if case.max_response or any(len(t) > 1 for t in case.label_tokens)]
        ids = [case.case_id for case in needy]
        if needy and pairs is None:
            raise ValueError(f"case {ids[0]}: its answer may have several tokens, so the reference needs M0's pairs")
        found = dict(zip(ids, records_of(pairs or {}, ids), strict=True))
        for case in group:
            yield case, response_paths(case, found[case.case_id]) if case.case_id in found else ONE_TOKEN


def _grouped_trees(
    cases: Sequence[TokenizedCase], pairs: Mapping[str, BehaviorPair] | None
) -> Iterator[list[PromptTree]]:
    """x and x∖C of all cases with M0's responses, as the trees of a group of cases at a time."""
    rest = _with_paths(cases, pairs)
    while group := list(islice(rest, CASES_PER_PACKING)):
        yield [build_tree(case, None, paths) for case, paths in group]


class Reference:
    """An opened reference. Its hidden states stay in their file, mapped into memory.

    On a CPU the output head stays in the file as well; otherwise it is copied to `device`.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", source: str | None = None) -> None:
        """source: the s3:// prefix that `folder` was downloaded from. Raises Damage if what is read here is
        damaged, OSError if it is not there."""
        index = read_index((folder / INDEX).read_bytes())
        ids = index["case_ids"]
        positions = index.get("positions")  # absent where every response has one
        self._folder, self._source = folder, source
        self._layout = Layout(ids, np.array(positions, np.int64) if positions else np.ones((2, len(ids)), np.int64))
        self.policy: str = index["policy"]
        self._checked = CheckedTensors(folder, index)
        self._file = self._checked.file
        tensors = self._file.tensors
        mapped = MappedWeight(self._file, "head") if torch.device(device).type == "cpu" else None
        weight = mapped.weight_VH if mapped else tensors["head"].to(device)
        bias = tensors["bias"].to(device) if "bias" in tensors else None
        self.head = OutputHead(weight, bias, index["scaling"], mapped)

    @classmethod
    def open(cls, path: str | None, device: torch.device | str = "cpu") -> Reference:
        """Open the reference that build_reference returned; one on S3 is downloaded once per machine, and again if the
        download is damaged.

        Raises UserError if it is missing or incomplete, AlarmError if it is damaged.
        """
        if path is None:
            raise UserError(
                "train.reference=cache needs a reference: run build_reference first, or use method=lora with "
                "train.reference=live"
            )
        folder, source = (download_cache(path), path) if is_remote(path) else (Path(path), None)
        if source and folder.is_dir():
            try:
                return cls(folder, device, source)
            except (Damage, OSError) as error:
                _log.warning("the download of reference %s is damaged (%s): it is fetched again", path, error)
                discard(folder)
        if source:
            with new_folder(folder) as work:
                open_store(path).download_dir("", work)
        if not (folder / INDEX).is_file():
            raise UserError(f"reference {path!r} is missing or incomplete: run build_reference again")
        try:
            return cls(folder, device, source)
        except (Damage, OSError) as error:
            raise damaged(error, folder, source) from None

    def rows(self, case_ids: Sequence[str], positions_2B: np.ndarray | None = None) -> ReferenceRows:
        """M0 along its responses to x of all these cases, then to x∖C of all: as the KL rows of their trees.

        positions_2B: how many rows each of them needs, to be checked. Raises UserError for a case that the reference
        lacks, and for one whose responses have other lengths there, and as `damaged` for a damaged row.
        """
        unknown = [case_id for case_id in case_ids if case_id not in self._layout.row]
        if unknown:
            raise UserError(f"the reference lacks {len(unknown)} of {len(case_ids)} cases, e.g. {unknown[0]!r}")
        if positions_2B is not None:
            self._check(case_ids, positions_2B)
        try:
            hidden = [self._checked.rows(s, rows) for s, rows in zip(SIDES, self._layout.rows(case_ids), strict=True)]
        except Damage as error:
            raise damaged(error, self._folder, self._source) from None
        self._file.release_all()
        return ReferenceRows(torch.cat(hidden).to(self.head.weight_VH.device), self.head)

    def _check(self, case_ids: Sequence[str], positions_2B: np.ndarray) -> None:
        have = self._layout.positions[:, [self._layout.row[case_id] for case_id in case_ids]]
        wrong = np.flatnonzero((have != positions_2B).any(0))
        if len(wrong):
            i = int(wrong[0])
            raise UserError(
                f"case {case_ids[i]!r}: the reference has {have[:, i].tolist()} positions of M0's responses to x and "
                f"x∖C, the run {positions_2B[:, i].tolist()}: build the reference with the pairs of this run"
            )
