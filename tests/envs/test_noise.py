import pytest

from doxastic.envs.noise import NOISE_KINDS, noise_levels


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_levels_become_a_tuple_of_floats(kind):
    assert noise_levels([0, 1], kind) == (0.0, 1.0)
    assert noise_levels(1, kind) == (1.0,)


@pytest.mark.parametrize(
    ("noise", "kind", "message"),
    [
        (-0.1, "gaussian", "is a standard deviation and must be finite and >= 0"),
        (float("nan"), "student", "must be finite"),
        ((), "bias", "non-empty"),
        (((0.1,),), "gaussian", "a number or a non-empty list"),
        (True, "gaussian", "noise is True; expected a number or a non-empty list"),
        ("0.1", "gaussian", "noise is '0.1'; expected a number or a non-empty list"),
        ((0.1, None), "gaussian", "a number or a non-empty list"),
        (1.1, "flicker", "is a probability and at most 1"),
        (-1, "delay", "is a number of steps and must be finite and >= 0"),
        (1.5, "delay", "is a number of steps, a whole one"),
        (0.1, "dropout", "expected one of gaussian, student, flicker, bias, delay"),
    ],
)
def test_what_is_no_level_is_named(noise, kind, message):
    with pytest.raises(ValueError, match=message):
        noise_levels(noise, kind)
