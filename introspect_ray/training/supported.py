"""Whether a policy's architecture can be trained on packed trees.

It can if its tokens attend to their ancestors, to all of them and to nothing else, and if its logits are computed as
OutputHead computes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from introspect_ray.errors import UserError
from introspect_ray.records import TokenizedCase
from introspect_ray.training.packing import pack
from introspect_ray.training.prompt_tree import ONE_TOKEN, build_tree

if TYPE_CHECKING:
    from introspect_ray.training.model import TreeModel

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")  # transformers' layer_types
# The largest difference that rounding may make between the logits of a tree and those of x alone, as a share of the
# largest logit: some hundred operations round by 2^-24 (bfloat16: 2^-8) each, and half of the errors cancel. A wrong
# attention or output head differs by a tenth or more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}


def check_architecture(config: Any, longest: int, attention: str) -> None:
    """Refuse an architecture that packed trees cannot express, judged by the model's config alone.

    longest: tokens of the longest sequence. attention: as choose_attention gives it. Raises UserError for layers other
    than attention (their state would flow between branches and cases), for a sequence longer than an attention window
    or chunk, and for capped attention scores under SDPA, which ignores the cap.
    """
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    if other := sorted(set(kinds) - set(ATTENTION)):
        raise UserError(
            f"the policy has layers of the type {other[0]} ({sum(k not in ATTENTION for k in kinds)} of {len(kinds)}): "
            "only attention masks can separate the cases that are packed together; take a policy whose layers are all "
            "attention"
        )
    window = getattr(config, "sliding_window", None)
    if window and ("sliding_attention" in kinds or getattr(config, "use_sliding_window", True)):
        _check_reach(longest, window, "window")
    if "chunked_attention" in kinds:
        _check_reach(longest, config.attention_chunk_size, "chunk")
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap and attention == "sdpa":
        raise UserError(
            f"the policy caps its attention scores at {cap:g}, which SDPA cannot do: train it on a GPU with "
            "train.attention=flex, or take a policy without attn_logit_softcapping"
        )


def _check_reach(longest: int, reach: int, what: str) -> None:
    if longest > reach:
        raise UserError(
            f"the longest sequence has {longest} tokens, more than the policy's attention {what} of {reach}: "
            "take shorter cases or a policy with full attention"
        )


@torch.no_grad()
def check_tree_forward(module: TreeModel, case: TokenizedCase) -> None:
    """Refuse a model whose logits at x and x∖C, packed as a tree, are not those of x and x∖C on their own.

    module: not sharded, in its compute type. Raises UserError with the difference.
    """
    (batch,) = pack([build_tree(case, None, ONE_TOKEN)], 1)
    packed_2V = module.output_head.logits(module.hidden(batch)[: batch.sections.kl]).float()
    device = packed_2V.device
    alone_2V = torch.stack(
        [
            module.causal_lm(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[0, -1].float()
            for tokens in (case.prompt, case.ablated)
        ]
    )
    gap, scale = (packed_2V - alone_2V).abs().max().item(), max(1.0, alone_2V.abs().max().item())
    if not gap <= TOLERANCE[module.compute] * scale:
        raise UserError(
            f"the policy's logits on case {case.case_id!r} packed as a tree differ by {gap:.3g} from those on x and "
            f"x∖C alone (largest logit {scale:.3g}): packed training does not reproduce the attention or the output "
            f"head of its architecture ({type(module.causal_lm).__name__}); take another policy"
        )
