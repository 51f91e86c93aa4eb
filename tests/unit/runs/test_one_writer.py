"""Every command that writes into an output folder refuses one in which a job is at work, before it starts Ray."""

from __future__ import annotations

import pytest

from introspect_ray.commands import main
from introspect_ray.storage.claim import held
from introspect_ray.storage.output_folder import MARKER, prepare_output

COMMANDS = {
    "train": ["train", "--resume"],
    "train anew": ["train", "--overwrite"],
    "sweep": ["sweep", "kl_weight=[0,1]", "--resume"],
    "evaluate": ["evaluate", "--resume", "rollout.engine=transformers"],
    "label": ["label", "--resume", "rollout.engine=transformers"],
    "reproduce": ["reproduce", "fig4"],
}


@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_a_second_job_on_a_folder_is_refused(tmp_path, capsys, monkeypatch, args):
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    prepare_output(tmp_path)
    with held(tmp_path, "train"), pytest.raises(SystemExit) as done:
        main([*args, f"output_dir={tmp_path}"])
    said = capsys.readouterr().err
    assert done.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"error: output folder {tmp_path} belongs to a job that runs: `train` on ")
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]
