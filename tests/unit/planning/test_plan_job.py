"""jobs/plan.py as a command, and the memory, durations and costs of it derived by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from introspect_ray.cli import parse
from introspect_ray.config import load_config
from introspect_ray.errors import UserError
from introspect_ray.planning.durations import durations, label_own_seconds, sent_bytes, sync_seconds, update_seconds
from introspect_ray.planning.hardware import Assumptions
from introspect_ray.planning.job import DEFAULTS, make_plan
from introspect_ray.planning.memory import engine_memory, kept_bytes, logit_bytes, trainer_memory
from introspect_ray.planning.model_shape import read_shape
from introspect_ray.planning.report import as_text, memory_text
from introspect_ray.planning.work import assumed_work, pair_flops, step_flops
from jobs.plan import flags
from tune_spaces.kl_weight import SPACE

ROOT = Path(__file__).parents[3]
A = Assumptions()
SHAPE, WORK = read_shape("Qwen/Qwen3-8B"), assumed_work(A)
P, HEAD = 8_190_735_360, 151_936 * 4096


def config(**changes):
    return load_config(None, {**DEFAULTS, **{key.replace("__", "."): value for key, value in changes.items()}})


def plan(*args: str):
    return make_plan(parse("plan", [*args], flags), SPACE)


def test_the_command_prints_the_plan_without_torch_or_ray(tmp_path):
    out = tmp_path / "plan.json"
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['plan.py', '--policy', 'Qwen/Qwen3-8B', '--gpus', '64', '--json', {str(out)!r}]\n"
        "runpy.run_path('jobs/plan.py', run_name='__main__')\n"
        "assert not {'torch', 'ray', 'transformers', 'vllm'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said in ("trials: 8", "budget: ", "placement: ", "8,190,735,360 parameters", "<- chosen", "assumptions"):
        assert said in done.stdout
    numbers = json.loads(out.read_text())
    assert max(abs(row["error"]) for row in numbers["scaling"]) < 0.03
    assert [row["gpus"] for row in numbers["scaling"]][:: 2] == [8, 16, 32, 64, 128, 256, 512, 1024]  # fmt: skip
    chosen, simulated = numbers["chosen"], numbers["simulated"]
    assert chosen["predicted"]["step"] == pytest.approx(simulated["step"], rel=0.03)
    assert chosen["sweep_usd"] == pytest.approx(chosen["sweep_seconds"] / 3600 * 64 * 6.88)


def test_defaults_are_those_of_the_cluster_file():
    file = yaml.safe_load((ROOT / "cluster" / "h100.yaml").read_text())
    free = {"train.num_workers", "rollout.group_size"}  # the plan chooses these
    for section, values in file.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            assert name in free or DEFAULTS[name] == value, name


def test_trainer_memory_by_hand():
    """Sharded over 4: 16 bytes a parameter. Not sharded: the bfloat16 embedding and head with two layers, the root's
    gradient in bfloat16 and float32, M0's head."""
    memory = trainer_memory(SHAPE, WORK, config(), 4)
    assert memory.masters + memory.gradients + memory.adam == 16 * P / 4
    root = 2 * HEAD + 4096
    layer = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert memory.gathered == 2 * (root + 2 * layer) + 6 * root
    assert memory.reference == 2 * HEAD
    # 8 cases over 4 GPUs: two trees, but room for the longest case; 36 layer inputs and one layer's inside a token
    inside = 2 * 6 * 4096 + 6 * (4096 + 1024) + 4 * 4096 + 8 * 4096 + 8 * 12288
    assert memory.activations == 732 * (36 * 2 * 4096 + inside)
    # a row of 16 bytes, 24 where there is a KL (x and x∖C)
    assert memory.logits == pytest.approx(2 * 151_936 * (2 * 24 + 9 * 16))


def test_logits_do_not_grow_beyond_a_chunk():
    """2^26 logits are 441 rows of 151,936: of 100 trees 200 behaviour rows and 241 of the 900 target rows, of 300
    trees 441 behaviour rows."""
    assert logit_bytes(SHAPE, WORK, 100, 2) == 151_936 * (200 * 24 + 241 * 16)
    assert logit_bytes(SHAPE, WORK, 300, 2) == logit_bytes(SHAPE, WORK, 10_000, 2) == 151_936 * 441 * 24


def test_offloading_by_hand():
    """16 bytes a parameter leave the GPUs, the rest stays. A micro-batch copies 4 bytes in for each of two gathers and
    4 out; at one case a GPU that takes longest. AdamW's 40 bytes a parameter then go through host memory."""
    kept, offloaded = (trainer_memory(SHAPE, WORK, config(train__offload=x), 8) for x in (False, True))
    assert offloaded.masters == offloaded.gradients == offloaded.adam == 0
    assert kept.total - offloaded.total == pytest.approx(16 * P / 8)
    assert sum(kept_bytes(SHAPE, config(train__offload=True), 8)) == 16 * P / 8
    seconds = 12 * P / 8 / 40e9 + 40 * P / 8 / 20e9
    assert update_seconds(SHAPE, WORK, config(train__offload=True), A, 8) == pytest.approx(seconds)
    # LoRA: the frozen base, 2 bytes a parameter, is copied too
    masters, gradients, adam = kept_bytes(SHAPE, config(method="lora", train__offload=True), 1)
    adapter = SHAPE.lora_parameters(32)
    assert (masters, gradients, adam) == (2 * P + 4 * adapter, 4 * adapter, 8 * adapter)


