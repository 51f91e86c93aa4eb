"""Which checkpoint a run goes on from: only one that is whole and its own, and never silently from step 0."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from introspect_ray.errors import UserError
from introspect_ray.storage import open_store
from introspect_ray.storage.checkpoints import CheckpointWriter, newest_usable, step_of
from tests.damage import cuts, flips

RUN = {"seed": 0, "learning_rate": 1e-5, "content of policy": "ab", "task.path": None}


def write(out: Path | str, steps: list[int], ranks: int = 1, run: dict = RUN, resumed: str | None = None) -> None:
    """Checkpoints as `ranks` processes leave them: threads here, with a barrier for every collective."""
    barrier = threading.Barrier(ranks)

    def process(rank: int) -> None:
        writer = CheckpointWriter(str(out), run, rank, ranks, resumed)
        for step in steps:

            def shard(local: str, data: bytes = b"%d" % step * 100) -> None:
                barrier.wait(30)
                Path(local, f"shard-{rank}").write_bytes(data)

            writer.save(step, shard)
        writer.wait()
        barrier.wait(30)
        writer.settle()

    with ThreadPoolExecutor(ranks) as threads:
        list(threads.map(process, range(ranks)))


def chosen(out: Path | str, run: dict = RUN) -> tuple[str | None, list[str]]:
    warnings: list[str] = []
    return newest_usable(open_store(out), run, warnings.append), warnings


def folder(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def test_the_newest_of_the_two_kept_is_chosen(tmp_path):
    write(tmp_path, [2, 4, 6], ranks=2)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]
    assert sorted(path.name for path in folder(tmp_path, 6).iterdir()) == [
        "manifest.json", "rank-0.json", "rank-1.json", "shard-0", "shard-1",
    ]  # fmt: skip
    assert chosen(tmp_path) == ("step-00000006", [])
    assert (step_of("step-00000006"), step_of(None)) == (6, 0)


def test_one_of_fewer_ranks_is_gone_on_from(tmp_path):
    """As when a node comes and elastic training goes on with one worker more."""
    write(tmp_path, [2], ranks=1)
    write(tmp_path, [4], ranks=2, resumed="step-00000002")
    assert chosen(tmp_path) == ("step-00000004", [])


def test_nothing_there_means_step_0_without_a_word(tmp_path):
    assert chosen(tmp_path) == (None, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("shard-0", truncate, "shard-0 has 99 bytes of 100"),
        ("shard-0", flip, "shard-0 has another checksum than was written"),
        ("shard-0", Path.unlink, "shard-0 is missing"),
        ("rank-0.json", truncate, "its lists cannot be read"),
        ("manifest.json", truncate, "manifest.json has 155 bytes of 156"),
        ("manifest.json", Path.unlink, "not of the form this program writes"),
        ("rank-0.json", Path.unlink, "it was never finished (no rank-0.json)"),
    ],
)
def test_a_damaged_one_is_refused_by_name_and_the_one_before_used(tmp_path, file, damage, says):
    write(tmp_path, [2, 4])
    target = folder(tmp_path, 4) / file
    damage(target)
    name, (warning,) = chosen(tmp_path)
    assert name == "step-00000002"
    assert warning.startswith(f"checkpoint {folder(tmp_path, 4)} is not used: ") and says in warning


@pytest.mark.parametrize("file", ["manifest.json", "rank-0.json", "rank-1.json", "shard-1"])
def test_a_flipped_bit_anywhere_never_makes_a_finished_one_look_unfinished(tmp_path, file):
    """One in each byte: it is refused as damaged, so that a run does not begin again at step 0 without a word."""
    write(tmp_path, [2], ranks=2)
    target = folder(tmp_path, 2) / file
    whole = target.read_bytes().rstrip()  # without its line break, a list says the same
    for data in [*(data for _, data in flips(whole, len(whole))), *cuts(whole, 10)]:
        target.write_bytes(data)
        with pytest.raises(UserError, match=r"^none of the 1 checkpoints in [^\n]* can be used, the newest because "):
            chosen(tmp_path)


def test_a_file_that_no_list_has_is_not_believed(tmp_path):
    write(tmp_path, [2, 4])
    (folder(tmp_path, 4) / "shard-7").write_bytes(b"x")
    name, (warning,) = chosen(tmp_path)
    assert name == "step-00000002" and warning.endswith("shard-7 is in no list")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"content of policy": "cd"}, "content of policy was 'ab' and is now 'cd'"),
        ({"new": 3}, "new was None and is now 3"),
    ],
)
def test_a_foreign_one_is_refused_with_the_field_that_differs(tmp_path, change, says):
    write(tmp_path, [2], run={**RUN, **change})
    write(tmp_path / "other", [4])
    folder(tmp_path / "other", 4).rename(folder(tmp_path, 4))
    name, (warning,) = chosen(tmp_path, {**RUN, **change})
    assert name == "step-00000002"
    assert warning == f"checkpoint {folder(tmp_path, 4)} is not used: it is of another run: {says}"


def test_a_renamed_one_is_refused(tmp_path):
    write(tmp_path, [2, 4])
    folder(tmp_path, 4).rename(folder(tmp_path, 8))
    assert "it says step 4" in chosen(tmp_path)[1][0]


def test_step_0_only_if_none_was_ever_whole(tmp_path):
    """One that was cut short while it was written lost nothing that counted; a damaged whole one must not be passed."""
    write(tmp_path, [2])
    listed = (folder(tmp_path, 2) / "rank-0.json").read_bytes()
    (folder(tmp_path, 2) / "rank-0.json").unlink()
    assert chosen(tmp_path) == (
        None,
        [
            f"checkpoint {folder(tmp_path, 2)} is not used: it was never finished (no rank-0.json)",
            f"no checkpoint in {tmp_path}/checkpoints was ever finished: starting at step 0",
        ],
    )
    (folder(tmp_path, 2) / "rank-0.json").write_bytes(listed)
    truncate(folder(tmp_path, 2) / "shard-0")
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* can be used.*99 bytes.*delete that"):
        chosen(tmp_path)


def test_a_refused_one_is_written_again_and_never_pushes_a_good_one_out(tmp_path):
    write(tmp_path, [2, 4, 6])
    truncate(folder(tmp_path, 6) / "shard-0")
    write(tmp_path, [5, 6], resumed="step-00000004")  # another checkpoint_every than before
    assert chosen(tmp_path) == ("step-00000006", [])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def test_on_s3(s3_env):
    write(s3_env, [2, 4, 6], ranks=2)
    store, name = open_store(s3_env), "checkpoints/step-00000006/shard-1"
    assert chosen(s3_env) == ("step-00000006", [])
    assert len(store.list("checkpoints")) == 2 * 5
    store.write_bytes(name, store.read_bytes(name)[:-1])
    assert chosen(s3_env) == (
        "step-00000004",
        [f"checkpoint {s3_env}/checkpoints/step-00000006 is not used: shard-1 has 99 bytes of 100"],
    )


def test_the_part_of_a_rank_on_another_disk_is_missed(tmp_path):
    writer = CheckpointWriter(str(tmp_path), RUN, 0, 2, None)
    writer.save(2, lambda local: None)
    writer.wait()
    with pytest.raises(UserError, match=r"lacks the part of rank 1: output_dir must be a folder that all nodes share"):
        writer.settle()


class Gated:
    """A store whose lists wait for the gate."""

    def __init__(self, out: Path, gate: threading.Event) -> None:
        self.gate, self.store = gate, open_store(out)

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def write_json(self, name: str, value: object) -> None:
        self.gate.wait(30)
        if "00000004" in name:
            raise UserError("the disk is full")
        self.store.write_json(name, value)


def test_steps_go_on_while_a_checkpoint_is_stored_and_its_error_comes_with_the_next_call(tmp_path):
    gate = threading.Event()
    writer = CheckpointWriter(str(tmp_path), RUN, 0, 1, None)
    writer._store = Gated(tmp_path, gate)
    writer.save(2, lambda local: None)
    assert chosen(tmp_path)[0] is None  # back, and the list is not there yet
    gate.set()
    writer.save(4, lambda local: None)
    assert chosen(tmp_path)[0] == "step-00000002"
    with pytest.raises(UserError, match="the disk is full"):
        writer.save(6, lambda local: None)
