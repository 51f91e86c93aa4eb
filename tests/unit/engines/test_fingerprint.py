"""Fingerprints of weights: what changes them, and what does not."""

from __future__ import annotations

import pytest
import torch

from introspect_ray.engines.fingerprint import fingerprints, group_of, tensor_digest


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("model.layers.30.self_attn.q_proj.bias", "model.layers.30"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3"),  # an expert belongs to its layer
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "base_model.model.model.layers.0"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("scale", "scale"),
    ],
)
def test_group_is_the_name_up_to_the_layer_index(name, group):
    assert group_of(name) == group


def test_a_change_shows_in_its_own_group():
    layers = {f"model.layers.{i}.{part}.weight": torch.randn(5, 7) for i in range(3) for part in ("q", "up")}
    base = {**layers, "model.norm.weight": torch.ones(7), "lm_head.weight": torch.randn(9, 7)}
    before = fingerprints(base)
    assert list(before) == ["lm_head", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm"]
    changed = {**base, "model.layers.1.up.weight": base["model.layers.1.up.weight"] + 1e-6}
    after = fingerprints(changed)
    assert [group for group in before if before[group] != after[group]] == ["model.layers.1"]
    assert fingerprints(dict(reversed(base.items()))) == before  # senders and receivers may differ in order


# Three full rows of 1024 words; two rows and a bit; less than a word, and odd bytes.
@pytest.mark.parametrize("shape", [(3, 2048), (4696,), (7,), (1,)])
def test_digest_sees_type_shape_and_single_bits(shape):
    base = torch.randn(shape)
    seen = {tensor_digest(base), tensor_digest(base.reshape(-1, 1)), tensor_digest(base.view(torch.int32))}
    flat = base.view(torch.int32).reshape(-1)
    places = sorted({0, len(flat) // 2, len(flat) - 1})
    for place in places:
        other = flat.clone()
        other[place] ^= 1
        seen.add(tensor_digest(other.view(torch.float32).reshape(shape)))
    assert len(seen) == 3 + len(places)
    assert tensor_digest(base.clone()) == tensor_digest(base)


def test_digest_sees_what_a_plain_sum_does_not():
    """Words exchanged in a row, in a column and across, and +1 beside -1: the sum of all words stays, a row's or a
    column's does not. Only four equal and opposite changes at the corners of a rectangle keep all of them."""
    base = torch.arange(4 * 1024, dtype=torch.int64).reshape(4, 1024) ** 2
    digests = {tensor_digest(base)}
    for (r, c), (s, d) in (((0, 0), (0, 9)), ((1, 5), (3, 5)), ((0, 1), (2, 3))):
        other = base.clone()
        other[r, c], other[s, d] = base[s, d], base[r, c]
        digests.add(tensor_digest(other))
    other = base.clone()
    other[1, 1] += 1
    other[2, 2] -= 1
    digests.add(tensor_digest(other))
    assert len(digests) == 5
    for place, change in (((0, 0), 1), ((0, 1), -1), ((1, 0), -1), ((1, 1), 1)):
        base[place] += change
    assert tensor_digest(base) == tensor_digest(torch.arange(4 * 1024, dtype=torch.int64).reshape(4, 1024) ** 2)


def test_digest_does_not_depend_on_where_the_tensor_lies():
    """Strided, or at an odd place of a larger storage: the same content is the same digest."""
    base = torch.randn(40, 300)
    strided = torch.stack([base, base], -1)[..., 0]
    shifted = torch.cat([torch.zeros(1), base.reshape(-1)])[1:].reshape(40, 300)
    assert not strided.is_contiguous() and shifted.storage_offset() == 1
    assert tensor_digest(strided) == tensor_digest(shifted) == tensor_digest(base)
    assert tensor_digest(torch.empty(0, 3)) != tensor_digest(torch.empty(3, 0))
