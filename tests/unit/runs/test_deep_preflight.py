"""Inputs that once passed --dry-run and ended in an actor's traceback, or in no answer: one line, nothing written."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from introspect_ray.cli import parse
from introspect_ray.errors import UserError
from introspect_ray.policy import BUNDLED
from introspect_ray.runs.jobs import train_job

UP = "model.layers.1.mlp.up_proj.weight"
Edit = Callable[[Path], None]


def dry_run(tmp_path: Path, *args: str) -> None:
    train_job(parse("train", ["--dry-run", f"output_dir={tmp_path / 'out'}", *args]))


def refused(tmp_path: Path, *args: str) -> str:
    with pytest.raises(UserError) as caught:
        dry_run(tmp_path, *args)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    return str(caught.value)


def config(**keys: object) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def file(name: str, content: Callable[[bytes], bytes]) -> Edit:
    def edit(folder: Path) -> None:
        old = (folder / name).read_bytes() if (folder / name).exists() else b""
        (folder / name).write_bytes(content(old))

    return edit


def set_one(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[3:4].fill_(value)


def template(text: str) -> Edit:
    return file("chat_template.jinja", lambda _: text.encode())


POLICIES: dict[str, tuple[Edit, str]] = {
    "cut short": (file("model.safetensors", lambda old: old[: len(old) // 2]), "model.safetensors cannot be read"),
    "no safetensors": (file("model.safetensors", lambda _: b"\x80" * 999), "model.safetensors cannot be read"),
    "empty": (file("model.safetensors", lambda _: b""), "model.safetensors cannot be read"),
    "a tensor is missing": (weights(lambda tensors: tensors.pop(UP)), f"lack {UP} of 36 tensors"),
    "NaN": (weights(set_one(UP, float("nan"))), f"1 of 12288 numbers of {UP} are NaN or infinite"),
    "infinite": (weights(set_one(UP, float("-inf"))), f"1 of 12288 numbers of {UP} are NaN or infinite"),
    "hidden size": (config(hidden_size=128), "lm_head.weight [456, 64] instead of [456, 128]"),
    "fewer layers": (config(num_hidden_layers=2, layer_types=["full_attention"] * 2), "that config.json does not know"),
    "more layers": (config(num_hidden_layers=4, layer_types=["full_attention"] * 4), "the weight files lack"),
    "vocabulary": (config(vocab_size=300), "has vocab_size=300: tokenizer and config.json are not of one policy"),
    "a text for a number": (config(hidden_size="64"), "describe no model that can be loaded"),
    "unknown type": (config(model_type="nosuch"), "describe no model that can be loaded"),
    "code of its own": (config(model_type="mine", auto_map={"AutoConfig": "c.C"}), "a model's own code is never run"),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), "its weights are quantised (gptq)"),
    "config.json is a list": (file("config.json", lambda _: b"[1]"), "config.json must hold a JSON object, found list"),
    "config.json is deep": (file("config.json", lambda _: b"[" * 100_000), "config.json is not valid JSON"),
    "config.json is binary": (file("config.json", lambda _: b"\x80\x81"), "config.json is not valid JSON"),
    "tokenizer.json": (file("tokenizer.json", lambda _: b'{"model": 1}'), "its tokenizer cannot be read"),
    "tokenizer_config.json": (file("tokenizer_config.json", lambda _: b"[1]"), "must hold a JSON object, found list"),
    "tokenizer settings": (
        file("tokenizer_config.json", lambda old: json.dumps({**json.loads(old), "model_max_length": "x"}).encode()),
        "its tokenizer cannot be read",
    ),
    "generation_config.json": (
        file("generation_config.json", lambda _: b'{"eos_token_id": "x"}'),
        "eos_token_id is 'x', not a token's number",
    ),
    "index of nothing": (file("model.safetensors.index.json", lambda _: b"{}"), "has no weight_map"),
    "index of an absent file": (
        file("model.safetensors.index.json", lambda _: b'{"weight_map": {"a": "b.safetensors"}}'),
        "names 'b.safetensors', and there is no such file",
    ),
    "index that leads out": (
        file("model.safetensors.index.json", lambda _: b'{"weight_map": {"a": "../b.safetensors"}}'),
        "which is not a file of its folder",
    ),
    "template syntax": (template("{% for m in messages %}{{ m['content'] "), "chat template cannot be used"),
    "template names": (template("{{ nosuch(messages) }}"), "cannot be used ('nosuch' is undefined)"),
    "template types": (template("{{ 1 + 'a' }}"), "cannot be used (TypeError: unsupported operand"),
    "template of nothing": (template("{# nothing #}"), "the policy's chat template writes nothing"),
}


@pytest.mark.parametrize(("edit", "says"), POLICIES.values(), ids=POLICIES)
def test_a_policy_that_cannot_be_trained(tmp_path, edit, says):
    shutil.copytree(BUNDLED["organism"], tmp_path / "mine")
    edit(tmp_path / "mine")
    assert says in refused(tmp_path, f"policy={tmp_path / 'mine'}")


def test_weights_are_looked_at_again_once_they_are_mended(tmp_path, capsys):
    shutil.copytree(BUNDLED["organism"], tmp_path / "mine")
    weights(set_one(UP, float("nan")))(tmp_path / "mine")
    assert "NaN" in refused(tmp_path, f"policy={tmp_path / 'mine'}")
    weights(set_one(UP, 0.5))(tmp_path / "mine")
    dry_run(tmp_path, f"policy={tmp_path / 'mine'}")
    assert "\ntrials: 1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tracking.uri=postgresql://db/mlflow", "the module psycopg of the database's driver is not installed"),
        ("tracking.uri=mysql+nosuch://db/mlflow", "mysql.nosuch: correct the address"),
        ("tracking.uri=ftp://host", "MLflow has no store of the kind 'ftp'"),
        ("tracking.uri=mlruns", "MLflow's folders of files are not supported"),
        ("tracking.uri=sqlite:////proc/none/mlflow.db", "/proc/none cannot be written to"),
        ("tracking.uri=sqlite:////tmp", "/tmp is a folder"),
        (f"tracking.uri=sqlite:///{BUNDLED['organism'] / 'config.json'}", "is no SQLite database"),
        ("ray_address=what is this", "no Ray cluster answers there within 10 s (expected HOST:PORT)"),
        ("rollout.max_model_len=4096", "context=512, but rollout.max_model_len asks for 4096 tokens"),
        ("rollout.kv_cache_bytes=1000000000000000", "MiB of memory: lower it"),
    ],
)
def test_what_this_machine_or_its_services_do_not_have(tmp_path, override, says):
    assert says in refused(tmp_path, override)


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of something that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_tracking_server_that_is_mute(tmp_path, mute, monkeypatch):
    monkeypatch.setattr("introspect_ray.storage.reach.ANSWER_S", 1.0)
    began = time.monotonic()
    assert "no MLflow server answers (timed out)" in refused(tmp_path, f"tracking.uri=http://127.0.0.1:{mute}")
    assert time.monotonic() - began < 30


def test_a_store_that_is_mute(tmp_path, mute, monkeypatch):
    monkeypatch.setattr("introspect_ray.runs.answers.STORE_S", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    said = refused(tmp_path, "cache_dir=s3://bucket/cache", "tracking.backend=none")
    assert said.startswith(f"cache_dir=s3://bucket/cache: http://127.0.0.1:{mute} gave no answer within 1 s")


def test_an_adapter_that_cannot_be_read(tmp_path):
    from introspect_ray.runs.jobs import evaluate_job

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    args = parse("job", ["--dry-run", f"output_dir={tmp_path / 'out'}", f"eval.policy={tmp_path / 'adapter'}"])
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        evaluate_job(args)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\x80" * 50)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        evaluate_job(args)


def test_a_cluster_that_is_mute_or_gone(tmp_path, mute, monkeypatch):
    monkeypatch.setattr("introspect_ray.runs.answers.ANSWER_S", 1.0)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    said = refused(tmp_path, f"ray_address=127.0.0.1:{mute}")
    assert "no Ray cluster answers there" in said and "does not answer as a Ray head" in said
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert refused(tmp_path).startswith("RAY_ADDRESS=127.0.0.1:9: no Ray cluster answers there")


def test_a_learning_rate_that_moves_all_weights_is_named(tmp_path, capsys):
    dry_run(tmp_path, "learning_rate=3", "lag=2")
    said: Any = capsys.readouterr().err
    assert "warning: learning_rate=3 moves every weight" in said and "warning: lag=2 has no effect" in said
