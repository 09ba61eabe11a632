"""What ONNX Runtime is asked for on GPUs, held to a stand-in: there is none here. And every reason not to run."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapedit_engine.bundle import Bundle
from adapedit_engine.runners import base, onnxruntime
from adapedit_engine.runners.base import RunnerError, device_of
from adapedit_engine.runners.onnxruntime import OnnxRuntimeRunner, gpu_options, why_not
from tests.engine.test_bundle import folder as folder

STREAM = 77


class Library:
    """Answers as the module onnxruntime does, and remembers what it was asked.

    names: providers that are built in. devices: of each plug-in, from when its library is registered.
    """

    def __init__(self, names: list[str], devices: dict[str, int] | None = None) -> None:
        self.names, self.devices = [*names, "CPUExecutionProvider"], devices or {}
        self.registered: list[str] = []
        self.__version__ = "1.32.0"
        self.sessions: list[Any] = []
        self.gives: list[str] | None = None

    def get_available_providers(self) -> list[str]:
        return self.names

    def get_ep_devices(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, number=number)
            for name in self.registered
            for number in range(self.devices[name])
        ]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert path == "library.so" and name not in self.registered
        self.registered.append(name)

    def SessionOptions(self) -> Any:
        options = SimpleNamespace(entries={}, chosen=None)
        options.add_session_config_entry = options.entries.__setitem__
        options.add_provider_for_devices = lambda devices, given: setattr(options, "chosen", (devices, given))
        return options

    def InferenceSession(self, path: str, options: Any, providers: Any = None) -> Any:
        chosen = providers or [(options.chosen[0][0].ep_name, options.chosen[1])]
        given = self.gives or [name for name, _ in chosen]
        self.sessions.append((path, options, chosen))
        return SimpleNamespace(get_providers=lambda: given)


@pytest.fixture
def bundle(folder) -> Bundle:
    return Bundle.open(folder)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, an L40 and an H100, and the libraries that a test names."""

    def make(library: Library, installed: dict[str, str] | None = None) -> Library:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 9), (9, 0)][index])
        monkeypatch.setitem(sys.modules, "onnxruntime", library)
        plugin = SimpleNamespace(get_library_path=lambda: "library.so")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: plugin)
        monkeypatch.setattr(importlib, "import_module", lambda name: plugin)
        monkeypatch.setattr(base, "_file", lambda name: onnxruntime)
        packages = {"onnxruntime-gpu": library.__version__} if installed is None else installed
        monkeypatch.setattr(onnxruntime, "packages", lambda: packages)
        return library

    return make


def loaded(library: Library, runner: str, bundle: Bundle, index: int = 0) -> Any:
    """What the library was asked for by a session of the UNet."""
    device = torch.device("cuda", index)
    options = gpu_options(runner, bundle, "unet", device, STREAM)
    onnxruntime._load(bundle.graph_path("unet"), onnxruntime.PROVIDERS[runner], device, options, 1)
    return library.sessions[-1]


def test_cuda_gets_our_stream_the_device_and_graphs(gpus, bundle):
    library = gpus(Library(["CUDAExecutionProvider"]))
    assert why_not("onnxruntime-cuda", 1) is None
    path, _, chosen = loaded(library, "onnxruntime-cuda", bundle, 1)
    assert path == str(bundle.graph_path("unet"))
    assert chosen == [
        (
            "CUDAExecutionProvider",
            {
                "user_compute_stream": "77",
                "device_id": "1",
                "enable_cuda_graph": "1",
                "use_tf32": "0",
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
            },
        )
    ]


def test_tensorrt_keeps_plans_and_knows_the_rows_beforehand(gpus, bundle):
    library = gpus(Library(["TensorrtExecutionProvider", "CUDAExecutionProvider"]))
    _, _, ((name, given), (then, shared)) = loaded(library, "onnxruntime-tensorrt", bundle, 1)
    assert (name, then) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert shared == {"device_id": "1", "user_compute_stream": "77"}
    assert given["trt_engine_cache_enable"] == given["trt_timing_cache_enable"] == "1"
    kept = f"onnxruntime-tensorrt-{bundle.graph_hash('unet')[:16]}"
    assert given["trt_engine_cache_path"] == str(bundle.folder / "plans" / kept)
    assert given["trt_fp16_enable"] == "0"
    low, high = (given[f"trt_profile_{name}_shapes"] for name in ("min", "max"))
    ranges = [
        (part.split(":")[1].split("x")[0], other.split(":")[1].split("x")[0])
        for part, other in zip(low.split(","), high.split(","), strict=True)
        if part.startswith("sample:")
    ]
    assert ranges == [("1", "4"), ("5", "6"), ("7", "8"), ("9", "16"), ("17", "32")]
    assert "self_query_row:1x17" in low and "self_query_row:1x32" in high


