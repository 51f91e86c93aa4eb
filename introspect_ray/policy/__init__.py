"""Policies: find them, check them, load them, adapt them, save them. Importing this package does not import torch."""

from introspect_ray.policy.files import discard, is_adapter, new_folder, policy_id, weight_files
from introspect_ray.policy.model import add_lora, load_model, load_saved, merge_adapter, save_policy
from introspect_ray.policy.resolve import BUNDLED, check_policy, local_policy, resolve_policy
from introspect_ray.policy.tokenizer import load_tokenizer
from introspect_ray.policy.weights import check_adapter, check_weights, stored_shapes

__all__ = [
    "BUNDLED",
    "add_lora",
    "check_adapter",
    "check_policy",
    "check_weights",
    "discard",
    "is_adapter",
    "load_model",
    "load_saved",
    "load_tokenizer",
    "local_policy",
    "merge_adapter",
    "new_folder",
    "policy_id",
    "resolve_policy",
    "save_policy",
    "stored_shapes",
    "weight_files",
]
