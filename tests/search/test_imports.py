"""The mathematics and the searches need torch and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY


IMPORT = """
import builtins, importlib, sys, types
import torch
before, plain, asked = set(sys.modules), builtins.__import__, set()
def spy(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and globals and globals["__name__"].startswith("fk_steer"):
        asked.add(name)  # torch has loaded much, NumPy for one
    return plain(name, globals, locals, fromlist, level)
builtins.__import__ = spy
package = types.ModuleType("fk_steer")  # without its __init__, which may import what it likes
package.__path__ = [sys.argv[1] + "/fk_steer"]
sys.modules["fk_steer"] = package
importlib.import_module(sys.argv[2])
print(*sorted(set(sys.modules) - before | asked))
"""


@pytest.mark.parametrize(
    "module, of_ours", [("fk_steer.smc", {"smc"}), ("fk_steer.search", {"smc", "search"})], ids=["smc", "search"]
)
def test_only_torch_is_imported(module, of_ours):
    arguments = [sys.executable, "-c", IMPORT, str(REPOSITORY), module]
    loaded = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    ours = [name.split(".")[1] for name in loaded if name.startswith("fk_steer.")]
    others = {name.split(".")[0] for name in loaded} - {"fk_steer", "torch"}
    assert set(ours) == of_ours
    assert others <= sys.stdlib_module_names