def test_rtx_is_a_plug_in_with_our_stream_and_graphs(gpus, bundle, monkeypatch):
    name = "NvTensorRTRTXExecutionProvider"
    library = gpus(Library([], {name: 2}))
    assert why_not("onnxruntime-tensorrt-rtx", 0) is None
    _, options, ((given_name, given),) = loaded(library, "onnxruntime-tensorrt-rtx", bundle, 1)
    assert [device.number for device in options.chosen[0]] == [1] and given_name == name
    assert given["user_compute_stream"] == "77" and given["enable_cuda_graph"] == "1"
    assert given["nv_multi_profile_enable"] == "1" and "nv_profile_opt_shapes" in given
    assert "device_id" not in given
    loaded(library, "onnxruntime-tensorrt-rtx", bundle)
    assert library.registered == [name]


def test_a_plug_in_that_comes_with_onnxruntime_is_taken_as_one(gpus, bundle):
    library = gpus(Library([], {"CUDAExecutionProvider": 2}))
    library.registered.append("CUDAExecutionProvider")
    assert why_not("onnxruntime-cuda") is None
    _, options, _ = loaded(library, "onnxruntime-cuda", bundle, 1)
    assert [device.number for device in options.chosen[0]] == [1]


def test_plans_are_built_when_a_bundle_is_opened(gpus, bundle, monkeypatch):
    gpus(Library(["TensorrtExecutionProvider", "CUDAExecutionProvider"]))
    opened: list[str] = []
    monkeypatch.setattr(
        onnxruntime, "OnnxRuntimeSession", lambda bundle, graph, *_, **__: opened.append(graph)
    )
    device = torch.device("cuda", 0)
    runner = OnnxRuntimeRunner(bundle, "onnxruntime-tensorrt", device)
    assert opened == list(bundle.manifest.graphs) and runner.capabilities.rows == tuple(range(1, 33))
    opened.clear()
    OnnxRuntimeRunner(bundle, "onnxruntime-cuda", device)
    assert opened == []


def test_a_provider_that_the_cpu_stands_in_for_is_refused(gpus, bundle):
    library = gpus(Library(["CUDAExecutionProvider"]))
    library.gives = ["CPUExecutionProvider"]
    message = (
        "gave unet.onnx to CPUExecutionProvider and not to CUDAExecutionProvider, whose libraries it did not"
    )
    with pytest.raises(RunnerError, match=message):
        loaded(library, "onnxruntime-cuda", bundle)


@pytest.mark.parametrize(
    ("version", "installed", "message"),
    [
        (
            "1.24.4",
            None,
            r"has onnxruntime 1.24.4, which .* the CPU; pip install 'onnxruntime-gpu>=1.25'",
        ),
        ("1.9.0", None, "has onnxruntime 1.9.0"),
        (
            "1.32.0",
            {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"},
            "remove onnxruntime: pip uninstall -y .*, then pip install onnxruntime-gpu==1.31.1$",
        ),
        (
            "1.32.0",
            {"onnxruntime": "1.32.0"},
            r"needs CUDAExecutionProvider, this onnxruntime has CPU.*adapedit\[gpu\]",
        ),
    ],
)
def test_versions_and_packages_that_do_not_do(gpus, version, installed, message):
    library = Library([] if installed == {"onnxruntime": "1.32.0"} else ["CUDAExecutionProvider"])
    library.__version__ = version
    gpus(library, installed)
    with pytest.raises(RunnerError, match=message) as raised:
        device_of("onnxruntime-cuda", "cuda:1")
    assert "\n" not in str(raised.value)


def test_both_packages_stop_the_cpu_too(monkeypatch):
    versions = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = why_not("onnxruntime")
    assert (
        found is not None and "remove onnxruntime-gpu: pip uninstall -y onnxruntime onnxruntime-gpu" in found
    )
    assert found.endswith("then pip install onnxruntime==1.32.0")


def test_gpus_that_are_not_there_and_not_for_this_library(gpus):
    gpus(Library(["CUDAExecutionProvider"], {"NvTensorRTRTXExecutionProvider": 0}))
    assert device_of("onnxruntime-cuda") == torch.device("cuda", 0)
    assert device_of("onnxruntime-cuda", "cuda:1") == torch.device("cuda", 1)
    with pytest.raises(
        RunnerError, match="device is cuda:2, and there is no GPU of this number here; there: cuda:0, cuda:1"
    ):
        device_of("onnxruntime-cuda", "cuda:2")
    with pytest.raises(
        RunnerError, match=r"not 9\.0, as an H100 or H200 has it; take runner tensorrt, onnxruntime-tens"
    ):
        device_of("onnxruntime-tensorrt-rtx", "cuda:1")
    with pytest.raises(RunnerError, match="needs NvTensorRTRTXExecutionProvider, which finds no device"):
        device_of("onnxruntime-tensorrt-rtx", "cuda:0")
