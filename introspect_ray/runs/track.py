"""`introspect-ray track --send RUN`: tell MLflow what it was not told while runs went on without it."""

from __future__ import annotations

from introspect_ray.cli import Arguments
from introspect_ray.errors import UserError, one_line
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.tracking_calls import RECORD, described, read_target, read_waiting

PATIENCE_S = 10.0  # for a server that takes nothing


def track_job(args: Arguments) -> bool:
    """Send what waits in a run's folder and in all folders below it (the trials of a sweep), a line each.

    Returns whether nothing waits any more. --dry-run: only say what waits. Raises UserError for other arguments, a
    folder without a tracked run, and a damaged file.
    """
    folder = args.flags["send"]
    if folder is None or args.overrides or args.config or args.resume or args.overwrite:
        raise UserError("track takes one argument, the folder of a run or a sweep: track --send runs/x")
    store = open_store(folder)
    found = tracked_folders(store)
    if not found:
        raise UserError(f"{store.join()} holds no {RECORD}: give the output_dir of a run that MLflow tracks")
    if args.dry_run:
        for name in found:
            print(f"{store.join(name)}: {described(read_waiting(open_store(store.join(name))))} waits")
        return True
    from introspect_ray.storage.tracking_queue import send_waiting

    all_sent = True
    for name in found:  # a sweep before its trials, which are its children
        sent, left, error = send_waiting(open_store(store.join(name)), _parent_of(store, name), PATIENCE_S)
        why = f" ({one_line(error)})" if left and error else ""
        print(f"{store.join(name)}: {sent} sent, {described(left)} waits{why}", flush=True)
        all_sent = all_sent and not left
    return all_sent


def tracked_folders(store: Store) -> list[str]:
    """The folders with a tracked run, relative to the store, a folder before those below it."""
    names = [name.split("/") for name in store.list() if name.split("/")[-1] == RECORD]
    return ["/".join(parts[:-1]) for parts in sorted(names, key=lambda parts: (len(parts), parts))]


def _parent_of(store: Store, name: str) -> str | None:
    """The MLflow run of the nearest folder above that has one: a trial that began without MLflow does not know it."""
    parts = name.split("/") if name else []
    for end in range(len(parts) - 1, -1, -1):
        target = read_target(open_store(store.join(*parts[:end])))
        if target is not None and target.run_id:
            return target.run_id
    return None
