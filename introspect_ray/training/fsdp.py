"""FSDP2 around a TreeModel: building it, gathering its state, checkpoints. A single process needs no FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.policy import add_lora, load_model
from introspect_ray.training.activations import release_between_layers, set_up_activations
from introspect_ray.training.attention import choose_attention
from introspect_ray.training.checkpoint_metadata import check_metadata
from introspect_ray.training.model import TreeModel
from introspect_ray.training.packing import placeholder
from introspect_ray.training.supported import check_architecture

CHECKPOINT_FILES = 4  # per rank, written at a time; unsynced, since their checksums are kept (storage/checkpoints.py)
# A frozen LoRA base is neither saved nor loaded: it comes from the policy folder.
CHECKPOINT = StateDictOptions(ignore_frozen_params=True, strict=False)


def build_module(
    cfg: RunConfig, path: str, device: torch.device, world_size: int, longest: int
) -> tuple[TreeModel, bool]:
    """The trainable policy on `device`, and whether FSDP2 shards it (torch.distributed with ranks, or a GPU).

    Trained weights are float32 masters; a frozen LoRA base has the compute type. Weights are cast after sharding, so
    the float32 copy of a large model never exists in one place. `longest`: tokens of the longest sequence. Raises
    UserError for train.offload without torch.distributed, and as check_architecture does.
    """
    compute = getattr(torch, cfg.train.dtype)
    attention = choose_attention(cfg.train.attention, device)
    # A LoRA base is loaded in the compute type, not cast to it: model.to(bfloat16) would also round the rotary
    # frequencies.
    model: Any = load_model(path, compute if cfg.method == "lora" else "auto", attention)
    check_architecture(model.config, longest, attention)
    kept = set_up_activations(model, cfg, device, world_size, longest)
    if cfg.method == "lora":
        model = add_lora(model, cfg.lora_rank, cfg.seed)
        if kept.mode != "none":
            model.enable_input_require_grads()
    module = TreeModel(model, compute)
    module.activations = kept.line
    if kept.mode != "none" and device.type == "cpu":
        release_between_layers(module, module.causal_lm.get_decoder())
    sharded = dist.is_initialized() and (world_size > 1 or device.type == "cuda")
    if sharded:
        _shard(module, device, world_size, compute, cfg.train.offload)
    elif cfg.train.offload:
        raise UserError(
            "train.offload=true needs FSDP2: call torch.distributed.init_process_group first, or leave it out"
        )
    else:
        module.to(device)
    if cfg.method == "full":
        module.float()  # with LoRA, PEFT makes the adapters float32 itself
        if not sharded:
            _spare_head_gradients(module)
    if sharded and cfg.train.reference == "live":
        # FSDP notes in its first forward which weights are trained. The reference's forward comes first in a step, with
        # the adapters off, so that FSDP would note none.
        with torch.no_grad():
            module(placeholder())
        free_gathered(module)
    return module, sharded


def free_gathered(module: nn.Module) -> None:
    """Free the root's gathered weights, which FSDP2 keeps after a forward without backward."""
    if isinstance(module, FSDPModule):
        module.reshard()


def _spare_head_gradients(module: TreeModel) -> None:
    """Hold one gradient of the size of the output head, where autograd would hold up to three at a time."""
    module.head_gradient_in_place = True
    embeddings: Any = module.causal_lm.get_input_embeddings()
    if embeddings.weight is module.output_head.weight_VH:
        embeddings.sparse = True  # its rows are added to the gradient of the head, which is computed first


def _shard(module: TreeModel, device: torch.device, world_size: int, compute: torch.dtype, offload: bool) -> None:
    """fully_shard each decoder layer, then the root with the embeddings, final norm and output head."""
    mesh = dist.init_device_mesh(device.type, (world_size,))
    # Inputs are not cast: the output of the embeddings has the type already, and in search of tensors to cast FSDP
    # would rebuild every tree of a batch, token by token.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    where = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    for layer in module.causal_lm.get_decoder().layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=where)
    fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=where)
    register_fsdp_forward_method(module, "reference_rows")


