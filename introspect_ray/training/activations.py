"""What a step keeps between forward and backward, and what it computes again: train.activation_checkpointing.

    none         all that autograd asks for
    elementwise  the results of matrix products and of attention; norms, activation functions, rotations and sums of a
                 layer are computed again in its backward, which costs about as much as it saves in page faults
    layers       the input of each layer; a layer's backward begins with its forward, a third more arithmetic

What is computed again is the same operations on the same numbers. So weights and metrics are those of "none" to the
last bit, whichever is taken, and "auto" may look at the memory of the machine: two machines that choose differently
train the same policy, as does a resumed run. A token budget could not be chosen so. It deals the tokens of a step to
micro-batches, and so decides in which order their gradients are summed: it is a number of the config alone.
"""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from introspect_ray.config import RunConfig

Mode = Literal["none", "elementwise", "layers"]

LITTLE = 256 << 20  # bytes of activations that are not worth a dispatch in Python for each operation
SPARE = 1.25  # what is counted here, with temporary results and what the allocator loses between them
RELEASE_EVERY = 5  # layers; every layer saves little more, and its pages would be taken anew each time
_OPS = torch.ops.aten
_KEPT = {
    _OPS.mm.default,
    _OPS.addmm.default,
    _OPS.bmm.default,
    _OPS._scaled_dot_product_flash_attention_for_cpu.default,
    _OPS._scaled_dot_product_efficient_attention.default,
    _OPS._scaled_dot_product_flash_attention.default,
    _OPS._scaled_dot_product_cudnn_attention.default,
}


class Choice(NamedTuple):
    """What is kept, and one line that says so, with the numbers."""

    mode: Mode
    line: str


def set_up_activations(
    model: PreTrainedModel, cfg: RunConfig, device: torch.device, ranks: int, longest: int
) -> Choice:
    """Choose for `model`, which is not adapted or sharded yet, and set it so. Collective where there are several ranks.

    longest: tokens of the longest sequence. Raises ValueError, as transformers does, for a model without checkpointing
    that is asked to have it.
    """
    asked = cfg.train.activation_checkpointing
    width, trained = getattr(torch, cfg.train.dtype).itemsize, sum(p.numel() for p in model.parameters())
    tokens = max(cfg.train.token_budget, longest)
    kept = activation_bytes(model.config.get_text_config(), tokens, width)
    state = 12 * trained // ranks if cfg.method == "full" and not cfg.train.offload else 0  # gradients and moments
    room = _least(free_bytes(device), ranks, device)
    if asked == "auto" and not model.supports_gradient_checkpointing:
        asked = "none"
    cheap = device.type == "cpu" and cfg.method == "full"  # an adapter's products are as many again
    mode = choose(asked, kept, state, room, cheap=cheap)
    if mode != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=_arguments(model, mode))
    what = f"activations: {mode} ({'chosen' if asked == 'auto' else 'as set'}), about {kept[mode] / 2**20:.0f} MiB"
    return Choice(mode, f"{what} of {kept['none'] / 2**20:.0f} at {tokens} tokens; {room / 2**30:.1f} GiB were free")


def choose(asked: Mode | Literal["auto"], kept: dict[Mode, int], state: int, room: int, *, cheap: bool) -> Mode:
    """What to keep. kept: bytes by mode; state: bytes that are still to be allocated beside; room: bytes that are free.

    cheap: whether "elementwise" is worth its while here. It is taken for more than LITTLE, even where there is room.
    """
    if asked != "auto":
        return asked
    first: Mode = "elementwise" if cheap and kept["none"] > LITTLE else "none"
    return first if SPARE * kept[first] + state <= room else "layers"


def activation_bytes(config: Any, tokens: int, width: int) -> dict[Mode, int]:
    """Bytes that the layers of a decoder keep for `tokens` tokens, in a type of `width` bytes, by mode.

    A layer of hidden size H, queries Q, keys K and inner size I keeps six vectors of H (inputs of the norms, their
    normalised values and their results), four of Q (queries, repeated keys and values, attention's result) and four of
    I; or the results of its products and of attention, 2 H + 2 Q + 2 K + 2 I; or its input. To "layers" one layer's
    worth of the first is added.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    query, key = heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    per_layer = 6 * hidden + 4 * query + 4 * inner
    products = 2 * hidden + 2 * query + 2 * key + 2 * inner
    layers, numbers = config.num_hidden_layers, tokens * width
    return {
        "none": layers * per_layer * numbers,
        "elementwise": layers * products * numbers,
        "layers": (layers * hidden + per_layer) * numbers,
    }


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take: of its GPU, or of the host's memory and its cgroup's, shared evenly by
    the ranks of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    try:
        most, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        free = min(free, int(most) - int(used)) if most != "max" else free
    except OSError:  # no cgroup of version 2
        pass
    return max(free, 0) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def release_between_layers(module: nn.Module, body: Any) -> None:
    """Give freed memory back to the system before every RELEASE_EVERY-th layer of `body`, whenever it is computed,
    after the body, since the output head comes when most is kept, and after the forward of `module`.

    What a layer frees lies in pieces between what is kept, and glibc holds pieces until the blocks behind them are
    free, at the end of the backward. malloc_trim(3) returns their pages at once. Other C libraries have no such call:
    there nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def release(*_: object) -> None:
        trim(0)

    for layer in body.layers[::RELEASE_EVERY]:
        layer.register_forward_pre_hook(release)
    body.register_forward_hook(release)
    module.register_forward_hook(release)


def _least(room: int, ranks: int, device: torch.device) -> int:
    """The least room of all ranks, so that they choose alike: with FSDP2 a layer's forward is a collective."""
    if ranks == 1:
        return room
    least = torch.tensor(room, dtype=torch.int64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def _arguments(model: PreTrainedModel, mode: Mode) -> dict[str, Any]:
    """Of torch.utils.checkpoint.checkpoint, for each layer. Nothing is drawn at random in a forward (no dropout)."""
    arguments: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "elementwise":
        inner = getattr(model.config.get_text_config(), "intermediate_size", None)
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, inner))
    return arguments


def _policy(inner: int | None, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the results of products and attention. The product that ends a layer is neither kept nor computed again:
    recomputation ends with its input, the last tensor that the backward needs."""
    if op is _OPS.mm.default and args[0].shape[1] == inner != args[1].shape[1]:
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
