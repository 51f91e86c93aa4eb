"""What surrounds the loop may fail, and nothing is lost: an MLflow that goes away, and files of a run that are lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from introspect_ray.cli import Arguments
from introspect_ray.config import override
from introspect_ray.errors import Incomplete
from introspect_ray.labels.store import read_labels
from introspect_ray.runs.complete import finished
from introspect_ray.runs.track import track_job
from introspect_ray.storage import open_store
from introspect_ray.storage.checkpoints import list_names
from introspect_ray.storage.tracking_calls import WAITING, read_target

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
EVERY, STEPS = 4, 16
ONLINE = {"supervision__rule": "online", "supervision__agreement": 0.7, "lag": 1, "steps": STEPS}
SETTINGS = {**ONLINE, "train__checkpoint_every": EVERY}


@pytest.fixture(scope="module")
def undisturbed(live) -> Path:
    return live.train(**SETTINGS)[2]


def result(out: Path) -> tuple[bytes, list]:
    """Final weights and label table, to be equal bit for bit."""
    return (out / "policy" / "model.safetensors").read_bytes(), list(read_labels(str(out / "labels")))


def config(live, out: Path):
    keys = {key.replace("__", "."): value for key, value in SETTINGS.items()}
    return override(live.cfg, {**keys, "output_dir": str(out)})


def test_a_run_ends_as_ever_while_mlflow_is_away_and_is_sent_later(live, undisturbed, tmp_path, caplog):
    """The folder of its store goes after step 3, and comes back when the run is over."""
    from mlflow import MlflowClient

    store, kept = tmp_path / "mlflow", tmp_path / "kept"

    def go(row: dict) -> None:
        if row["step"] == 3:
            store.rename(kept)
            store.write_text("not a folder")

    tracking = {
        "tracking__backend": "mlflow",
        "tracking__uri": f"sqlite:///{store}/mlflow.db",
        "tracking__patience_s": 1,
    }
    summary, rows, out = live.train(on_row=go, **SETTINGS, **tracking)
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert json.loads((out / "summary.json").read_text()) == summary
    assert result(out) == result(undisturbed)
    assert "track --send" in caplog.text and (out / WAITING).exists()
    store.unlink()
    kept.rename(store)
    assert track_job(Arguments(None, {}, False, False, False, {"send": str(out)}))
    run_id = read_target(open_store(out)).run_id
    found = MlflowClient(tracking_uri=f"sqlite:///{store}/mlflow.db")
    losses = found.get_metric_history(run_id, "train_batch.loss")
    assert [(one.step, one.value) for one in losses] == [(row["step"], row["loss"]) for row in rows]
    assert found.get_run(run_id).data.metrics["gap.em"] == summary["gap"]["em"]["value"]
    assert found.get_run(run_id).info.status == "FINISHED"


def test_lost_fixed_labels_are_made_again_at_the_end(live, capfd):
    """A part goes while the run goes on; the table is that of a run that lost nothing."""
    fixed = {"supervision__rule": "fixed", "steps": STEPS, "train__checkpoint_every": EVERY}

    def lose(row: dict) -> None:
        if row["step"] == 2 * EVERY + 1:
            next((live.root / f"run{live.count}" / "labels").iterdir()).unlink()

    whole, mended = live.train(**fixed)[2], live.train(on_row=lose, **fixed)[2]
    assert "their labels are made again" in capfd.readouterr().err
    assert sorted(map(repr, result(mended)[1])) == sorted(map(repr, result(whole)[1]))


def test_lost_online_labels_are_made_again_from_a_checkpoint_or_named(live, undisturbed, capfd):
    """The newest two checkpoints are those of steps 8 and 12. Labels of step 8 and later can be made again."""
    out = live.train(**SETTINGS)[2]
    cfg = config(live, out)
    assert finished(cfg) is not None and len(list_names(open_store(out))) == 2
    (out / "metrics.jsonl").write_text('{"step": 0, "lo')
    for part in (out / "labels").iterdir():
        if int(part.name.split("-")[1]) >= 2 * EVERY:
            part.unlink()
    assert finished(cfg) is None
    live.train(out=out, **SETTINGS)
    assert "going back to the checkpoint of step 8" in capfd.readouterr().err
    assert result(out) == result(undisturbed)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if "loss" in row} == set(range(STEPS))
    sorted((out / "labels").iterdir())[0].unlink()
    with pytest.raises(Incomplete, match="--overwrite makes the whole run again"):
        finished(cfg)
    with pytest.raises(Incomplete, match="is not finished: labels/ has"):
        live.train(out=out, **SETTINGS)
    assert (out / "summary.json").exists()
