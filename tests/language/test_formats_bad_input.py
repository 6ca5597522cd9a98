"""Files that are no model, or no longer: the message names file, tensor, what was expected."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from language_cases import assert_same_tensors, random_checkpoint, random_tensors, small_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from doxastic.language.formats import (
    ModelFileError,
    load_model,
    read_checkpoint,
    save_model,
    write_checkpoint,
)
from doxastic.language.formats.files import read_safetensors
from doxastic.language.model import LanguageModel

CONFIG = small_config(64, width=128)


def refused(path: Path) -> str:
    """Return why the path is refused; the message names it."""
    with pytest.raises(ModelFileError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def pth(tmp_path) -> Callable[[dict[str, Tensor]], str]:
    """Return a function that writes tensors as a .pth and returns why it is refused."""

    def write(tensors: dict[str, Tensor]) -> str:
        torch.save(tensors, tmp_path / "model.pth")
        return refused(tmp_path / "model.pth")

    return write


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder of Hugging Face's layout with a good model."""
    write_checkpoint(random_checkpoint(CONFIG), tmp_path / "theirs", "hf")
    return tmp_path / "theirs"


def stored(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder, without the header of their file."""
    return load_file(folder / "model.safetensors")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.0.att.time_first", "is RWKV-4 or RWKV-5"),
        ("rwkv.blocks.0.attention.time_decay", "is RWKV-4 or RWKV-5"),
        ("blocks.0.att.time_faaaa", "is RWKV-5"),
        ("blocks.0.att.time_maa_x", "is RWKV-6"),
        ("model.layers.0.attn.x_proj.0.weight", "is RWKV-6"),
        ("blocks.0.qkv.k_emb.weight", "is RWKV-7b"),
        ("blocks.0.rosa.q.weight", "is RWKV-8 with ROSA"),
        ("blocks.0.att.key.weight_mx", "is quantised"),
        ("model.layers.0.attn.k_proj.qweight", "is quantised"),
        ("base_model.model.blocks.0.att.key.lora_A.weight", "is a LoRA adapter"),
        ("blocks.0.att.key.lora_a", "is an adapter of doxastic"),
        ("blocks.0.att.state_offset", "is an adapter of doxastic"),
        ("0.wkv", "is a state"),
        ("model.layers.1.self_attn.q_proj.weight", "has attention layers"),
        ("_forward_module.emb.weight", "was saved with its training wrapper's prefix"),
    ],
)
def test_another_model_is_refused_by_its_name(pth, name, kind) -> None:
    message = pth({"emb.weight": torch.ones(5, 8), name: torch.ones(8)})
    assert f"{kind}" in message
    assert f"it has the tensor {name}; " in message


def test_no_name_of_ours_or_theirs_is_taken_for_another_model(tmp_path) -> None:
    for config in (CONFIG, small_config(deep_embed="matrix"), small_config(deep_embed="vector")):
        torch.save(random_tensors(config), tmp_path / "model.pth")
        assert read_checkpoint(tmp_path / "model.pth").config == config


def test_a_tuned_state_is_not_taken_for_a_model(pth) -> None:
    message = pth({"blocks.0.att.time_state": torch.ones(2, 64, 64)})
    assert "is a tuned initial state, not a model" in message


def test_quantised_numbers_are_refused(pth) -> None:
    tensors = random_tensors(CONFIG)
    tensors["blocks.1.ffn.key.weight"] = tensors["blocks.1.ffn.key.weight"].to(torch.int8)
    message = pth(tensors)
    assert "blocks.1.ffn.key.weight is torch.int8; expected float32, bfloat16" in message


def test_missing_tensors_are_named(pth) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["blocks.2.att.ln_x.weight"], tensors["blocks.1.att.v0"]
    message = pth(tensors)
    assert "lacks blocks.1.att.v0, blocks.2.att.ln_x.weight; expected every tensor" in message


def test_missing_tensors_that_tell_a_size_are_named(pth) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["blocks.0.att.r_k"]
    assert "lacks blocks.0.att.r_k; expected every tensor of an RWKV-7" in pth(tensors)
    assert "lacks emb.weight; expected every tensor" in pth({"weight": torch.ones(2)})


def test_unknown_tensors_are_named(pth) -> None:
    message = pth({**random_tensors(CONFIG), "blocks.0.att.gain": torch.ones(3)})
    assert "has blocks.0.att.gain, which RWKV-7 (x070) has not" in message


def test_a_shape_that_disagrees_with_the_others_is_named(pth) -> None:
    message = pth({**random_tensors(CONFIG), "blocks.1.att.w2": torch.ones(11, 128)})
    assert "blocks.1.att.w2 has shape [11, 128]; expected [12, 128] in a model of width" in message


def test_heads_that_do_not_divide_the_width_are_refused(pth) -> None:
    message = pth({**random_tensors(CONFIG), "blocks.0.att.r_k": torch.ones(2, 60)})
    assert "blocks.0.att.r_k has shape [2, 60]; expected [H, N] with H N = 128" in message


def test_a_vector_where_a_matrix_tells_a_size_is_refused(pth) -> None:
    message = pth({**random_tensors(CONFIG), "blocks.0.att.r_k": torch.ones(128)})
    assert "blocks.0.att.r_k has shape [128]; expected a matrix" in message


def test_a_shape_that_disagrees_with_the_configuration_is_named(tmp_path) -> None:
    other = LanguageModel(CONFIG)
    other.config = small_config(64, width=128, hidden_size=64)
    with pytest.raises(
        ModelFileError, match=r"ffn.key.weight has shape \[96, 128\]; expected \[64"
    ):
        save_model(other, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_shape_of_the_other_layout_is_spelt_as_its_file_has_it(folder) -> None:
    name = "model.layers.1.attn.w_lora.lora.2.weight"
    save_file({**stored(folder), name: torch.ones(128, 11)}, folder / "model.safetensors")
    assert f"{name} has shape [128, 11]; expected [128, 12]" in refused(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hidden_size", 256, "hidden_size is 256; the file of the tensors has 128"),
        ("head_dim", 32, "head_dim is 32; the file of the tensors has 64"),
        ("decay_low_rank_dim", 64, "decay_low_rank_dim is 64; the file of the tensors has 12"),
        (
            "value_dim",
            [128, 128, 256],
            "value_dim is [128, 128, 256]; the file of the tensors has [128, ",
        ),
        ("norm_eps", 1e-6, "norm_eps is 1e-06; the file of the tensors has 1e-05"),
        ("model_type", "llama", "model_type is 'llama'; expected 'rwkv7'"),
        ("attn", {"layers": [1]}, "attn is {'layers': [1]}; expected None"),
        ("hidden_act", "silu", "hidden_act is 'silu'; expected 'sqrelu'"),
        ("tie_word_embeddings", True, "tie_word_embeddings is True; expected False"),
        ("quantization_config", {"bits": 4}, "quantization_config is {'bits': 4}; expected None"),
    ],
)
def test_a_config_of_another_model_is_refused(folder, key, value, expected) -> None:
    edit(folder / "config.json", **{key: value})
    with pytest.raises(ModelFileError, match=re.escape(expected)):
        read_checkpoint(folder)


def test_an_eps_that_is_no_number_is_refused(folder) -> None:
    save_file(stored(folder), folder / "model.safetensors")
    edit(folder / "config.json", norm_eps="small")
    with pytest.raises(ModelFileError, match="norm_eps is 'small'; expected a number above 0"):
        read_checkpoint(folder)


def test_an_edited_configuration_is_refused_and_not_ignored(tmp_path) -> None:
    write_checkpoint(random_checkpoint(CONFIG), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["config"]["group_norm_eps"] = 1e-3
    (tmp_path / "config.json").write_text(json.dumps(settings))
    expected = "group_norm_eps is 0.001; the header of model.safetensors says 0.00064"
    with pytest.raises(ModelFileError, match=expected):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    assert read_checkpoint(tmp_path).config == CONFIG


def test_another_version_of_our_format_is_refused(tmp_path) -> None:
    write_checkpoint(random_checkpoint(CONFIG), tmp_path)
    save_file(stored(tmp_path), tmp_path / "model.safetensors")
    edit(tmp_path / "config.json", version=2)
    with pytest.raises(ModelFileError, match="in version 2; this doxastic reads version 1"):
        read_checkpoint(tmp_path)


def test_a_configuration_with_unknown_keys_is_refused(tmp_path) -> None:
    settings = {"format": "doxastic-language-model", "version": 1, "config": {"depth": 3}}
    save_file(
        random_tensors(CONFIG), tmp_path / "a.safetensors", {"doxastic": json.dumps(settings)}
    )
    assert "the configuration has unknown keys ['depth']" in refused(tmp_path / "a.safetensors")
    save_file(random_tensors(CONFIG), tmp_path / "a.safetensors", {"doxastic": "[1"})
    assert "its header 'doxastic' is damaged" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("length", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_file_that_was_cut_short_says_so(tmp_path, name, length) -> None:
    write_checkpoint(random_checkpoint(CONFIG), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(length * len(content))])
    message = refused(tmp_path / name)
    assert f"{int(length * len(content)):,} bytes" in message
    assert "cut short" in message or "is not a whole safetensors file" in message
    assert "Copy or download it again" in message


@pytest.mark.parametrize("length", [5_000, 20_000, 39_000])
def test_a_short_archive_that_was_cut_says_so_too(tmp_path, length) -> None:
    # Looking for its end, PyTorch seeks to before the file.
    path = tmp_path / "model.pth"
    torch.save({"emb.weight": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:length])
    assert (
        f"is cut short: it begins as an archive of torch, but its end is missing ({length:,}"
        in (refused(path))
    )


def test_an_archive_that_claims_to_end_on_another_disk_is_refused(tmp_path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"emb.weight": torch.zeros(1)}, path)
    content = path.read_bytes()
    locator = content.rindex(b"PK\x06\x07") + 4
    path.write_bytes(content[:locator] + b"\x07\x00\x00\x00" + content[locator + 4 :])
    assert "Copy or download it again" in refused(path)


def test_a_folder_is_not_taken_for_a_safetensors_file(tmp_path) -> None:
    with pytest.raises(ModelFileError, match="is a folder; expected a safetensors file"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not a checkpoint, or a damaged one (0 bytes)"),
        (b"To be, or not to be", "or a damaged one (19 bytes)"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file of llama.cpp"),
        (b"<!DOCTYPE html><html>not found</html>", "or a damaged one (37 bytes)"),
        (b"\x80\x02(I1\n", "or a damaged one (6 bytes)"),
    ],
)
def test_another_file_is_not_taken_for_a_checkpoint(tmp_path, content, expected) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    assert expected in refused(tmp_path / "model.pth")


def test_another_archive_is_not_taken_for_a_checkpoint(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("word/document.xml", "To be, or not to be")
    assert "is not a checkpoint, or a damaged one" in refused(tmp_path / "model.pth")


class Attack:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_archive", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, is_archive) -> None:
    content = {"emb.weight": torch.ones(3, 4), "extra": Attack(tmp_path / "executed")}
    if is_archive:
        torch.save(content, tmp_path / "model.pth")
    else:
        (tmp_path / "model.pth").write_bytes(pickle.dumps(content["extra"], protocol=2))
    message = refused(tmp_path / "model.pth")
    assert "holds code (posix.mkdir)" in message
    assert "never run here" in message
    assert not (tmp_path / "executed").exists()


def test_a_training_checkpoint_is_told_from_a_model(tmp_path) -> None:
    torch.save({"model": random_tensors(CONFIG), "step": 7}, tmp_path / "model.pth")
    assert "holds a dict under 'model'; expected tensors alone" in refused(tmp_path / "model.pth")
    torch.save([torch.ones(3)], tmp_path / "model.pth")
    assert "holds a list; expected a dictionary of tensors" in refused(tmp_path / "model.pth")


def test_nothing_there_is_said_plainly(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        load_model(tmp_path / "absent")


def test_a_folder_without_a_model_names_the_files_it_has(tmp_path) -> None:
    assert "has neither model.safetensors nor model.safetensors.index" in refused(tmp_path)
    (tmp_path / "rwkv.pth").touch()
    assert "Name one of its files: rwkv.pth." in refused(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({}, "has no weight_map"),
        ({"emb.weight": ["1"]}, "has no ['1'], which"),
        ({"emb.weight": "2.safetensors"}, "has no 2.safetensors, which"),
        ({"emb.weight": "../1.safetensors"}, "names the file '../1.safetensors'; expected a name"),
        ({"emb.weight": "1.safetensors"}, "head.weight is there and not listed"),
        (
            {"emb.weight": "1.safetensors", "head.weight": "1.safetensors", "a": "1.safetensors"},
            "a is missing there",
        ),
    ],
)
def test_parts_that_do_not_fit_their_list_are_named(tmp_path, weight_map, expected) -> None:
    parts = {"emb.weight": torch.ones(3, 4), "head.weight": torch.ones(3, 4)}
    save_file(parts, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFileError, match=re.escape(expected)):
        read_checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(ModelFileError, match="is not valid JSON"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "format", "expected"),
    [
        (
            {"head_size": 32},
            "hf",
            "flash-linear-attention would compute head_dim norm_eps = 0.00032",
        ),
        ({"double_rate": True}, "hf", "has no place for double_rate"),
        ({"deep_embed": "vector"}, "hf", "has no place for deep_embed 'vector'"),
        ({"double_rate": True}, "pth", "a .pth has no place for double_rate"),
        ({"norm_eps": 1e-6}, "pth", "norm_eps is 1e-06, but every reader of a .pth computes with"),
        ({"group_norm_eps": 1e-3}, "pth", "group_norm_eps is 0.001, but every reader of a .pth"),
    ],
)
def test_a_format_that_would_make_another_model_is_refused(
    tmp_path, changes, format, expected
) -> None:
    config = small_config(**{"head_size": 64, "width": 64, **changes})
    with pytest.raises(ModelFileError, match=re.escape(expected)):
        write_checkpoint(random_checkpoint(config), tmp_path / WAYS[format], format)
    assert not list(tmp_path.iterdir())


def test_a_path_of_the_wrong_kind_is_refused(tmp_path) -> None:
    checkpoint = random_checkpoint(CONFIG)
    (tmp_path / "a.pth").mkdir()
    (tmp_path / "file").touch()
    for name, format, expected in (
        ("a.pth", None, "is a folder; expected the name of a file"),
        ("b.bin", "pth", "does not end with .pth"),
        ("b.pth", "safetensors", "ends with .pth; expected a folder for the format safetensors"),
        ("file", "hf", "is a file; expected the name of a folder"),
    ):
        with pytest.raises(ModelFileError, match=expected):
            write_checkpoint(checkpoint, tmp_path / name, format)
    with pytest.raises(ValueError, match="format is 'gguf'; expected one of pth, safetensors, hf"):
        write_checkpoint(checkpoint, tmp_path / "b", "gguf")


def test_a_number_too_large_for_the_dtype_is_named() -> None:
    checkpoint = random_checkpoint(CONFIG)
    checkpoint.tensors["emb.weight"][3, 5] = 1e5
    with pytest.raises(
        ModelFileError, match=r"emb.weight has numbers up to 100000, which torch.fl"
    ):
        checkpoint.to(torch.float16)
    assert checkpoint.to(torch.bfloat16).dtypes == (torch.bfloat16,)


WAYS = {"pth": "model.pth", "safetensors": "ours", "hf": "theirs"}

# Tries to write another model over those that stand in the folders "full", where a file may not
# grow beyond 8 KiB, and "killed", where the process is killed once a file lacks but its name.
SAVE = """
import os, resource, signal, sys
from doxastic.language.config import LanguageConfig
from doxastic.language.formats import save_model
from doxastic.language.model import LanguageModel

model = LanguageModel(LanguageConfig(vocab_size=11, width=64, head_size=64, layers=1))
for fault in ("full", "killed"):
    for way, name in {ways}.items():
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        if fault == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        else:
            os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        try:
            save_model(model, f"{fault}/{name}", format=way)
            print("written", flush=True)
        except OSError as error:
            print(error, flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by os.fork")
def test_a_write_that_fails_leaves_the_old_model_whole(tmp_path) -> None:
    checkpoint = random_checkpoint(CONFIG)
    paths = [tmp_path / fault / name for fault in ("full", "killed") for name in WAYS.values()]
    for path, way in zip(paths, 2 * [*WAYS], strict=True):
        write_checkpoint(checkpoint, path, way)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    run = subprocess.run(
        [sys.executable, "-c", SAVE.replace("{ways}", str(WAYS))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    # config.json too: without it the programs of the Hugging Face layout find no model.
    assert [file.name for file, content in before.items() if file.read_bytes() != content] == []
    for path in paths:
        found = read_checkpoint(path)
        assert found.config == CONFIG
        assert_same_tensors(dict(found.tensors), dict(checkpoint.tensors))
    # A killed process says nothing and cannot clear up; one that was refused does both.
    refusals = run.stdout.splitlines()
    for name, refusal in zip(WAYS.values(), refusals, strict=True):
        assert "File too large; check the folder, or choose another" in refusal
        assert f"full/{name}" in refusal
    assert not list((tmp_path / "full").rglob(".*"))
