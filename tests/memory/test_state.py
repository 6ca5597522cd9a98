"""Named parts and the flat state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from doxastic.memory.state import CoreState, StateLayout

LAYOUT = StateLayout({"wkv": (2, 3, 3), "shift": (5,), "count": ()})


def random_state(batch: int = 4) -> CoreState:
    return CoreState(LAYOUT, torch.randn(batch, LAYOUT.size))


def test_parts_lie_in_the_order_of_the_mapping() -> None:
    assert LAYOUT.size == 24
    assert [LAYOUT.offset(name) for name in LAYOUT.shapes] == [0, 18, 23]
    flat = torch.arange(48.0).view(2, 24)
    parts = LAYOUT.split(flat)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "wkv": (2, 2, 3, 3),
        "shift": (2, 5),
        "count": (2,),
    }
    assert parts["wkv"][1, 1, 2, 0] == 24 + 15
    assert parts["shift"][0].tolist() == [18, 19, 20, 21, 22]


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_join_undoes_split(batch: int) -> None:
    flat = torch.randn(batch, LAYOUT.size)
    joined = LAYOUT.join(LAYOUT.split(flat))
    assert torch.equal(joined, flat)
    assert joined.dtype == torch.float32


def test_split_and_part_are_views_even_of_a_strided_state() -> None:
    flat = torch.zeros(LAYOUT.size, 3).T
    LAYOUT.split(flat)["shift"].fill_(1.0)
    LAYOUT.part(flat, "wkv").fill_(2.0)
    assert flat[:, 18:23].eq(1.0).all()
    assert flat[:, :18].eq(2.0).all()


def test_join_copies() -> None:
    parts = LAYOUT.split(torch.zeros(2, LAYOUT.size))
    joined = LAYOUT.join(parts)
    parts["wkv"].fill_(1.0)
    assert joined.eq(0.0).all()


def test_gradients_pass_through_split_and_join() -> None:
    flat = torch.randn(2, LAYOUT.size, requires_grad=True)
    weight = torch.randn(2, LAYOUT.size)
    (LAYOUT.join(LAYOUT.split(flat)) * weight).sum().backward()
    assert torch.equal(flat.grad, weight)


def test_layouts_of_another_order_or_shape_differ() -> None:
    same = StateLayout({"wkv": (2, 3, 3), "shift": (5,), "count": ()})
    assert same == LAYOUT and hash(same) == hash(LAYOUT)
    assert StateLayout({"shift": (5,), "wkv": (2, 3, 3), "count": ()}) != LAYOUT
    assert StateLayout({"wkv": (2, 9), "shift": (5,), "count": ()}) != LAYOUT


def test_changing_the_mapping_later_does_not_change_the_layout() -> None:
    shapes = {"h": (3,)}
    layout = StateLayout(shapes)
    shapes["c"] = (3,)
    assert layout == StateLayout({"h": (3,)})


def test_wrong_shapes_and_names_are_errors_that_say_which() -> None:
    with pytest.raises(ValueError, match=r"part 'empty' has shape \[0\]"):
        StateLayout({"empty": (0,)})
    with pytest.raises(ValueError, match=r"no part 'wvk'; it has \['wkv', 'shift', 'count'\]"):
        LAYOUT.offset("wvk")
    with pytest.raises(ValueError, match=r"shape \[2, 23\]; expected \[B, S\] with S = 24"):
        LAYOUT.split(torch.zeros(2, 23))
    parts = LAYOUT.split(torch.zeros(2, 24))
    with pytest.raises(ValueError, match="parts are"):
        LAYOUT.join({"wkv": parts["wkv"]})
    with pytest.raises(ValueError, match=r"part 'shift' has shape \[2, 4\]"):
        LAYOUT.join({**parts, "shift": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"part 'shift' has shape \[1, 5\]"):
        LAYOUT.join({**parts, "shift": torch.zeros(1, 5)})
    with pytest.raises(ValueError, match=r"torch\.float64; expected torch\.float32"):
        CoreState(LAYOUT, torch.zeros(2, 24, dtype=torch.float64))


def test_reset_clears_the_masked_rows_only_and_stops_their_gradient() -> None:
    flat = torch.randn(3, LAYOUT.size, requires_grad=True)
    mask = torch.tensor([False, True, False])
    cleared = CoreState(LAYOUT, flat).reset(mask)
    assert cleared["wkv"][1].eq(0.0).all()
    assert torch.equal(cleared.flat[~mask], flat[~mask])
    cleared.flat.sum().backward()
    assert torch.equal(flat.grad, (~mask).float()[:, None].expand(3, LAYOUT.size))


def test_reset_clears_even_nan() -> None:
    state = CoreState(LAYOUT, torch.full((1, LAYOUT.size), float("nan")))
    assert state.reset(torch.tensor([True])).flat.eq(0.0).all()


def test_reset_wants_a_mask_of_the_batch() -> None:
    with pytest.raises(ValueError, match=r"mask is \[3\] torch\.bool; expected \[B\] = \[4\]"):
        random_state().reset(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"torch\.float32; expected"):
        random_state().reset(torch.zeros(4))


def test_index_chooses_rows_in_order_and_may_repeat_them() -> None:
    state = random_state()
    assert torch.equal(state.index([2, 0, 2]).flat, state.flat[[2, 0, 2]])
    assert torch.equal(state.index(torch.tensor([1]))["shift"], state["shift"][1:2])
    assert torch.equal(state.index(slice(1, 3)).flat, state.flat[1:3])
    assert state.index([]).batch_size == 0


def test_a_clone_is_independent() -> None:
    state = random_state()
    clone = state.clone()
    clone["wkv"].zero_()
    assert state["wkv"].ne(0.0).all()


def test_a_saved_state_loads_bit_for_bit(tmp_path: Path) -> None:
    state = random_state()
    state.save(tmp_path / "state.safetensors")
    loaded = CoreState.load(tmp_path / "state.safetensors", LAYOUT)
    assert torch.equal(loaded.flat, state.flat)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_loading_a_state_of_another_layout_is_an_error(tmp_path: Path) -> None:
    random_state().save(tmp_path / "state.safetensors")
    reordered = StateLayout(dict(reversed(LAYOUT.parts)))
    with pytest.raises(ValueError, match="Load it with the model that saved it"):
        CoreState.load(tmp_path / "state.safetensors", reordered)


def test_loading_a_file_that_holds_no_state_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds a state with the layout None"):
        CoreState.load(tmp_path / "weights.safetensors", LAYOUT)


def test_threads_may_save_to_one_path(tmp_path: Path) -> None:
    path, states = tmp_path / "state.safetensors", [random_state() for _ in range(4)]
    with ThreadPoolExecutor(len(states)) as pool:
        for saving in [pool.submit(state.save, path) for state in states * 25]:
            saving.result()
    flat = CoreState.load(path, LAYOUT).flat
    assert any(torch.equal(flat, state.flat) for state in states)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state()
    state.save(tmp_path / "state.safetensors")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("doxastic.memory.state.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        random_state().save(tmp_path / "state.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    assert torch.equal(CoreState.load(tmp_path / "state.safetensors", LAYOUT).flat, state.flat)
