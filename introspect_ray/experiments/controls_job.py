"""The command `controls`: finished runs -> a printed table and controls.json. Needs no engine and no Ray."""

from __future__ import annotations

from introspect_ray.cli import Arguments
from introspect_ray.errors import UserError
from introspect_ray.experiments.controls import controls_of
from introspect_ray.experiments.controls_load import load_subjects
from introspect_ray.experiments.controls_report import as_json, text
from introspect_ray.storage import open_store

FILE = "controls.json"


def controls_job(args: Arguments) -> None:
    """Print the controls of the runs in args.names, and write them to --out. Raises UserError for other arguments, and
    for a file of earlier controls there, unless --overwrite is given."""
    if args.overrides or args.config or args.resume or args.dry_run:
        options = ("config", "resume", "dry_run")
        used = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name)]
        given = [*args.overrides, *used][0]
        raise UserError(
            f"controls takes folders of finished runs and --out alone, not {given}: a folder whose name holds '=' is "
            "given with a slash, ./kl_weight=1,seed=0"
        )
    if not args.names:
        raise UserError("controls needs folders of finished runs: give output_dirs of training runs or of a sweep")
    store = open_store(str(args.flags["out"]))
    store.check_writable()
    if store.exists(FILE) and not args.overwrite:
        raise UserError(f"{store.join(FILE)} exists already: pass --overwrite to replace it, or name another --out")
    subjects = load_subjects(args.names)
    controls = controls_of(subjects)
    store.write_json(FILE, as_json(subjects, controls))
    print(f"{text(subjects, controls)}\nnumbers  {store.join(FILE)}")
