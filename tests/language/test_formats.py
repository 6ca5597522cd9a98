"""Models as files: every bit, dtype and option survives every way between the formats."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from language_cases import (
    assert_same_tensors,
    random_checkpoint,
    random_model,
    random_tensors,
    small_config,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from doxastic.language.config import LanguageConfig
from doxastic.language.formats import (
    Checkpoint,
    FileFormat,
    ModelFileError,
    convert,
    load_model,
    read_checkpoint,
    save_model,
    write_checkpoint,
)

# A model that each of the formats can say: only with heads of 64 does flash-linear-attention
# compute the official eps.
COMMON = small_config(64, width=128)
NAMES: dict[FileFormat, str] = {"pth": "model.pth", "safetensors": "ours", "hf": "theirs"}
TOKENS = torch.randint(0, 37, (2, 20), generator=torch.Generator().manual_seed(5))


def release(
    config: LanguageConfig, path: Path, *, unused: bool = True, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Write a .pth as RWKV-LM does, without any code of ours, and return what is in it."""
    vector = re.compile(r"(x_\w|[wav]0|k_k|k_a)$")
    tensors = random_tensors(config)
    if unused:
        for part in "012":
            tensors[f"blocks.0.att.v{part}"] = torch.randn(tensors[f"blocks.1.att.v{part}"].shape)
    tensors = {
        name: (tensor.view(1, 1, -1) if vector.search(name) else tensor).to(dtype)
        for name, tensor in tensors.items()
    }
    torch.save(tensors, path)
    return tensors


def of_many_dtypes(config: LanguageConfig) -> dict[str, Tensor]:
    """Return random weights whose dtypes take turns."""
    dtypes = itertools.cycle([torch.float32, torch.bfloat16, torch.float16, torch.float64])
    return {name: tensor.to(next(dtypes)) for name, tensor in random_tensors(config).items()}


@pytest.mark.parametrize("last", NAMES)
@pytest.mark.parametrize("first", NAMES)
def test_every_tensor_returns_from_every_format_bit_for_bit(tmp_path, first, last) -> None:
    tensors = of_many_dtypes(COMMON)
    original = Checkpoint(config=COMMON, tensors=tensors, format="safetensors")
    write_checkpoint(original, tmp_path / NAMES[first], first)
    convert(tmp_path / NAMES[first], tmp_path / "2" / NAMES[last], format=last)
    convert(tmp_path / "2" / NAMES[last], tmp_path / "3" / NAMES[first], format=first)
    for path in (tmp_path / "2" / NAMES[last], tmp_path / "3" / NAMES[first]):
        found = read_checkpoint(path)
        assert found.config == COMMON
        assert_same_tensors(dict(found.tensors), tensors)
    assert read_checkpoint(tmp_path / "2" / NAMES[last]).format == last


@pytest.mark.parametrize("unused", [True, False])
@pytest.mark.parametrize("head_size", [8, 16, 64])
def test_a_release_is_read_by_its_shapes_and_comes_back_whole(tmp_path, head_size, unused) -> None:
    config = small_config(head_size)
    released = release(config, tmp_path / "a.pth", unused=unused, dtype=torch.bfloat16)
    found = convert(tmp_path / "a.pth", tmp_path / "ours")
    assert (found.config, found.format) == (config, "pth")
    convert(tmp_path / "ours", tmp_path / "b.pth")
    again = torch.load(tmp_path / "b.pth", weights_only=True)
    # Without them the rwkv package and llama.cpp's converter cannot read a file.
    for part in () if unused else "012":
        placeholder = again.pop(f"blocks.0.att.v{part}")
        assert not placeholder.any()
        assert placeholder.dtype is torch.bfloat16
        assert placeholder.shape == released[f"blocks.1.att.v{part}"].shape
    assert_same_tensors(again, released)


def test_a_model_of_many_dtypes_is_loaded_in_the_widest(tmp_path) -> None:
    torch.save(of_many_dtypes(COMMON), tmp_path / "a.pth")
    model = load_model(tmp_path / "a.pth")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["ours", "alone.safetensors"])
@pytest.mark.parametrize(
    "config",
    [
        small_config(double_rate=True, norm_eps=3e-5, group_norm_eps=7e-4),
        small_config(deep_embed="matrix"),
        small_config(deep_embed="vector", layers=1),
    ],
    ids=["double rate", "RWKV-7a", "RWKV-8"],
)
def test_safetensors_hold_every_option(tmp_path, config, name) -> None:
    model = random_model(config)
    save_model(model, tmp_path / name)
    loaded = load_model(tmp_path / name)
    assert loaded.config == config
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])


@pytest.mark.parametrize("kind", ["matrix", "vector"])
def test_a_pth_holds_token_tables(tmp_path, kind) -> None:
    model = random_model(small_config(deep_embed=kind))
    save_model(model, tmp_path / "model.pth")
    loaded = load_model(tmp_path / "model.pth")
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])


