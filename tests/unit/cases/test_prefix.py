"""Common prefixes, by hand."""

from introspect_ray.cases.prefix import common_prefix


def test_common_prefix_by_hand():
    assert common_prefix((1, 2, 3), (1, 2, 4)) == 2
    assert common_prefix((1, 2), (1, 2, 4)) == 2
    assert common_prefix("Hint: A", "Hint: B") == 6 and common_prefix("abc", "abc") == 3
    assert common_prefix("abc", "xbc") == common_prefix("", "abc") == 0


def test_common_prefix_at_every_place():
    text = "abcdefghi"
    for at in range(len(text)):
        assert common_prefix(text, text[:at] + "?" + text[at + 1 :]) == at
