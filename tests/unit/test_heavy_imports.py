"""heavy_imports pauses garbage collection and hides modules, in its body only."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from introspect_ray.heavy_imports import heavy_imports


def test_garbage_collection_is_paused_in_the_body_only():
    assert gc.isenabled()
    with pytest.raises(KeyError), heavy_imports():
        with heavy_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the inner one does not end the pause of the outer one
        raise KeyError
    assert gc.isenabled()


def test_a_policy_is_loaded_without_scikit_learn_which_can_be_imported_afterwards():
    code = (
        "import sys; from introspect_ray.policy import load_model, resolve_policy\n"
        "load_model(resolve_policy('organism')); print('sklearn' in sys.modules, 'scipy' in sys.modules)\n"
        "import sklearn.metrics; from introspect_ray.heavy_imports import heavy_imports\n"
        "with heavy_imports(): import sklearn.metrics\n"
        "print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
