"""What of a machine counts: one text for one processor, however its kernel lists it."""

from __future__ import annotations

import sys

import pytest

from modelcache import platforms

AMD = """processor	: 0
vendor_id	: AuthenticAMD
model name	: AMD EPYC
cpu MHz		: 2600.123
flags		: sse2 avx2 fpu

processor	: 1
flags		: another
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


def test_features_are_sorted_and_those_of_the_first_processor() -> None:
    assert platforms.parse_cpuinfo(AMD) == {"vendor_id": "AuthenticAMD", "flags": "avx2 fpu sse2"}
    assert platforms.parse_cpuinfo(AMD.replace("sse2 avx2 fpu", "fpu avx2 sse2")) == platforms.parse_cpuinfo(AMD)


def test_what_changes_from_one_look_to_the_next_does_not_count() -> None:
    assert platforms.parse_cpuinfo(AMD.replace("2600.123", "3100.5")) == platforms.parse_cpuinfo(AMD)


def test_an_arm_processor_says_its_design_too() -> None:
    assert platforms.parse_cpuinfo(ARM) == {
        "features": "asimd fp sve", "cpu implementer": "0x41", "cpu part": "0xd40"
    }  # fmt: skip


def test_another_feature_is_another_processor() -> None:
    assert platforms.parse_cpuinfo(AMD.replace("avx2", "avx512f")) != platforms.parse_cpuinfo(AMD)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/cpuinfo is Linux's")
def test_this_machine_says_what_it_can() -> None:
    assert platforms.cpu().keys() & {"flags", "features", "isa"}
    assert platforms.cpu() is platforms.cpu()
    assert platforms.os_build() == ""
    assert set(platforms.system()) == {"system", "machine"}


def test_a_machine_without_a_gpu_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "_NVIDIA", "/nowhere")
    platforms.gpu.cache_clear()

    assert platforms.gpu() == {}
    platforms.gpu.cache_clear()
