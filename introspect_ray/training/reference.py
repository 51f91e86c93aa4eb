"""M0's next-token distribution at the behaviour positions, computed once and kept.

B(M0) never changes. So the last hidden state (the output head's input, after the final norm) at the last tokens of x
and of x∖C, together with M0's output head, gives the exact full-vocabulary distribution with one matrix product, and no
second model is held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from introspect_ray.errors import UserError
from introspect_ray.policy import load_model, new_folder, policy_id
from introspect_ray.records import TokenizedCase
from introspect_ray.storage import is_remote, open_store
from introspect_ray.training.attention import AttentionChoice, choose_attention
from introspect_ray.training.chunked_loss import ReferenceRows
from introspect_ray.training.mapped_tensors import MappedTensors
from introspect_ray.training.model import TreeModel
from introspect_ray.training.output_head import MappedWeight, OutputHead
from introspect_ray.training.packing import PackedBatch, pack
from introspect_ray.training.prompt_tree import build_tree
from introspect_ray.training.supported import check_architecture, check_tree_forward

INDEX, TENSORS = "index.json", "tensors.safetensors"
SIDES = ("cued", "ablated")
CASES_PER_PACKING = 4096  # trees take some hundred bytes per token, so the cases are packed in groups


def reference_key(policy: str, cases: Sequence[TokenizedCase], dtype: str, attention: str = "sdpa") -> str:
    """The name of a reference: 16 hex digits over all that decides its values.

    These are the policy's content, the compute type, the attention implementation and the tokens of x and x∖C of all
    cases.
    """
    how = dtype if attention == "sdpa" else f"{dtype}|{attention}"
    digest = hashlib.blake2b(f"{policy_id(policy)}|{how}".encode(), digest_size=8)
    for case in cases:
        digest.update(json.dumps([case.case_id, case.prompt, case.ablated]).encode())
    return digest.hexdigest()


def build_reference(
    policy_path: str,
    cases: Sequence[TokenizedCase],
    out_dir: str,
    dtype: str = "float32",
    batch_tokens: int = 2048,
    attention: AttentionChoice = "auto",
) -> str:
    """Compute M0's reference for `cases` unless `out_dir` has it; returns its folder or s3:// prefix.

    dtype: compute and storage type, "float32" or "bfloat16". attention: train.attention, so that M0 is computed as the
    policy is. Runs on a GPU if there is one. A folder appears in one rename; on S3 the index is written last, so no
    reader sees a part. Raises UserError for a policy that cannot be loaded or trained on trees, and where the disk has
    no room for the tensors; ValueError for a case id that occurs twice.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose_attention(attention, device)
    write = partial(_write, policy_path, cases, dtype=dtype, batch_tokens=batch_tokens, attention=chosen, device=device)
    name = f"references/{reference_key(policy_path, cases, dtype, chosen)}"
    store = open_store(out_dir)
    if not store.exists(f"{name}/{INDEX}"):
        local = store.local_path(name)
        if local is not None:
            with new_folder(local) as work:
                write(work)
        else:
            cached = _download_cache(store.join(name))
            with new_folder(cached) as work:
                write(work)
            store.upload_dir(cached / "tensors", f"{name}/tensors")
            store.write_bytes(f"{name}/{INDEX}", (cached / INDEX).read_bytes())
    return store.join(name)


def _write(
    policy_path: str,
    cases: Sequence[TokenizedCase],
    work: Path,
    dtype: str,
    batch_tokens: int,
    attention: str,
    device: str,
) -> None:
    compute = getattr(torch, dtype)
    model = load_model(policy_path, compute, attention)
    check_architecture(model.config, max((max(len(c.prompt), len(c.ablated)) for c in cases), default=0), attention)
    module = TreeModel(model, compute).to(device)
    check_tree_forward(module, cases[0])
    row = {case.case_id: i for i, case in enumerate(cases)}
    if len(row) != len(cases):
        raise ValueError(f"{len(cases) - len(row)} case ids occur twice")
    head = model.get_output_embeddings()
    constants = {"head": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    shapes = {side: (len(cases), head.weight.shape[1]) for side in SIDES}
    shapes |= {name: tuple(tensor.shape) for name, tensor in constants.items()}
    (work / "tensors").mkdir()
    file = MappedTensors.create(work / "tensors" / TENSORS, shapes, compute)
    with torch.no_grad():
        for name, tensor in constants.items():
            file.tensors[name].copy_(tensor)
        for batch in _packed(cases, batch_tokens):
            rows = torch.tensor([row[tree.case_id] for tree in batch.trees])
            hidden_2BH = module.hidden(batch).cpu()
            for side, hidden_BH in zip(SIDES, hidden_2BH.chunk(2), strict=True):
                file.tensors[side][rows] = hidden_BH
            file.release_all()
    index = {"case_ids": list(row), "dtype": dtype, "policy": policy_id(policy_path), "scaling": module.scaling}
    (work / INDEX).write_text(json.dumps(index))


def _packed(cases: Iterable[TokenizedCase], batch_tokens: int) -> Iterator[PackedBatch]:
    """x and x∖C of all cases as packed batches."""
    rest = iter(cases)
    while group := list(islice(rest, CASES_PER_PACKING)):
        yield from pack([build_tree(case, None) for case in group], batch_tokens)


def _download_cache(uri: str) -> Path:
    """The folder of this machine in which a remote reference is kept."""
    return Path.home() / ".cache" / "introspect-ray" / hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()


class Reference:
    """An opened reference. Its hidden states stay in their file, mapped into memory.

    On a CPU the output head stays in the file as well; otherwise it is copied to `device`.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        index = json.loads((folder / INDEX).read_text())
        self._row = {case_id: i for i, case_id in enumerate(index["case_ids"])}
        self.policy: str = index["policy"]
        self._file = MappedTensors(folder / "tensors" / TENSORS)
        tensors = self._file.tensors
        mapped = MappedWeight(self._file, "head") if torch.device(device).type == "cpu" else None
        weight = mapped.weight_VH if mapped else tensors["head"].to(device)
        bias = tensors["bias"].to(device) if "bias" in tensors else None
        self.head = OutputHead(weight, bias, index["scaling"], mapped)

    @classmethod
    def open(cls, path: str | None, device: torch.device | str = "cpu") -> Reference:
        """Open the reference that build_reference returned; one on S3 is downloaded once per machine.

        Raises UserError if it is missing or incomplete.
        """
        if path is None:
            raise UserError(
                "train.reference=cache needs a reference: run build_reference first, or use method=lora with "
                "train.reference=live"
            )
        folder = Path(path)
        if is_remote(path):
            folder = _download_cache(path)
            if not folder.is_dir():
                with new_folder(folder) as work:
                    open_store(path).download_dir("", work)
        if not (folder / INDEX).is_file():
            raise UserError(f"reference {path!r} is missing or incomplete: run build_reference again")
        return cls(folder, device)

    def rows(self, case_ids: Sequence[str]) -> ReferenceRows:
        """M0 at x of all these cases, then at x∖C of all. Raises UserError for a case that the reference lacks."""
        unknown = [case_id for case_id in case_ids if case_id not in self._row]
        if unknown:
            raise UserError(f"the reference lacks {len(unknown)} of {len(case_ids)} cases, e.g. {unknown[0]!r}")
        rows = torch.tensor([self._row[case_id] for case_id in case_ids], dtype=torch.int64)
        hidden = torch.cat([self._file.tensors[side].index_select(0, rows) for side in SIDES])
        self._file.release_all()
        return ReferenceRows(hidden.to(self.head.weight_VH.device), self.head)
