"""Policies: checked, identified by content, loaded, adapted and saved."""

import json
import subprocess
import sys

import pytest
import torch
from learner_helpers import make_model, save_model
from safetensors.torch import load_file, save_file

from introspect_ray.engines.checks import policy_shapes
from introspect_ray.errors import UserError
from introspect_ray.policy import (
    add_lora,
    check_policy,
    discard,
    load_model,
    policy_id,
    resolve_policy,
    save_policy,
    weight_files,
)
from introspect_ray.policy.files import damage, write_list
from tests.damage import cuts, flips

TOKENS = torch.tensor([[1, 30, 31, 3, 10, 4]])


@pytest.fixture
def folder(tmp_path):
    """A model folder that passes the check."""
    save_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return tmp_path / "model"


def test_a_complete_folder_passes_and_resolves_to_itself(folder):
    check_policy(str(folder))
    assert resolve_policy(str(folder)) == str(folder)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "a model folder without a tokenizer"),
        ("tokenizer_config.json", "without a chat template"),
    ],
)
def test_what_is_missing_is_named(folder, missing, says):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=says):
        check_policy(str(folder))


def test_broken_json_a_wrong_name_and_a_file(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        check_policy(str(folder))
    with pytest.raises(UserError, match="no such folder"):
        check_policy("nowhere")
    with pytest.raises(UserError, match="is a file"):
        check_policy(str(folder / "tokenizer.json"))
    check_policy("some/hub-id")


def test_checking_does_not_import_torch(folder):
    code = f"import sys; from introspect_ray.policy import *; check_policy({str(folder)!r}); policy_id({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)


def test_policy_id_follows_the_content(folder, tmp_path):
    first = policy_id(str(folder))
    assert len(first) == 16
    (folder / "model.safetensors").touch()
    assert policy_id(str(folder)) == first
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert policy_id(str(folder)) != first


def test_dropout_is_off_in_train_mode(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    model = load_model(str(folder))
    assert model.training
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, model.eval()(TOKENS).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_policy_round_trip(tmp_path, tied, dtype):
    source = save_model(tmp_path / "model", tied=tied)
    model = load_model(source, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    save_policy(model.state_dict(), source, str(tmp_path / "out"))
    again = load_model(str(tmp_path / "out"))
    assert again.dtype == dtype
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_lora_init_is_seeded():
    a, b, c = (add_lora(make_model(), 4, seed).state_dict() for seed in (1, 1, 2))
    name = next(n for n in a if "lora_A" in n)
    assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name])


def test_unloadable_policy_is_a_user_error(folder):
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(folder))


def test_only_the_weights_that_from_pretrained_reads_count(folder):
    """Some repositories hold them a second time in consolidated.safetensors, under their authors' names."""
    once = (policy_id(str(folder)), policy_shapes(str(folder)))
    save_file({"layers.0.attention.wq.weight": torch.zeros(3)}, folder / "consolidated.safetensors")
    assert (policy_id(str(folder)), policy_shapes(str(folder))) == once
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{i}-of-00002.safetensors": list(weights)[i - 1 :: 2] for i in (1, 2)}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert policy_shapes(str(folder)) == once[1] and [file.name for file in weight_files(folder)] == list(parts)


def test_a_folder_is_as_its_list_says_or_damaged(folder):
    """40 flips in each file but the list, 40 in the list; a file more and one less."""
    assert damage(folder).startswith("FileNotFoundError")
    write_list(folder)
    assert damage(folder) is None
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for data in [*(data for _, data in flips(whole, 40)), *cuts(whole, 2)]:
            file.write_bytes(data)
            assert damage(folder)
        file.write_bytes(whole)
    (folder / "more").write_text("")
    assert damage(folder) == "more is not as it was written"
    (folder / "more").unlink()
    (folder / "config.json").unlink()
    assert "config.json" in damage(folder)


def test_a_discarded_folder_is_gone_and_its_open_files_stay(folder):
    with (folder / "config.json").open("rb") as open_file:
        discard(folder)
        discard(folder)
        assert not folder.exists() and not any(folder.parent.iterdir()) and open_file.read()
