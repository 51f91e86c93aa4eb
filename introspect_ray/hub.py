"""Downloads from the Hugging Face Hub that outlast its outages."""

from __future__ import annotations

from typing import Any

from introspect_ray.errors import Outage, one_line
from introspect_ray.patience import patiently

_LATER = {408, 425, 429}  # HTTP statuses below 500 that ask for patience


def snapshot(repo_id: str, **options: Any) -> str:
    """huggingface_hub.snapshot_download, as `patiently`: a broken download goes on with the files that it lacks.

    Raises Outage for a hub that stayed away, and what snapshot_download raises for what waiting would not mend (no such
    repository, no access, offline mode, a full disk).
    """
    from huggingface_hub import snapshot_download

    def once() -> str:
        try:
            return snapshot_download(repo_id, **options)
        except Exception as error:  # HTTP, hub and OS errors share no base class
            if may_pass(error):
                raise Outage(f"the hub does not answer for {repo_id!r} ({one_line(error)[:200]})") from error
            raise

    return patiently(once)


def may_pass(error: BaseException) -> bool:
    """Whether a failed request to the hub, or what it is the cause of, is one that may succeed later."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return False
    answers = [one.response.status_code for one in chain if isinstance(one, HfHubHTTPError)]
    if answers:
        return all(status >= 500 or status in _LATER for status in answers)
    return any(isinstance(one, ConnectionError | TimeoutError) or _is_transport(one) or _is_short(one) for one in chain)


def _is_transport(error: BaseException) -> bool:
    """Whether the HTTP library raised it for a connection that failed. By name: the hub's client has changed libraries
    (requests, httpx), and only one of them is installed."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "RequestException"}) and "UnsupportedProtocol" not in names


def _is_short(error: BaseException) -> bool:
    """Whether a file ended before its size, for which the hub's client has an OSError without a class of its own."""
    return type(error) is OSError and str(error).startswith("Consistency check failed")