def test_a_policy_that_fits_by_offloading_alone():
    """16 x 8.19e9 bytes are 131 GB; on one GPU of 80 the rest fits."""
    given = ("--policy", "Qwen/Qwen3-8B", "--gpus", "2", "train.num_workers=1")
    with pytest.raises(UserError, match=r"train\.offload=true"):
        plan(*given)
    chosen = plan(*given, "train.offload=true")
    assert chosen.chosen.trainers == 1 and chosen.chosen.memory.adam == 0
    assert "131.1 GB each of 1" in memory_text(chosen.setting, chosen.chosen.cfg)


def test_lora_trains_in_a_fraction():
    memory = trainer_memory(SHAPE, WORK, config(method="lora"), 1)
    adapter = 36 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))
    assert memory.masters == 2 * P + 4 * adapter
    assert memory.adam == 8 * adapter
    assert sent_bytes(SHAPE, config(method="lora")) == 2 * adapter


def test_engine_memory_by_hand():
    """bfloat16 weights over two GPUs; a token's keys and values are 2 x 36 x 1024 x 2 bytes, half of it on each."""
    memory = engine_memory(SHAPE, WORK, config(batch_size=8, rollout__group_size=8), A, 2)
    assert memory.weights == P
    assert memory.kv_needed == pytest.approx(73_728 * 16 * (177.7 + 9))
    assert memory.total == pytest.approx(0.85 * 80e9)


def test_flops_of_a_step_by_hand():
    """8 cases of 199.7 tree tokens: 2 FLOPs a weight and token, attention over all pairs, 14 rows of logits."""
    body = 8 * (2 * 36 * SHAPE.layer_matrices * 199.7 + 4 * 36 * 4096 * 48_762)
    rows = 8 * 2 * HEAD
    flops = step_flops(SHAPE, WORK, config())
    assert flops.forward == pytest.approx(body + 14 * rows)
    assert flops.backward == pytest.approx(2 * (body + 11 * rows))
    assert flops.recompute == pytest.approx(body)
    assert flops.rollout == pytest.approx(8 * pair_flops(SHAPE, WORK))
    assert WORK.rollout_tokens == pytest.approx(162.7 + 157.7 - 144)  # 151.7 shared tokens: nine blocks of 16
    assert step_flops(SHAPE, WORK, config(supervision__rule="fixed")).rollout == 0


def test_sync_by_hand():
    """16.38 GB by the host: the fingerprints, the copies and the object store; from GPU to GPU over NVLink, hashed once
    and, on the engine, read and written. Either way four trainers first gather 4 bytes a parameter, and 2 more for the
    probe's forward (longer than 36 layers' launches); an engine's probe is two prompts and 36 launches."""
    cfg, size, link = config(), 2 * P, 0.75 * 450e9
    gathers = (4 + 2) * P * 3 / 4 / link
    probe = 36 * 8e-4 + 2 * 5e-4
    copies = size / 1e9 * (1 / 6 + 1 / 6.6 + 1 / 2)
    assert sync_seconds(SHAPE, WORK, cfg, A, 4, 1, "host") == pytest.approx((gathers + copies, copies + probe))
    memory = size * (1 + 2) / 3.35e12
    device = (gathers + size / link + memory, probe)
    assert sync_seconds(SHAPE, WORK, cfg, A, 4, 1, "device") == pytest.approx(device)
    lone, _ = sync_seconds(SHAPE, WORK, cfg, A, 1, 1, "device")  # nothing to gather: the probe is its launches
    assert lone == pytest.approx(36 * 8e-4 + size / link + memory)


def test_a_transfer_that_leaves_the_node_goes_through_one_port():
    """Rank 0 and all engines are one NCCL group: 4 trainers and 4 engines are one node, a fifth engine is on another,
    behind one 400 Gb/s port, however many GPUs an engine has. A shard of two GPUs is written in half the time."""
    size, link = 2 * P, 0.75 * 450e9
    gathers = (4 + 2) * P * 3 / 4 / link
    for engines, tp, wire in ((4, 1, 450e9), (5, 1, 50e9), (2, 2, 450e9), (3, 2, 50e9)):
        cfg = config(rollout__num_actors=engines)
        publish, _ = sync_seconds(SHAPE, WORK, cfg, A, 4, tp, "device")
        assert publish == pytest.approx(gathers + size / (0.75 * wire) + size * (1 + 2 / tp) / 3.35e12)


