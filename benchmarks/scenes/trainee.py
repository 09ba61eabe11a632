"""What the stages train with: a resumable state as safetensors (no pickles), and the fastest products of this CPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapedit import AdapEditError


def fast_products(device: str = "cpu") -> AbstractContextManager[Any]:
    """A block of products in bfloat16, but on a CPU that would emulate them (that is slow): there in float32."""
    if device != "cpu":
        return torch.autocast(device, torch.bfloat16)
    known = torch.cpu.get_capabilities()
    has_bfloat16 = any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16) if has_bfloat16 else nullcontext()


class Trainee:
    """Modules under one AdamW with warm-up, cosine decay, a running average of the weights, and a file to resume from.

    modules: by name; optimised together. steps: length of the schedule. average: decay of the running average.
    What modules keep beside their weights (the statistics of a batch norm) is resumed as it was, and not averaged.
    Raises `AdapEditError` where the file does not have all of it.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        path: Path,
        *,
        steps: int,
        learning_rate: float,
        warm_up: int = 200,
        average: float = 0.999,
    ) -> None:
        self.path, self.steps, self.average, self.warm_up = path, steps, average, warm_up
        self.parameters = {
            f"{name}.{key}": value
            for name, module in modules.items()
            for key, value in module.named_parameters()
            if value.requires_grad
        }
        self.buffers = {
            f"{name}.{key}": value
            for name, module in modules.items()
            for key, value in module.named_buffers()
            if key in module.state_dict()  # others are made with the module and never change
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
        )
        self.learning_rate, self.step = learning_rate, 0
        self.averaged = {key: value.detach().clone() for key, value in self.parameters.items()}
        if path.exists():
            self._resume()

    def update(self) -> None:
        """One optimiser step on the gradients that are there, then the running average."""
        warm = min(1.0, (self.step + 1) / self.warm_up)
        share = min(1.0, self.step / self.steps)
        decay = 0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * warm * decay
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        rate = 1 - min(self.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.values()), list(self.parameters.values()), rate)

    def save(self) -> None:
        """Write everything that `_resume` reads; an interruption leaves the previous file whole."""
        tensors: dict[str, Tensor] = {}
        for key, value in self.parameters.items():
            tensors[f"weight/{key}"] = value.detach().contiguous()
            tensors[f"average/{key}"] = self.averaged[key].contiguous()
            for name, moment in self.optimizer.state.get(value, {}).items():
                tensors[f"{name}/{key}"] = moment.contiguous()
        tensors |= {f"buffer/{key}": value.contiguous() for key, value in self.buffers.items()}
        part = self.path.with_suffix(".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {"step": str(self.step)})
        os.replace(part, self.path)

    def load_average(self) -> None:
        """Put the running average into the modules: what is exported and sampled from."""
        with torch.no_grad():
            for key, value in self.parameters.items():
                value.copy_(self.averaged[key])

    def _resume(self) -> None:
        with safe_open(self.path, "pt") as file, torch.no_grad():
            names = set(file.keys())
            for key, value in self.buffers.items():
                if f"buffer/{key}" not in names:
                    raise AdapEditError(
                        f"{self.path} has weights without the buffer {key}, which is wanted to go on from them; "
                        "remove the file to train anew"
                    )
                value.copy_(file.get_tensor(f"buffer/{key}"))
            self.step = int(file.metadata()["step"])
            for key, value in self.parameters.items():
                value.copy_(file.get_tensor(f"weight/{key}"))
                self.averaged[key].copy_(file.get_tensor(f"average/{key}"))
                state = {name: f"{name}/{key}" for name in ("step", "exp_avg", "exp_avg_sq")}
                if state["step"] in names:
                    moments = {name: file.get_tensor(at).to(value.device) for name, at in state.items()}
                    self.optimizer.state[value] = moments
        print(f"resumed {self.path} at step {self.step}", flush=True)
