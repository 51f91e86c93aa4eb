"""What a batch reports of runs that did not finish."""

from introspect_ray.config import load_config
from introspect_ray.runs.batch import _unkept
from introspect_ray.storage import open_store


def test_a_stop_that_left_no_reason_in_its_folder_is_reported(tmp_path):
    """An alarm's reason is kept beside its run and shown from there; a divergence is kept nowhere."""
    alarm, diverged, done, broken = (
        load_config(overrides={"output_dir": str(tmp_path / name)}) for name in ("alarm", "diverged", "done", "broken")
    )
    open_store(alarm.output_dir).write_json("failed.json", {"failed": "collapse"})
    rows = [{"failed": "collapse"}, {"failed": "training diverged"}, {"gap": {}}, None]  # None is among Tune's errors
    assert _unkept([alarm, diverged, done, broken], rows) == ["training diverged"]