def test_offloaded_masters_are_copied_to_the_gpu_before_they_are_gathered():
    """A quarter of 4 bytes a parameter at 40 GB/s, for the gather and again for the probe, where the copy takes longer
    than the links. An adapter's share is its own; the frozen base is copied for the probe alone."""
    link = 0.75 * 450e9
    publish, _ = sync_seconds(SHAPE, WORK, config(train__offload=True), A, 4, 1, "device")
    assert publish == pytest.approx(4 * P * 3 / 4 / link + 2 * 4 * P / 4 / 40e9 + 2 * P / link + 3 * 2 * P / 3.35e12)
    adapter = SHAPE.lora_parameters(32)
    publish, _ = sync_seconds(SHAPE, WORK, config(method="lora", train__offload=True), A, 4, 1, "host")
    gather = 4 * adapter * 3 / 4 / link + 4 * adapter / 4 / 40e9
    copies = 2 * adapter / 1e9 * (1 / 6 + 1 / 6.6 + 1 / 2)
    assert publish == pytest.approx(gather + (2 * P + 4 * adapter) / 4 / 40e9 + copies)


def test_update_is_bound_by_links_at_the_papers_batch_and_by_arithmetic_at_a_large_one():
    """8 GPUs, a case each: two gathers of 2 bytes and a float32 reduction a parameter. At a full budget of 82 cases:
    FLOPs over 40 % of the peak."""
    adam = 40 * P / 8 / 3.35e12
    links = 8 * P * 7 / 8 / (0.75 * 450e9)
    assert update_seconds(SHAPE, WORK, config(), A, 8) == pytest.approx(links + adam)
    large = config(batch_size=656)
    arithmetic = step_flops(SHAPE, WORK, large).train / 8 / (0.4 * 989e12)
    assert update_seconds(SHAPE, WORK, large, A, 8) == pytest.approx(arithmetic + adam)


def test_labelling_by_the_learner_by_hand():
    """x and x∖C share 151.7 tokens: a tree of 168.7, against 176.4 that an engine computes. 8 GPUs, a case each: one
    gather of 2 bytes a parameter takes longer than 36 layers' launches. On one GPU 8 cases are bound by arithmetic."""
    cfg = config(rollout__engine="learner")
    case = 2 * 36 * SHAPE.layer_matrices * 168.7 + 4 * 36 * 4096 * 168.7**2 + 2 * 2 * HEAD
    assert step_flops(SHAPE, WORK, cfg).rollout == pytest.approx(8 * case)
    links = 2 * P * 7 / 8 / (0.75 * 450e9)
    assert links > 36 * 8e-4
    assert label_own_seconds(SHAPE, WORK, cfg, A, 8) == pytest.approx(links)
    assert label_own_seconds(SHAPE, WORK, cfg, A, 1) == pytest.approx(8 * case / (0.4 * 989e12))
    offloaded = config(rollout__engine="learner", train__offload=True)  # 4 bytes a parameter of its shard from the host
    assert label_own_seconds(SHAPE, WORK, offloaded, A, 8) == pytest.approx(4 * P / 8 / 40e9)
    times = durations(SHAPE, WORK, cfg, A, 8, 1, "device")
    assert times.label_own == label_own_seconds(SHAPE, WORK, cfg, A, 8)
    assert durations(SHAPE, WORK, config(), A, 8, 1, "device").label_own == 0


def test_a_plan_where_the_learner_labels():
    """Its step is labelling and update; the engines stand by for M0's labels and the evaluation."""
    made = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "16", "rollout.engine=learner")
    times, pace = made.chosen.times, made.chosen.pace
    assert pace.step == times.label_own + times.update and pace.engine_idle == 1
    assert made.simulated.pace.step == pytest.approx(pace.step)
    assert "trees of x and x∖C, by the trainers" in as_text(made)
    counted = plan("--policy", "organism", "task.name=organism", "rollout.engine=learner").setting.work
    assert counted.both < counted.prompt + counted.ablated and counted.both < counted.tree


def test_what_is_given_is_kept_and_counted():
    small = plan("--policy", "organism", "task.name=organism", "train.num_workers=2", "rollout.num_actors=3")
    assert (small.chosen.trainers, small.chosen.engines) == (2, 3)
    assert small.setting.work.train_cases == 3072 and "3072 training cases" in small.setting.work.source
    assert plan("--policy", "organism", "assume.price=2").setting.assumed.price == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["assume.pirce=2"], "did you mean 'assume.price'"),
        (["assume.price=-2"], "positive number"),
        (["--gpus", "1"], "--gpus 1"),
        (["kl_wieght=1"], "did you mean 'kl_weight'"),
        (["task.path=/nowhere.jsonl"], "--tokenizer"),
        (["--policy", "Qwen/Qwen3-32B", "--gpus", "64"], "does not train on 8 GPU"),
        (["train.num_workers=8", "rollout.num_actors=4"], "--gpus is 8"),
    ],
)
def test_bad_input_is_one_line(args, says):
    with pytest.raises(UserError, match=says):
        plan(*args)
