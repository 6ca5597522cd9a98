"""Language models as files, of three formats.

| format | on the disk | tensors | configuration |
|---|---|---|---|
| `pth` | one file, `torch.save` | RWKV-LM's names, vectors `[1, 1, C]` | from the shapes |
| `safetensors` | a folder, or one file | RWKV-LM's names, vectors `[C]` | header and config.json |
| `hf` | a folder | flash-linear-attention's names, transposed maps | header and config.json |

No format changes a bit of a tensor, or its dtype. What RWKV-LM stores for the first layer's value
residual, which no program reads, is kept; only `hf` has no place for it.
"""

from doxastic.language.formats.checkpoint import Checkpoint, FileFormat
from doxastic.language.formats.files import ModelFileError
from doxastic.language.formats.models import convert, load_model, save_model
from doxastic.language.formats.reading import read_checkpoint
from doxastic.language.formats.writing import destination, write_checkpoint

__all__ = [
    "Checkpoint",
    "FileFormat",
    "ModelFileError",
    "convert",
    "destination",
    "load_model",
    "read_checkpoint",
    "save_model",
    "write_checkpoint",
]
