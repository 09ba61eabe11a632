"""Caches keep to their bytes and give back the same bits; copies to the host are waited for by who wants them alone."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from adapedit_engine import cache as caching
from adapedit_engine.cache import ByteCache, HostCopies, ProjectionCache, digest, tensor_bytes, to_device
from adapedit_engine.plan import EditOutcome
from adapedit_engine.runners.pytorch import PyTorchRunner
from tests.engine.tiny import TEXT, TOKENS, noise, tiny_unet


class Device:
    """Stands in for `torch.cuda`, and notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.events = 0

    def Stream(self, device):
        device_said = self.said

        class Stream:
            name = f"side stream of {device}"

            def wait_event(self, event):
                device_said.append(f"side waits for {event.name}")

        return Stream()

    def Event(self):
        said, self.events = self.said, self.events + 1

        class Event:
            name = f"event {self.events}"

            def record(self, stream=None):
                said.append(
                    f"record {self.name} on {'the current device' if stream is None else stream.name}"
                )

            def synchronize(self):
                said.append(f"host waits for {self.name}")

        return Event()

    def current_stream(self, device=None):
        return SimpleNamespace(name=f"the loop's stream of {device}")

    @contextmanager
    def stream(self, stream):
        self.said.append("side begins")
        yield
        self.said.append("side ends")


def an_outcome() -> EditOutcome:
    return EditOutcome(
        latents=torch.rand(2, 4, 8, 8),
        maps=torch.rand(2, 16, 6),
        features=None,
        word_steps=torch.rand(2, 6),
        spatial_map=None,
        steps=3,
    )


def test_on_the_cpu_an_outcome_stays_where_it_is():
    device, outcome = Device(), an_outcome()
    copies = HostCopies(torch.device("cpu"), cuda=device)
    assert copies.begin(outcome).get() is outcome
    with copies.beside():
        pass
    assert device.said == []


def test_on_a_gpu_only_who_wants_the_copy_waits_and_for_it_alone():
    device, outcome = Device(), an_outcome()
    copies = HostCopies(torch.device("cuda:1"), cuda=device)
    copy = copies.begin(outcome)
    begun = [
        "record event 1 on the loop's stream of cuda:1",
        "side waits for event 1",
        "side begins",
        "record event 2 on side stream of cuda:1",
        "side ends",
    ]
    assert device.said == begun
    assert copy.source is outcome
    there = copy.get()
    assert device.said == [*begun, "host waits for event 2"]
    assert there.latents is not outcome.latents and torch.equal(there.latents, outcome.latents)
    assert torch.equal(there.maps, outcome.maps) and torch.equal(there.word_steps, outcome.word_steps)
    with copies.beside():
        device.said.append("decode")
    assert device.said[-3:] == ["side begins", "decode", "side ends"]


def test_what_an_edit_brings_goes_to_a_gpu_in_one_copy_from_pinned_memory(monkeypatch):
    copies = list[tuple[torch.Tensor, bool]]()

    def copied(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        assert device == torch.device("cuda", 1)
        copies.append((tensor, non_blocking))
        return tensor.clone()

    pinned = list[torch.Tensor]()

    def pin(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        pinned.append(torch.empty(shape, dtype=dtype))
        return pinned[-1]

    monkeypatch.setattr(caching, "_pinned", pin)
    monkeypatch.setattr(torch.Tensor, "to", copied)
    given = {
        "switches": torch.tensor([True, False, True]),
        "a view": noise(2, 3).T,
        "spread": torch.tensor(2).expand(5),
        "halves": noise(7).half(),
        "a number": torch.tensor(3.0),
        "without values": torch.empty(2, device="meta"),
    }
    got = to_device(given, torch.device("cuda", 1))
    assert len(copies) == 1 and copies[0][0] is pinned[0] and copies[0][1]
    assert got.pop("without values") is given.pop("without values")
    for name, wanted in given.items():
        assert torch.equal(got[name], wanted) and got[name].dtype == wanted.dtype
        assert got[name].data_ptr() % 16 == 0 and got[name].is_contiguous()


def test_every_prompt_is_projected_once_and_alone():
    runner = PyTorchRunner(tiny_unet(), map_divisor=1)
    cache, text = ProjectionCache(runner, 2**20), noise(3, TOKENS, TEXT)
    text[2] = text[0]
    first = cache.condition(text)
    assert (cache.stats.hits, cache.stats.misses) == (1, 2)
    again, without = cache.condition(text), ProjectionCache(runner, 0).condition(text)
    assert cache.stats.hits == 4
    alone = runner.condition(text[1:2])
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]) and torch.equal(tensor, without[name])
        assert torch.equal(tensor[1:2], alone[name])
    there = torch.full_like(text, float("nan"))  # a prompt is known by what is in host memory
    assert cache.condition(there, text).keys() == first.keys() and cache.stats.misses == 2


def test_caches_keep_to_their_bytes():
    cache = ByteCache(100, len)
    for key in "abc":
        cache.get(key, lambda: b"x" * 40)
    assert (cache.stats.entries, cache.stats.bytes, cache.stats.evictions) == (2, 80, 1)
    cache.get("b", lambda: pytest.fail("was there"))
    assert cache.get("a", lambda: b"y") == b"y"
    cache.get("large", lambda: b"z" * 101)
    assert cache.stats.bytes <= 100 and cache.stats.entries == 3
    assert cache.stats.hit_rate == pytest.approx(1 / 6)


def test_a_digest_tells_content_shape_and_dtype_apart():
    x = noise(2, 3)
    assert digest(x) == digest(x.clone()) == digest(x.T.contiguous().T)
    assert len({digest(y) for y in (x, x.T, x + 1, x.double(), x.to(torch.bfloat16))}) == 5
    assert digest(x[:, :1][:1]) == digest(x[:1, :1].clone()) and digest(x.T[0, :1]) == digest(x[:1, 0])
    assert tensor_bytes([x, x[0]]) == 24