def test_the_layout_of_hugging_face_has_exactly_these_names_and_shapes(tmp_path) -> None:
    write_checkpoint(random_checkpoint(COMMON), tmp_path, "hf")
    found = {n: tuple(t.shape) for n, t in load_file(tmp_path / "model.safetensors").items()}
    width, ranks = 128, {"w": 12, "a": 10, "v": 6, "g": 20}
    expected: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (37, width),
        "model.norm.weight": (width,),
        "model.norm.bias": (width,),
        "lm_head.weight": (37, width),
        "model.layers.0.pre_norm.weight": (width,),
        "model.layers.0.pre_norm.bias": (width,),
    }
    for layer in range(3):
        block = f"model.layers.{layer}"
        for norm in ("attn_norm", "ffn_norm", "attn.g_norm"):
            expected[f"{block}.{norm}.weight"] = expected[f"{block}.{norm}.bias"] = (width,)
        for letter in "rwkvag":
            expected[f"{block}.attn.x_{letter}"] = (1, 1, width)
        for projection in "rkvo":
            expected[f"{block}.attn.{projection}_proj.weight"] = (width, width)
        for letter, rank in ranks.items():
            if letter == "v" and layer == 0:
                continue
            lora = f"{block}.attn.{letter}_lora.lora"
            expected[f"{lora}.0.weight"] = (rank, width)
            expected[f"{lora}.2.weight"] = (width, rank)
            if letter != "g":
                expected[f"{lora}.2.bias"] = (width,)
        expected[f"{block}.attn.k_k"] = expected[f"{block}.attn.k_a"] = (width,)
        expected[f"{block}.attn.r_k"] = (2, 64)
        expected[f"{block}.ffn.x_k"] = (width,)
        expected[f"{block}.ffn.key.weight"] = (96, width)
        expected[f"{block}.ffn.value.weight"] = (width, 96)
    assert found == expected


def test_the_config_of_hugging_face_has_what_flash_linear_attention_reads(tmp_path) -> None:
    write_checkpoint(random_checkpoint(COMMON).to(torch.bfloat16), tmp_path, "hf")
    settings = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "model_type": "rwkv7",
        "architectures": ["RWKV7ForCausalLM"],
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "head_dim": 64,
        "num_heads": 2,
        "intermediate_size": 96,
        "hidden_ratio": 0.75,
        "decay_low_rank_dim": 12,
        "a_low_rank_dim": 10,
        "v_low_rank_dim": 6,
        "gate_low_rank_dim": 20,
        "value_dim": [128, 128, 128],
        "norm_eps": 1e-5,
        "group_norm_eps": 64e-5,
        "norm_bias": True,
        "norm_first": True,
        "hidden_act": "sqrelu",
        "attn": None,
        "vocab_size": 37,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    assert {key: settings[key] for key in expected} == expected


def theirs(config: LanguageConfig) -> dict[str, Tensor]:
    """Return random weights with the names of flash-linear-attention, mapped by hand."""
    words = [
        (r"^emb\.", "model.embeddings."), (r"^head\.", "lm_head."), (r"^ln_out\.", "model.norm."),
        (r"^blocks\.", "model.layers."), (r"\.ln0\.", ".pre_norm."), (r"\.ln1\.", ".attn_norm."),
        (r"\.ln2\.", ".ffn_norm."), (r"\.att\.", ".attn."), (r"attn\.receptance", "attn.r_proj"),
        (r"attn\.key", "attn.k_proj"), (r"attn\.value", "attn.v_proj"),
        (r"attn\.output", "attn.o_proj"), (r"attn\.ln_x", "attn.g_norm"),
        (r"attn\.([wavg])0$", r"attn.\1_lora.lora.2.bias"),
        (r"attn\.([wavg])1$", r"attn.\1_lora.lora.0.weight"),
        (r"attn\.([wavg])2$", r"attn.\1_lora.lora.2.weight"),
    ]  # fmt: skip
    result = {}
    for name, tensor in random_tensors(config).items():
        own = name
        for pattern, replacement in words:
            own = re.sub(pattern, replacement, own)
        is_linear = "_lora.lora" in own and tensor.ndim == 2
        result[own] = tensor.t().contiguous() if is_linear else tensor
    return result


