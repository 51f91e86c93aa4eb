"""CachedJudge: every verdict is asked for once and kept in the run's cache, local or on S3."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from introspect_ray.judges.protocol import Judge, Reply, Verdict
from introspect_ray.storage import Store

CHUNK = 512  # replies per call of the judge, and per file: what a run that breaks off may lose
_READERS = 8
_log = logging.getLogger(__name__)


class CachedJudge:
    """A judge that keeps its verdicts in `store`, under judges/<hash of the judge>/<hash of the file>.jsonl.

    A verdict is found by the content of its reply (messages and response, not the case), under a judge of the same
    identity. Files are written whole and never changed, so that several processes may write at a time. Those that
    were there at the first call are read; two verdicts on one reply (of two writers) are settled by the files' names.
    A file whose content is not that of its name is deleted, and its replies are judged again.
    """

    def __init__(self, judge: Judge, store: Store, chunk: int = CHUNK) -> None:
        self.identity, self.labels = judge.identity, judge.labels
        self._judge, self._store, self._chunk = judge, store, chunk
        self._folder = f"judges/{judge.identity.rpartition(':')[2]}"
        self._kept: dict[str, Verdict] | None = None

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """As Judge. Raises UserError if the store refuses, and what the judge raises; the chunks judged until then are
        kept."""
        if self._kept is None:
            self._kept = self._read()
        keys = [reply_key(reply) for reply in replies]
        missing = list({key: reply for key, reply in zip(keys, replies, strict=True) if key not in self._kept}.items())
        for start in range(0, len(missing), self._chunk):
            chunk = missing[start : start + self._chunk]
            verdicts = self._judge.verdicts([reply for _, reply in chunk])
            new = {key: verdict for (key, _), verdict in zip(chunk, verdicts, strict=True)}
            self._write(new)
            self._kept |= new
        return [self._kept[key] for key in keys]

    def _write(self, verdicts: Mapping[str, Verdict]) -> None:
        lines = [{"reply": key, "label": verdict.label, "said": verdict.said} for key, verdict in verdicts.items()]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        self._store.write_bytes(f"{self._folder}/{_digest(data)}.jsonl", data)

    def _read(self) -> dict[str, Verdict]:
        kept: dict[str, Verdict] = {}
        names = [name for name in self._store.list(self._folder) if name.endswith(".jsonl")]
        with ThreadPoolExecutor(_READERS) as pool:
            for name, data in zip(names, pool.map(self._store.read_bytes, names), strict=True):
                for key, verdict in self._verdicts(name, data):
                    kept.setdefault(key, verdict)
        return kept

    def _verdicts(self, name: str, data: bytes) -> list[tuple[str, Verdict]]:
        if name.rpartition("/")[2] != f"{_digest(data)}.jsonl":
            _log.warning("%s is damaged: it is deleted, and its replies are judged again", self._store.join(name))
            self._store.delete_prefix(name)
            return []
        rows = [json.loads(line) for line in data.decode().splitlines()]
        return [(row["reply"], Verdict(row["label"], row["said"])) for row in rows]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def reply_key(reply: Reply) -> str:
    """Address of a reply's content, 32 hex digits."""
    turns = [[message["role"], message["content"]] for message in reply.messages]
    return hashlib.blake2b(json.dumps([turns, reply.response]).encode(), digest_size=16).hexdigest()
