"""Who is answered by the challenger: sticky, evenly drawn, and another draw for another challenger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.canary import in_canary, in_shadow, position

CALLERS = [f"caller {number}" for number in range(5000)]


def test_the_share_is_kept_and_a_larger_one_keeps_its_callers():
    small, large = ({key for key in CALLERS if in_canary(key, "d" * 64, share)} for share in (0.1, 0.3))
    assert len(small) / len(CALLERS) == pytest.approx(0.1, abs=0.02)
    assert len(large) / len(CALLERS) == pytest.approx(0.3, abs=0.02)
    assert small < large


def test_another_challenger_draws_other_callers():
    first, second = ({key for key in CALLERS if in_canary(key, digest, 0.5)} for digest in ("d" * 64, "e" * 64))
    assert len(first & second) / len(CALLERS) == pytest.approx(0.25, abs=0.03)


@given(st.text(), st.text())
def test_nobody_at_0_everybody_at_1(key, digest):
    assert 0 <= position(key, digest) < 1
    assert not in_canary(key, digest, 0.0) and in_canary(key, digest, 1.0)
    assert not in_shadow(key, 0.0) and in_shadow(key, 1.0)
