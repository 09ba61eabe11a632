"""Finished inversions on disk, each named by the content that it was made from."""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adapedit_engine.cache import digest

FORMAT = "1"


class CacheWarning(UserWarning):
    """A file of the cache that could not be used or written; the inversion is made again."""


def default_folder() -> Path:
    """In the user's cache folder, wherever the system puts that."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adapedit" / "inversions"


class InversionCache:
    """A folder of safetensors files. Files appear whole; one that can't be used is as good as none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def find(self, key: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
        """The tensors of `key`, float32 and of these shapes; None where there is nothing, or nothing of use."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("key") != f"{FORMAT}-{key}":
                    raise ValueError("it is of another inversion")
                found = {name: file.get_tensor(name) for name in shapes}
            for name, tensor in found.items():
                as_written = tuple(tensor.shape) == shapes[name] and tensor.dtype == torch.float32
                if not (as_written and tensor.isfinite().all()):
                    raise ValueError(f"its {name} are not what was written")
        except Exception as error:
            reason = " ".join(str(error).split())
            _warn(f"cached inversion {path} can't be used ({reason}): made again")
            return None
        return found

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write, or warn: a cache that can't be written spoils no edit."""
        path = self._path(key)
        part = path.with_name(f".{key[:16]}.{secrets.token_hex(4)}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = save({n: t.contiguous() for n, t in tensors.items()}, {"key": f"{FORMAT}-{key}"})
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            _warn(f"the inversion can't be kept in {self.folder} ({error.strerror or error})")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def weights_digest(module: nn.Module) -> str:
    """Hexadecimal digits of a module's weights as they are now, a merged adapter among them."""
    content = hashlib.sha256()
    for name, value in module.state_dict().items():
        content.update(name.encode() + digest(value))
    return content.hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=4)
