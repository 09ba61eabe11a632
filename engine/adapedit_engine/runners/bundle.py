"""A bundle behind the interface of a runner, whatever backend loads its graphs; and its text encoder and VAE."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import torch
from torch import Tensor

from adapedit_engine.bundle import Bundle
from adapedit_engine.controls import SELF_NAMES
from adapedit_engine.runners import RunnerError
from adapedit_engine.runners.session import DTYPES, Session
from adapedit_engine.specs import ModelSpecs

Opener = Callable[[str], Session]


class Entered(threading.local):
    """The blocks that each thread is in: torch's number of threads is one of the calling thread."""

    def __init__(self) -> None:
        self.stacks: list[ExitStack] = []


class BundleRunner:
    """Runs the UNet of a bundle, with keys and values projected once per prompt.

    Graphs are loaded when they are first needed and stay loaded between `with` blocks; `close` frees them. Threads
    may share a runner (on a GPU those of one stream): a graph runs for one at a time, and outputs are the caller's.
    """

    needs_all_controls = True

    def __init__(self, bundle: Bundle, name: str, opener: Opener, device: torch.device | str) -> None:
        """name: of the runner; opener: loads one graph of the bundle; see `adapedit_engine.runners.registry`."""
        self.bundle = bundle
        self.name = name
        self._opener = opener
        self._device = torch.device(device)
        self._sessions: dict[str, Session] = {}
        # A session writes into buffers of its own: one thread at a time, until it has what it wants out of them.
        self._locks = {graph: threading.Lock() for graph in bundle.manifest.graphs}
        self._counting, self._open = threading.Lock(), 0
        self._entered = Entered()
        self._dtypes = {t.name: DTYPES[t.dtype] for t in bundle.graph("unet").inputs}

    @property
    def specs(self) -> ModelSpecs:
        return self.bundle.manifest.specs

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtypes["sample"]

    def __enter__(self) -> BundleRunner:
        """Load the UNet unless it is. May be nested. On the CPU torch itself gets one thread inside the block."""
        with self._locks["unet"]:
            self._session("unet")
        stack = ExitStack()
        stack.enter_context(self._alone_on_the_cores())
        self._entered.stacks.append(stack)
        with self._counting:
            self._open += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._counting:
            self._open -= 1
        self._entered.stacks.pop().close()

    def close(self) -> None:
        """Free every graph; the next use loads them again."""
        for graph, lock in self._locks.items():
            with lock:
                session = self._sessions.pop(graph, None)
                if session is not None:
                    session.close()

    @torch.inference_mode()
    def condition(self, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
        """`{"projected_text": [rows, N, W]}`: keys and values of every layer side by side."""
        hidden_states = encoder_hidden_states.to(self._device, self.dtype)
        # Row by row: a prompt's projection does not depend on how many there are.
        rows = [self._alone("text_projection", {"encoder_hidden_states": row[None]}) for row in hidden_states]
        return {"projected_text": torch.cat([row["projected_text"] for row in rows])}

    @torch.inference_mode()
    def infer(self, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See `Runner.infer`. Raises `RunnerError`."""
        if not self._open:
            raise RunnerError(f"runner {self.name!r} is closed: use it inside `with runner:`")
        cast = {n: t.to(self._dtypes[n]) if n in self._dtypes else t for n, t in inputs.items()}
        given, fixed = cast["sample"].shape[0] if "sample" in cast else 0, self.bundle.manifest.rows
        if fixed is None or not 0 < given < fixed:
            return self._alone("unet", cast, outputs)
        found = self._alone("unet", pad_rows(cast, fixed), outputs)
        return {name: tensor[:given] for name, tensor in found.items()}

    def encode_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [B, N] to hidden states [B, N, D], one prompt at a time."""
        ids = input_ids.to(self._device)
        with self._alone_on_the_cores():
            rows = [self._alone("text_encoder", {"input_ids": row[None]})["hidden_states"] for row in ids]
            return torch.cat(rows)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pixels [B, 3, H, W] float32 in 0..1, on the CPU, one picture at a time."""
        given = latents.to(self._device, self._input_dtype("vae_decoder"))
        with self._alone_on_the_cores():
            rows = [self._alone("vae_decoder", {"latents": one[None]})["pixels"].cpu() for one in given]
            return torch.cat(rows).float()

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1 to latents [B, C, h, w] float32: the mean, scaled."""
        given = pixels.to(self._device, self._input_dtype("vae_encoder"))
        with self._alone_on_the_cores():
            rows = [self._alone("vae_encoder", {"pixels": one[None]})["latents"] for one in given]
            return torch.cat(rows).float()

    def run_graph(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Any graph on inputs of its own dtypes, on any device; outputs are the caller's to keep."""
        return self._alone(graph, {name: tensor.to(self._device) for name, tensor in inputs.items()})

    @contextmanager
    def _alone_on_the_cores(self) -> Iterator[None]:
        # torch's threads go on spinning after each small operation, on the cores that the graph wants: a tenth to a
        # third of an edit's time.
        before = torch.get_num_threads()
        if self._device.type != "cpu" or before == 1:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _input_dtype(self, graph: str) -> torch.dtype:
        return DTYPES[self.bundle.graph(graph).inputs[0].dtype]

    @torch.inference_mode()
    def _alone(
        self, graph: str, inputs: Mapping[str, Tensor], outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        self.bundle.graph(graph)
        with self._locks[graph]:
            found = self._session(graph).run(inputs, outputs)
            return {name: tensor.clone() for name, tensor in found.items()}

    def _session(self, graph: str) -> Session:
        # With the graph's lock held: no graph is loaded twice.
        if graph not in self._sessions:
            self._sessions[graph] = self._opener(graph)
        return self._sessions[graph]


def pad_rows(inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Fill a call up to `rows` rows with copies of the last one that take nothing from others."""
    padded = {}
    for name, tensor in inputs.items():
        dim = 1 if name in SELF_NAMES else 0
        more = rows - tensor.shape[dim]
        if name == "source_row" or name in SELF_NAMES:
            own = torch.arange(tensor.shape[dim], rows, device=tensor.device)
            extra = own.expand(*tensor.shape[:dim], more)
        else:
            extra = tensor[-1:].expand(more, *tensor.shape[1:])
        padded[name] = torch.cat([tensor, extra], dim)
    return padded