def full_value(value: Tensor) -> Tensor:
    """A DTensor gathered from all ranks, on the device of its mesh even if its shards are offloaded; collective.

    Any other tensor is returned as it is.
    """
    if not isinstance(value, DTensor):
        return value
    shard: Any = value.to(value.device_mesh.device_type)
    return shard.full_tensor()


def full_state(module: TreeModel, dtype: torch.dtype, *, keep: bool, copy: bool) -> dict[str, Tensor] | None:
    """The state of the policy (of its adapter, with LoRA) as CPU tensors of `dtype`, gathered one by one. Collective.

    Tied tensors appear under every name and share memory. Returns None unless `keep`. Without `copy` they may be the
    module's own memory, into which the next optimizer step writes.
    """
    state: dict[str, Tensor] = {}
    gathered: dict[int, Tensor] = {}
    for name, value in _named_state(module.model).items():
        key = id(value)
        if key not in gathered:
            full = full_value(value.detach())
            kept = full.to("cpu", _state_dtype(full, dtype)) if keep else full[:0]
            gathered[key] = kept.clone() if copy and kept.data_ptr() == full.data_ptr() else kept
        state[name] = gathered[key]
    return state if keep else None


def describe_state(module: TreeModel, dtype: torch.dtype) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, type and whole (unsharded) shape of each tensor that `stream_state` yields, in its order."""
    state = _named_state(module.model)
    return [(name, _state_dtype(value, dtype), tuple(value.shape)) for name, value in state.items()]


@torch.no_grad()
def stream_state(module: TreeModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The policy's state on this rank's device, gathered one tensor at a time; tied tensors come under every name.

    Collective: all ranks must exhaust it.
    """
    for name, value in _named_state(module.model).items():
        yield name, full_value(value.detach()).to(_state_dtype(value, dtype))


def _state_dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.is_floating_point() else value.dtype


def _named_state(model: nn.Module) -> dict[str, Tensor]:
    """The state by Hugging Face (PEFT) names. Tied weights are one object under two names, thanks to keep_vars."""
    if not hasattr(model, "peft_config"):
        return model.state_dict(keep_vars=True)
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False)


def adapter_config(module: TreeModel) -> dict[str, object]:
    """The content of PEFT's adapter_config.json as plain values; PEFT's sets become sorted lists."""
    config: dict[str, Any] = module.model.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def save_checkpoint(
    folder: str, module: TreeModel, optimizer: torch.optim.Optimizer, group: dist.ProcessGroup | None
) -> Future[Any]:
    """Write this rank's part of the trained weights and of the optimizer state to `folder`. Collective.

    Returns once the state is copied, so that training can go on; the future ends when the files are written. group: a
    gloo group of all ranks, since writing has collectives of its own beside those of training; None for one process.
    """
    model_state, optimizer_state = get_state_dict(module, optimizer, options=CHECKPOINT)
    state = {"model": model_state, "optimizer": optimizer_state}
    writer = _Writer(folder, sync_files=False, thread_count=CHECKPOINT_FILES)
    stager = DefaultStager(StagingOptions(False, False, False, False))  # it copies before it returns
    written = dcp.async_save(
        state, storage_writer=writer, async_stager=stager, process_group=group, no_dist=group is None
    )
    assert isinstance(written, Future)
    written.add_done_callback(lambda _: stager.close())
    return written


class _Writer(dcp.FileSystemWriter):
    """It raises where some of the state was not written: torch's own forgets what goes wrong in its further threads."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        done = super().write_data(plan, planner)
        written = len(done.value())
        if written != len(plan.items):
            raise OSError(
                f"checkpoint in {self.path}: {written} of {len(plan.items)} parts were written: see the error above, "
                "e.g. a full disk"
            )
        return done


def load_checkpoint(folder: str, module: TreeModel, optimizer: torch.optim.Optimizer) -> None:
    """Load what save_checkpoint wrote into module and optimizer. Collective. Raises UserError for a foreign index."""
    check_metadata(folder)
    model_state, optimizer_state = get_state_dict(module, optimizer, options=CHECKPOINT)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        module,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=CHECKPOINT,
    )
