"""Which keys go together: each rule refuses what it is for, and names the remedy."""

from __future__ import annotations

import pytest

from introspect_ray.config import load_config
from introspect_ray.config.compatibility import engines_rest, reference_policy, weight_transfer
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
        ({"rollout.release": True, "supervision.rule": "online"}, "release=true ends the engines while .* have work"),
        ({"rollout.release": True, "eval.every": 5}, "release=true ends the engines while .* have work"),
        ({"eval.decode": "trie", "eval.max_new_tokens": 9}, "max_new_tokens=9 has no effect with eval.decode=trie"),
        ({"eval.interim_cases": 9}, "eval.interim_cases=9 has no effect without eval.every"),
        ({"sweep.scheduler": "asha"}, "decides by scores made while trials train: set eval.every"),
        ({"sweep.reduction": 2}, "sweep.reduction=2 has no effect without sweep.scheduler=asha"),
        ({"eval.every": 5, "eval.dev_fraction": 0}, "scores the dev split, and there is none"),
        (
            {"eval.every": 5, "rollout.sync_every": 2, "supervision.rule": "online"},
            "eval.every=5 is no multiple of rollout.sync_every=2",
        ),
        (
            {"train.num_workers": [1, 2], "batch_size": 2, "rollout.num_cpus": 0},
            r"train.num_workers=\[1,2\] is chosen beside engines that take room, .*: raise one of them",
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
        (
            "ipc",
            {"rollout.num_gpus": 0.6, "train.num_workers": 4},
            r"rollout.num_actors=1 and train.num_workers=4: give both the same number",
        ),
        (
            "ipc",
            {"rollout.num_gpus": 0.6, "train.num_workers": [1, 2]},
            r"train.num_workers=\[1,2\]: give both the same",
        ),
        (
            "ipc",
            {"rollout.num_gpus": 0.4, "rollout.gpu_memory_utilization": 0.85},
            r"rollout.gpu_memory_utilization=0.85 takes more of it than .* rollout.num_gpus=0.4: leave it out",
        ),
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


def test_engines_rest_where_their_trainer_waits_for_them():
    """At lag 1 they label while it trains, and with sync_every=2 they have the next step's labels to make."""
    shared = {**GPU, "rollout.num_gpus": 0.6, "rollout.weight_transfer": "ipc"}
    assert engines_rest(load_config(None, shared))
    for busy in ({"lag": 1}, {"rollout.sync_every": 2}):
        assert not engines_rest(load_config(None, {**shared, **busy}))
    assert not engines_rest(load_config(None, GPU))


@pytest.mark.parametrize(
    ("rollout", "share"),
    [
        ({}, 0.85),
        ({"num_gpus": 2}, 0.85),
        ({"num_gpus": 0.6}, 0.6),
        ({"num_gpus": 0.6, "gpu_memory_utilization": 0.5}, 0.5),
    ],
)
def test_an_engine_takes_its_part_of_a_gpu(rollout, share):
    assert load_config(None, {f"rollout.{key}": value for key, value in rollout.items()}).rollout.memory_share == share
