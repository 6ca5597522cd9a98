import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from tensordict import TensorDict

from doxastic.agents.encoders import EncoderConfig, build_encoder, is_image, to_tensors

SPACES = {
    "vector": spaces.Box(-1, 1, (5,)),
    "scalar": spaces.Box(-1, 1, ()),
    "matrix": spaces.Box(-1, 1, (3, 2)),
    "float64": spaces.Box(-1, 1, (5,), np.float64),
    "integers": spaces.Box(-3, 3, (5,), np.int64),
    "minigrid": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "image 96": spaces.Box(0, 255, (96, 96, 3), np.uint8),
    "image 84, channels first": spaces.Box(0, 255, (4, 84, 84), np.uint8),
    "grey image": spaces.Box(0, 255, (20, 30), np.uint8),
    "float image": spaces.Box(0, 1, (12, 9, 1)),
    "discrete": spaces.Discrete(4, start=-1),
    "multi-discrete": spaces.MultiDiscrete([2, 5, 3]),
    "multi-discrete matrix": spaces.MultiDiscrete([[2, 5], [3, 4]]),
    "multi-binary": spaces.MultiBinary(6),
    "dict": spaces.Dict(
        {
            "position": spaces.Box(-1, 1, (2,)),
            "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
            "inner": spaces.Dict({"mission": spaces.Discrete(3)}),
        }
    ),
}


def sample_tensors(space, size=6, seed=0):
    batched = batch_space(space, size)
    batched.seed(seed)
    return to_tensors(batched.sample(), space, "cpu")


def tree_map(function, tree):
    if isinstance(tree, dict):
        return {key: tree_map(function, part) for key, part in tree.items()}
    return function(tree)


@pytest.mark.parametrize("name", SPACES)
def test_every_supported_space_becomes_finite_vectors(name):
    encoder = build_encoder(SPACES[name], EncoderConfig(width=8))
    vectors = encoder(sample_tensors(SPACES[name]))
    assert vectors.shape == (6, 8) == (6, encoder.output_size)
    assert vectors.dtype == torch.float32
    assert vectors.isfinite().all()


@pytest.mark.parametrize("name", SPACES)
def test_a_sequence_is_encoded_step_by_step(name):
    encoder = build_encoder(SPACES[name], EncoderConfig(width=8))
    steps = sample_tensors(SPACES[name])
    sequences = tree_map(lambda x: x.reshape(2, 3, *x.shape[1:]), steps)
    torch.testing.assert_close(encoder(sequences), encoder(steps).reshape(2, 3, 8))


@pytest.mark.parametrize("name", SPACES)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    encoder = build_encoder(SPACES[name], EncoderConfig(width=8))
    encoder(sample_tensors(SPACES[name], size=64)).square().sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_a_tensordict_is_encoded_like_a_dict():
    encoder = build_encoder(SPACES["dict"], EncoderConfig(width=8))
    observation = sample_tensors(SPACES["dict"])
    torch.testing.assert_close(encoder(TensorDict(observation, [6])), encoder(observation))


def test_categories_are_encoded_as_one_hot_vectors():
    encoder = build_encoder(spaces.MultiDiscrete([2, 3], start=[0, 4]), EncoderConfig(width=8))
    one_hot = torch.tensor([[0.0, 1, 0, 0, 1]])
    expected = encoder.output(torch.nn.functional.silu(one_hot @ encoder.table))
    torch.testing.assert_close(encoder(torch.tensor([[1, 6]])), expected)


def test_channel_order_does_not_matter():
    first = build_encoder(spaces.Box(0, 255, (3, 20, 24), np.uint8), EncoderConfig())
    last = build_encoder(spaces.Box(0, 255, (20, 24, 3), np.uint8), EncoderConfig())
    last.load_state_dict(first.state_dict())
    image = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    torch.testing.assert_close(first(image), last(image.movedim(1, -1)))


def test_images_are_scaled_by_their_bound_and_small_grids_by_their_largest_code():
    scale = {name: build_encoder(space, EncoderConfig()).scale for name, space in SPACES.items()
             if is_image(space)}  # fmt: skip
    assert scale["minigrid"] == 10
    assert scale["image 96"] == 255
    assert scale["float image"] == 1
    config = EncoderConfig(image_scale=7.0)
    assert build_encoder(SPACES["minigrid"], config).scale == 7


def test_tensors_have_the_dtype_of_their_kind_and_images_stay_bytes():
    dtypes = {name: sample_tensors(SPACES[name]).dtype for name in SPACES if name != "dict"}
    assert dtypes["float64"] == dtypes["integers"] == dtypes["multi-binary"] == torch.float32
    assert dtypes["minigrid"] == torch.uint8
    assert dtypes["discrete"] == dtypes["multi-discrete"] == torch.int64


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Sequence(spaces.Discrete(3)),
        spaces.Tuple([spaces.Discrete(3)]),
        spaces.Dict({}),
        spaces.Box(-1, 1, (0,)),
    ],
    ids=lambda space: type(space).__name__,
)
def test_a_space_that_cannot_be_encoded_is_named_with_the_remedy(space):
    with pytest.raises(ValueError, match="cannot be encoded; supported are Box") as error:
        build_encoder(space, EncoderConfig())
    assert str(space) in str(error.value)
    assert "Wrap the environment" in str(error.value)


@pytest.mark.parametrize(
    "values", [{"width": 0}, {"image_channels": ()}, {"image_channels": (0,)}, {"image_scale": 0.0}]
)
def test_impossible_sizes_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        EncoderConfig(**values)
