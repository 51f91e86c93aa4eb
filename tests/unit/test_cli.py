"""The console command: what it answers before anything starts, and the files in jobs/ that are its commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from introspect_ray import __version__
from introspect_ray.cli import parse
from introspect_ray.commands import COMMANDS, main
from introspect_ray.config.sections import RunConfig
from introspect_ray.errors import UserError

ROOT = Path(__file__).parents[2]


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `introspect-ray ARGV`."""
    with pytest.raises(SystemExit) as done:
        main(argv)
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_version_and_help(capsys):
    assert answer(capsys, "--version") == (0, f"introspect-ray {__version__}\n", "")
    code, out, _ = answer(capsys, "--help")
    assert code == 0 and all(f"\n    {name} " in out or f"\n    {name}\n" in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_and_names_the_sections(capsys, name):
    code, out, _ = answer(capsys, name, "--help")
    assert code == 0 and out.startswith(f"usage: introspect-ray {name} ")
    listed = " ".join(out.partition("--help SECTION prints")[2].split())
    names = [name for name, field in RunConfig.model_fields.items() if isinstance(field.default, BaseModel)]
    assert "judge" in names and ", ".join(names) in listed


@pytest.mark.parametrize("argv", [["train", "--help", "rollout"], ["train", "steps=1", "-h", "rollout"]])
def test_help_on_a_section(capsys, argv):
    code, out, _ = answer(capsys, *argv)
    assert code == 0 and "rollout.num_actors=1  (integer ≥ 1)" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--help", "rolout"], "error: --help rolout: no such section or key; did you mean 'rollout'?"),
        (["train", "kl_weight"], "error: override 'kl_weight' is not of the form key=value"),
        (["sweep", "beta"], "error: sweep beta: give one name of lambda, agreement, alpha, lora_rank, lr"),
        (["sweep", "steps=1"], "error: sweep: no key takes a list"),
        (["sweep", "lora_rank=[2,4]", "method=full", "lag=[0,1]"], "does not go with a sweep over lora_rank and lag"),
        (["reproduce"], "error: reproduce: name an experiment, or all"),
        (["reproduce", "fig1"], "error: reproduce: no experiment 'fig1'"),
        (
            ["reproduce", "fig4", "kl_weight=1"],
            "error: reproduce takes output_dir=FOLDER, --settings, --dry-run and --only-report alone",
        ),
        (["sweep", "policy=[a,b]"], "error: policy cannot be swept: all trials share engines, cases and M0's labels"),
    ],
)
def test_bad_input_is_exit_code_2(capsys, argv, says):
    code, out, err = answer(capsys, *argv)
    assert code == 2 and not out and says in err


def test_names_and_overrides_in_any_order():
    args = parse("", ["kl_weight=[0,1]", "--resume", "lambda"], takes_names=True)
    assert args.names == ("lambda",) and args.overrides == {"kl_weight": [0, 1]} and args.resume
    with pytest.raises(UserError, match="key=value"):
        parse("", ["lambda"])


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_job_file_is_a_command(path):
    done = subprocess.run([sys.executable, path, "--help"], cwd=path.parent, capture_output=True, text=True, check=True)
    assert (done.stdout.startswith(f"usage: {path.name} ") and "figure" in done.stdout) or path.stem in COMMANDS
