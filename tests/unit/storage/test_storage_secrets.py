"""What the S3 client logs."""

from __future__ import annotations

import logging
import os

import pytest

from introspect_ray.storage import open_store


def test_no_signature_is_logged_at_debug(s3_env: str, caplog: pytest.LogCaptureFixture) -> None:
    """botocore's debug messages have the headers that it signs, a session's token among them."""
    caplog.set_level(logging.DEBUG)
    store = open_store(s3_env)
    store.write_bytes("a", b"1")
    assert store.read_bytes("a") == b"1"
    assert "CanonicalRequest" not in caplog.text and os.environ["AWS_SECRET_ACCESS_KEY"] not in caplog.text
