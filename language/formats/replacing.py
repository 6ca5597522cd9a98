"""Files with tensors or JSON in them, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from doxastic.language.formats.files import import_safetensors


def write_pickled(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors as `torch.save` does; the file appears whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({name: _alone(tensor) for name, tensor in tensors.items()}, file)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    make_way: Callable[[], object] = lambda: None,
) -> None:
    """Write a safetensors file with the text in its header, whole or not at all, by `replacing`."""
    import_safetensors()
    from safetensors.torch import save_file

    own: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        alone = _alone(tensor)
        # Tied weights are written twice: the format refuses tensors that share their numbers.
        own[name] = alone.clone() if alone.data_ptr() in stored else alone
        stored.add(own[name].data_ptr())
    with replacing(path, make_way) as temporary:
        save_file(own, str(temporary), dict(metadata))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(as_json(content))


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file as it is written here."""
    return (json.dumps(content, indent=2) + "\n").encode()


@contextlib.contextmanager
def replacing(path: Path, make_way: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Yield a temporary path whose file takes the place of `path` once it is on the disk.

    What stood there stays whole until then, also where the process is killed. A link stays one:
    what it leads to is replaced. A device or a pipe is written to.

    Args:
        path: The file.
        make_way: Called once the new file is on the disk and before it takes its place, to remove
            what must not stand beside it.

    Raises:
        OSError: The disk refuses; the temporary file is removed.
    """
    is_stream = path.exists() and not path.is_file() and not path.is_dir()
    place = path if is_stream else Path(os.path.realpath(path))
    folder = Path(tempfile.gettempdir()) if is_stream else place.parent
    temporary = folder / f".{place.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors makes files that only their owner may read; this one has the usual mode.
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        make_way()
        if is_stream:
            place.write_bytes(temporary.read_bytes())
            temporary.unlink()
        else:
            temporary.replace(place)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        _refuse_disk(path, error)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refuse_disk(path: Path, error: Exception) -> NoReturn:
    """Raise what the disk said: torch and safetensors wrap it in errors of their own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    code = cause.errno if cause is not None else None
    if wrapped := re.search(r"os error (\d+)", str(error)):
        code = int(wrapped[1])
    if code is None:
        raise error
    remedies = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of your quota"}
    remedy = remedies.get(code, "check the folder, or choose another")
    raise OSError(
        code, f"{os.strerror(code)}; {remedy}. What stood there before is unchanged", str(path)
    ) from error


def _alone(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU with a storage of its own: a view would save what it views."""
    tensor = tensor.detach().cpu().contiguous()
    is_alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_alone else tensor.clone()
