"""A policy's folder on the node on which an engine starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from introspect_ray.errors import UserError
from introspect_ray.policy import local_policy
from introspect_ray.storage import is_remote, open_store
from introspect_ray.storage.scratch import scratch_folder


@contextmanager
def policy_here(policy: str) -> Iterator[str]:
    """The policy's folder while an engine starts; one on S3 is downloaded for that time."""
    if not is_remote(policy):
        yield local_policy(policy)
        return
    with scratch_folder("policy") as folder:
        try:
            open_store(policy).download_dir("", folder)
        except FileNotFoundError:
            raise UserError(f"policy {policy!r}: there is nothing") from None
        yield folder
