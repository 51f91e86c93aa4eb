"""A user's settings of `reproduce`: what has no effect, or another form, is refused with its name."""

from __future__ import annotations

import pytest

from introspect_ray.errors import UserError
from introspect_ray.experiments.plan import plan
from introspect_ray.experiments.protocol import File, Organism, Study
from introspect_ray.experiments.settings import FAMILIES, load_settings
from introspect_ray.organism import pretraining

WRONG = {
    "valuess: {kl_weight: [0]}": "valuess",
    "values: {kl_wieght: [0]}": "values.kl_wieght",
    "values: {kl_weight: 0}": "values.kl_weight",
    "seeds: {sweeps: []}": "seeds.sweeps",
    "seeds: {sweeps: [0, 0]}": "seeds.sweeps has 0 twice",
    "kinds: {bundledd: {steps: 2}}": "kinds.bundledd",
    "kinds: [hint]": "kinds",
    "run: [1]": "run",
    "worlds: {headline: 2}": "worlds.headline",
    "worlds:": "worlds",
    "families: llama": "families",
    "families: [llamma]": "llamma",
    "check_worlds: maybe": "check_worlds",
}


@pytest.mark.parametrize(("text", "named"), WRONG.items())
def test_a_wrong_setting_is_named(tmp_path, text, named):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_settings(str(file))
    assert named in str(caught.value) and str(file) in str(caught.value)


def test_the_families_are_the_builders():
    assert FAMILIES == pretraining.FAMILIES


def test_a_real_policy_without_the_organisms_file_names_the_part(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("kinds: {hint: {policy: Qwen/Qwen3-8B}}")
    study = Study("a", Organism("hint"), {"auxiliary.path": File("aux_warm.jsonl")})
    with pytest.raises(UserError, match="part aux_warm of the settings"):
        plan([study], load_settings(str(file)), tmp_path)
