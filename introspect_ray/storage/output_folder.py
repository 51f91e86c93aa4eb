"""Output folders: which ones may be used, and how this program marks those it made."""

from __future__ import annotations

from pathlib import Path

from introspect_ray import __version__
from introspect_ray.errors import UserError
from introspect_ray.storage import Store, open_store
from introspect_ray.storage import claim_places as claims

MARKER = ".introspect-ray.json"
"""prepare_output writes it into every output folder; --overwrite deletes only folders that have it."""


def check_output(uri: str | Path, resume: bool = False, overwrite: bool = False) -> Store:
    """The store of an output folder that may be used: writable, and empty unless this program made it and `resume` or
    `overwrite` is given.

    Changes nothing. Raises UserError with the remedy.
    """
    store = open_store(uri)
    if resume and overwrite:
        raise UserError(
            "--resume and --overwrite exclude each other: --resume continues a run, --overwrite deletes it first"
        )
    store.check_writable()
    names = _files(store)
    if names and MARKER not in names and (resume or overwrite):
        raise UserError(
            f"output folder {store.uri} holds {len(names)} files but no {MARKER}: this program did not make it, "
            "so it is left alone; choose another output_dir or remove it yourself"
        )
    if names and not (resume or overwrite):
        raise UserError(
            f"output folder {store.uri} is not empty ({len(names)} files): "
            "pass --resume to continue, --overwrite to delete it first, or choose another output_dir"
        )
    return store


def prepare_output(uri: str | Path, resume: bool = False, overwrite: bool = False) -> Store:
    """The store of a run's output folder, checked by `check_output` and marked as made by this program.

    A non-empty folder is kept with `resume` and emptied with `overwrite`; `resume` of an empty folder
    starts from the beginning, so a job that a cluster may restart can always pass it.
    """
    store = check_output(uri, resume, overwrite)
    names = _files(store)
    if names and overwrite:
        _empty(store, names)
    if not (names and resume):
        store.write_json(MARKER, {"made_by": "introspect-ray", "version": __version__})
    return store


def _files(store: Store) -> list[str]:
    """All files but the claim of the job whose folder it is (claim.py)."""
    return [name for name in store.list() if name != claims.NAME]


def _empty(store: Store, names: list[str]) -> None:
    """Delete the files of a run. Its folder, the claim and the marker stay, so that an interrupted deletion can be
    repeated."""
    folder = store.local_path()
    if folder is not None:
        resolved, kept = folder.resolve(), (Path.home().resolve(), Path.cwd().resolve())
        if any(resolved == path or resolved in path.parents for path in kept):
            raise UserError(f"--overwrite: {folder} is or holds your home or working folder; choose another output_dir")
        tops = sorted({child.name for child in folder.iterdir()} - {MARKER, claims.NAME})
    else:
        tops = sorted({name.split("/")[0] for name in names} - {MARKER})
    for top in tops:
        store.delete_prefix(top)
