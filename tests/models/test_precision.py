"""Devices and dtypes: the fastest that the hardware really supports."""

from __future__ import annotations

import pytest
import torch

from latentwire_server.models.errors import PrecisionError
from latentwire_server.models.precision import choose_device, choose_dtype, dtype_name

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_with_hardware_support(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype("auto", CPU) is expected


@pytest.mark.parametrize(("is_ampere", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_computes_in_bfloat16_only_with_hardware_support(
    monkeypatch: pytest.MonkeyPatch,
    is_ampere: bool,
    expected: str,
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:  # noqa: FBT002
        return is_ampere or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert dtype_name(choose_dtype("auto", torch.device("cuda", 0))) == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_named_dtype_is_used(name: str) -> None:
    assert dtype_name(choose_dtype(name, CPU)) == name


@pytest.mark.parametrize("name", ["float16", "float64", "half", ""])
def test_dtypes_unsuitable_for_a_cpu_are_refused(name: str) -> None:
    with pytest.raises(PrecisionError, match="dtype="):
        choose_dtype(name, CPU)


def test_float16_is_allowed_on_a_gpu() -> None:
    assert choose_dtype("float16", torch.device("cuda", 0)) is torch.float16


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "expected"),
    [(True, False, "cuda:0"), (False, True, "mps"), (False, False, "cpu"), (True, True, "cuda:0")],
)
def test_the_fastest_device_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    has_cuda: bool,
    has_mps: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert str(choose_device("auto")) == expected


def test_a_cuda_device_without_number_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(choose_device("cuda")) == "cuda:0"
    assert str(choose_device("cuda:1")) == "cuda:1"
    with pytest.raises(PrecisionError, match="cuda:2"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "mps", "gpu", "", "cpu:x", "meta"])
def test_an_unavailable_device_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PrecisionError, match="device="):
        choose_device(name)
