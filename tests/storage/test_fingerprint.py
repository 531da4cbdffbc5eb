import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_ray.storage.fingerprint import differences, digest, fingerprint

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
parts = st.dictionaries(st.text(max_size=3), values, max_size=4)


def test_golden():
    """hashlib's BLAKE2b of the canonical JSON, so that stored fingerprints stay good."""
    assert digest(b"") == hashlib.blake2b(b"", digest_size=16).hexdigest() == "cae66941d9efbd404e4d88758ea67670"
    assert fingerprint({"b": [1.5, None], "a": "é"}) == digest(b'{"a":"\\u00e9","b":[1.5,null]}')


@settings(deadline=None)
@given(parts, parts)
def test_equal_exactly_where_the_json_is(one, other):
    as_read = json.loads(json.dumps(one))
    backwards = dict(reversed(list(as_read.items())))
    assert fingerprint(one) == fingerprint(as_read) == fingerprint(backwards)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same


@settings(deadline=None)
@given(parts)
def test_nothing_differs_from_its_json(one):
    assert differences(json.loads(json.dumps(one)), one) == []


def test_differences_are_named_with_both_values():
    old = {"elastic": {"sigma_px": 10, "alpha": 3}, "same": [1, 2], "gone": "x", "list": [1]}
    new = {"elastic": {"sigma_px": 8, "alpha": 3}, "same": [1, 2], "new": True, "list": [2]}
    assert differences(old, new) == [
        "elastic.sigma_px 10 (now 8)", "gone x (now null)", "list [1] (now [2])", "new null (now true)"
    ]  # fmt: skip


def test_long_values_are_cut():
    (said,) = differences({"a": "x" * 500}, {"a": "y" * 500})
    assert len(said) < 140
    assert said.startswith("a xxx")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_is_our_mistake(value):
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"a": value})
