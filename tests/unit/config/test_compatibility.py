"""Which keys go together: each rule refuses what it is for, and names the remedy."""

from __future__ import annotations

import pytest

from introspect_ray.config import load_config
from introspect_ray.config.compatibility import reference_policy, weight_transfer
from introspect_ray.errors import UserError

GPU = {"train.use_gpu": True, "rollout.num_gpus": 1}
TWO = {"rollout.num_actors": 2, "train.num_workers": 2}


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"supervision.rule": "mixed", "supervision.second_policy": None}, "needs supervision.second_policy"),
        ({"rollout.serving_engine": "transformers"}, "set rollout.engine=transformers, or rollout.engine=learner"),
        ({**GPU, "rollout.tensor_parallel_size": 2}, "tensor_parallel_size=2 needs .* rollout.num_gpus=1: raise"),
        ({"train.reference": "live"}, "needs method=lora"),
        (
            {"train.reference": "live", "method": "lora", "reference_policy": "organism:second"},
            "reference_policy=organism:second is another one: leave train.reference out",
        ),
        ({"train.attention": "flex"}, "set train.use_gpu=true, or leave train.attention=flex out"),
        ({"train.offload": True}, "set train.use_gpu=true, or leave train.offload=true out"),
        ({"task.changed": "It changes."}, r"task\.changed='It changes\.' has 0 times \{label\}: write it exactly once"),
        ({"task.unchanged": "{label} and {label}"}, "task.unchanged=.* has 2 times"),
        (
            {"task.explanation": "paper", "task.changed": "To {label}.", "task.unchanged": "From {label}."},
            "task.explanation=paper has no effect",
        ),
        ({"auxiliary.weight": 2}, "auxiliary.weight=2.0 has no effect without auxiliary.path or auxiliary.hub_id"),
        ({"task.path": "a.jsonl", "task.hub_id": "a/b"}, "task.hub_id=a/b has no effect beside task.path=a.jsonl"),
        ({"task.cue": "person"}, "task.cue=person is for task.name=aita, and has no effect with organism"),
        ({"task.response_tokens": 9, "task.name": "aita"}, "task.response_tokens=9 is for task.name=refusal"),
        ({"judge.parallel": 2}, "judge.parallel is for judge.endpoint"),
        (
            {"judge.second": {"kind": "llm", "policy": "p", "max_unjudged": 1}},
            "judge.second.max_unjudged has no effect",
        ),
        ({"batch_size": 1, "train.num_workers": 2}, r"batch_size=1 .*train.num_workers=2.*: raise batch_size"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(flat, says):
    with pytest.raises(UserError, match=says):
        load_config(None, flat)


def test_a_reference_policy_that_is_the_policy_is_no_other():
    assert reference_policy(load_config(None, {"reference_policy": "organism"})) is None
    assert reference_policy(load_config(None, {"reference_policy": "organism:second"})) == "organism:second"
    load_config(None, {"train.reference": "live", "method": "lora", "reference_policy": "organism"})


@pytest.mark.parametrize(
    ("flat", "chosen"),
    [
        ({}, "object_store"),
        (GPU, "nccl"),
        ({**GPU, "rollout.weight_transfer": "object_store"}, "object_store"),
        ({**GPU, "method": "lora"}, "object_store"),  # the adapter alone moves
        ({**GPU, "rollout.engine": "transformers"}, "object_store"),
        ({"train.use_gpu": True}, "object_store"),
        ({"rollout.num_gpus": 1}, "object_store"),
        ({**GPU, "rollout.num_gpus": 0.5}, "object_store"),  # two NCCL ranks cannot share a GPU
        ({**GPU, "rollout.num_gpus": 0.5, "rollout.weight_transfer": "ipc"}, "ipc"),
    ],
)
def test_auto_takes_nccl_where_it_can(flat, chosen):
    assert weight_transfer(load_config(None, flat)) == chosen


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({}, r"needs GPUs on both sides, here train.use_gpu=false and rollout.num_gpus=0"),
        ({"train.use_gpu": True}, "rollout.num_gpus=0"),
        ({**GPU, "method": "lora"}, "method=lora sends its adapter alone"),
        ({**GPU, "rollout.engine": "transformers"}, "set rollout.engine=vllm"),
    ],
)
@pytest.mark.parametrize("kind", ["nccl", "ipc"])
def test_a_transfer_that_cannot_work_is_refused_in_one_line(kind, flat, says):
    with pytest.raises(UserError, match=says) as error:
        load_config(None, {**flat, "rollout.weight_transfer": kind})
    assert str(error.value).startswith(f"rollout.weight_transfer={kind} ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "flat", "says"),
    [
        ("nccl", {"rollout.num_gpus": 0.5}, "needs whole GPUs, rollout.num_gpus=0.5"),
        ("ipc", {}, "rollout.num_gpus=1: lower it below 1"),
        ("ipc", {"rollout.num_gpus": 0.4, "rollout.num_actors": 2}, "rollout.num_actors=2 exceeds train.num_workers=1"),
        (
            "ipc",
            {"rollout.num_gpus": 0.5, **TWO},
            r"two engines of rollout.num_gpus=0.5 fit on one.*raise .* above 0.5",
        ),
    ],
)
def test_nccl_needs_whole_gpus_and_ipc_shared_ones(kind, flat, says):
    with pytest.raises(UserError, match=says):
        load_config(None, {**GPU, **flat, "rollout.weight_transfer": kind})
