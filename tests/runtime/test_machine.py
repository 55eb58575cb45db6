import json
import subprocess
import sys

import numpy as np
import pytest

from onnxdecomp.runtime import machine

MIB = 2**20


def test_environment_is_ready_for_json():
    described = json.loads(json.dumps(machine.environment(threads=3)))
    assert described["threads"] == 3
    assert described.keys() >= {"cpu", "cores", "instruction_set", "os", "python", *machine.PACKAGES}


@pytest.mark.parametrize(
    ("features", "block", "name"),
    [
        ({"AVX2": True, "AVX512F": True}, 16, "AVX512F"),
        ({"AVX2": True, "AVX512F": False}, 8, "AVX2"),
        ({"ASIMD": True}, 4, "ASIMD"),
        ({}, 4, "baseline"),
    ],
)
def test_channel_block_follows_the_processor(monkeypatch, features, block, name):
    monkeypatch.setattr(machine, "_cpu_features", lambda: features)
    assert (machine.channel_block(), machine.instruction_set()) == (block, name)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"model name": "AMD EPYC", "cpu family": "25", "model": "17"}, "AMD EPYC (family 25, model 17)"),
        ({"model name": "Cortex"}, "Cortex"),
        ({}, "arm"),
    ],
    ids=["x86", "no family", "no name"],
)
def test_generations_of_a_processor_have_names_of_their_own(monkeypatch, said, name):
    monkeypatch.setattr(machine, "_cpu_info", said.get)
    monkeypatch.setattr(machine.platform, "processor", lambda: "arm")
    assert machine.environment(1)["cpu"] == machine.fingerprint()["cpu"] == name


def test_peak_memory_remembers_what_was_freed():
    held = np.ones(64 * MIB, np.uint8)
    del held
    assert machine.peak_memory_bytes() > 64 * MIB


def test_peak_memory_of_a_child_is_its_own():
    held = np.ones(256 * MIB, np.uint8)
    code = "from onnxdecomp.runtime.machine import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < held.nbytes / 2