def write_theirs(folder: Path, tensors: dict[str, Tensor], **settings: object) -> None:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    known = {"model_type": "rwkv7", "norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps({**known, **settings}))


def test_a_foreign_folder_of_hugging_face_is_the_same_model(tmp_path) -> None:
    write_theirs(tmp_path, theirs(COMMON), hidden_size=128, head_dim=64, num_heads=None)
    model = load_model(tmp_path)
    assert model.config == COMMON
    assert torch.equal(model(TOKENS)[0], random_model(COMMON)(TOKENS)[0])


def test_a_foreign_folder_with_other_heads_gets_the_eps_that_its_library_computes(tmp_path) -> None:
    write_theirs(tmp_path, theirs(small_config(16)), norm_eps=2e-5)
    found = convert(tmp_path, tmp_path / "2", format="hf")
    assert (found.config.norm_eps, found.config.group_norm_eps) == (2e-5, 32e-5)
    assert found.config == read_checkpoint(tmp_path / "2").config
    assert json.loads((tmp_path / "2/config.json").read_text())["group_norm_eps"] == 32e-5


def test_an_old_file_with_its_six_mixes_in_one_tensor_is_read(tmp_path) -> None:
    tensors = theirs(COMMON)
    for layer in range(3):
        mixes = [tensors.pop(f"model.layers.{layer}.attn.x_{letter}") for letter in "rwkvag"]
        tensors[f"model.layers.{layer}.attn.x_x"] = torch.stack(mixes)
    write_theirs(tmp_path, tensors)
    assert_same_tensors(dict(read_checkpoint(tmp_path).tensors), random_tensors(COMMON))


def test_a_pickled_file_of_hugging_face_is_what_the_config_beside_it_says(tmp_path) -> None:
    torch.save(theirs(COMMON), tmp_path / "pytorch_model.bin")
    known = {"model_type": "rwkv7", "norm_eps": 2e-5}
    (tmp_path / "config.json").write_text(json.dumps(known))
    found = read_checkpoint(tmp_path / "pytorch_model.bin")
    assert (found.config.norm_eps, found.config.group_norm_eps) == (2e-5, 128e-5)
    assert found.format == "hf"
    (tmp_path / "config.json").write_text(json.dumps({**known, "hidden_act": "silu"}))
    with pytest.raises(ModelFileError, match="hidden_act is 'silu'; expected 'sqrelu'"):
        read_checkpoint(tmp_path / "pytorch_model.bin")


def test_a_pth_is_not_what_a_config_beside_it_says(tmp_path) -> None:
    release(COMMON, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "norm_eps": 2e-5}))
    assert read_checkpoint(tmp_path / "model.pth").config == COMMON


def test_a_model_in_parts_is_read(tmp_path) -> None:
    places = {}
    for number, (name, tensor) in enumerate(theirs(COMMON).items()):
        part = f"model-{number % 3 + 1:05d}-of-00003.safetensors"
        places.setdefault(part, {})[name] = tensor
    for part, tensors in places.items():
        save_file(tensors, tmp_path / part)
    index = {"weight_map": {name: part for part, names in places.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv7"}))
    assert_same_tensors(dict(read_checkpoint(tmp_path).tensors), random_tensors(COMMON))


def test_a_file_without_header_is_read_with_the_official_eps(tmp_path) -> None:
    save_file(random_tensors(small_config()), tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.safetensors").config == small_config()


def test_another_header_is_kept(tmp_path) -> None:
    save_file(random_tensors(COMMON), tmp_path / "a.safetensors", {"license": "MIT"})
    convert(tmp_path / "a.safetensors", tmp_path / "theirs", format="hf")
    convert(tmp_path / "theirs", tmp_path / "b.safetensors")
    assert read_checkpoint(tmp_path / "b.safetensors").metadata["license"] == "MIT"


def test_a_file_of_the_old_torch_format_is_read(tmp_path) -> None:
    tensors = random_tensors(COMMON)
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_same_tensors(dict(read_checkpoint(tmp_path / "a.pth").tensors), tensors)


def test_views_and_tied_weights_are_written_as_what_they_show(tmp_path) -> None:
    model = random_model(small_config())
    model.head.weight = model.emb.weight
    wide = torch.randn(64, 1000)
    model.blocks[0].att.receptance.weight = torch.nn.Parameter(wide[:, :64])
    for name in ("model.pth", "model.safetensors"):
        save_model(model, tmp_path / name)
        assert (tmp_path / name).stat().st_size < 1.2 * sum(
            tensor.nbytes for tensor in model.state_dict().values()
        )
        assert_same_tensors(load_model(tmp_path / name).state_dict(), model.state_dict())


def test_a_loaded_model_owns_its_weights_and_can_learn(tmp_path) -> None:
    release(COMMON, tmp_path / "model.pth")
    before = (tmp_path / "model.pth").read_bytes()
    model = load_model(tmp_path / "model.pth")
    model(TOKENS)[0].square().mean().backward()
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad.any()
        parameter.data.zero_()
    assert (tmp_path / "model.pth").read_bytes() == before


def test_a_chosen_dtype_is_that_of_every_weight(tmp_path) -> None:
    release(COMMON, tmp_path / "model.pth", dtype=torch.bfloat16)
    model = load_model(tmp_path / "model.pth", dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    converted = convert(tmp_path / "model.pth", tmp_path / "ours", dtype=torch.float16)
    assert converted.dtypes == (torch.float16,)


@pytest.mark.parametrize("format", NAMES)
def test_a_model_can_be_converted_in_its_place(tmp_path, format) -> None:
    path = tmp_path / NAMES[format]
    write_checkpoint(random_checkpoint(COMMON), path, format)
    convert(path, path, format=format, dtype=torch.bfloat16)
    expected = random_checkpoint(COMMON).to(torch.bfloat16)
    assert_same_tensors(dict(read_checkpoint(path).tensors), dict(expected.tensors))


def test_a_new_file_may_be_read_by_whom_the_umask_allows(tmp_path) -> None:
    save_model(random_model(COMMON), tmp_path / "ours")
    (tmp_path / "plain").touch()
    modes = {p.stat().st_mode for p in (tmp_path / "plain", *(tmp_path / "ours").iterdir())}
    assert len(modes) == 1
