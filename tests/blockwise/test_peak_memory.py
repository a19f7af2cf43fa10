"""What is worked out before is a bound, and near, by the count of the system, at any depth and precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [
    ("wanda", "float32", 512, 1),
    ("wanda", "float32", 512, 4),
    ("ria", "bfloat16", 512, 1),
    ("sparsegpt", "bfloat16", 384, 1),
    ("alps", "float16", 192, 1),
    ("minitron, a twentieth", "float32", 384, 1),
    ("llm_pruner", "float32", 384, 1),
    ("llm_pruner", "float32", 384, 3),
]
CODE = 6e6
"""Bytes that vary from run to run: code that is loaded when it is first used, and Python's own objects."""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux counts the peak anew")
def test_the_memory_that_is_worked_out_is_a_bound_and_near() -> None:
    work = Path(__file__).with_name("peak_memory_work.py")
    done = subprocess.run([sys.executable, str(work), json.dumps(CASES)], stdout=subprocess.PIPE, check=True)
    found = {tuple(case): each for case, each in zip(CASES, json.loads(done.stdout), strict=True)}
    for case, (need, peak) in found.items():
        assert 0.75 * need - CODE < peak < need + CODE, (case, need, peak)
    for method, width, depth in (("wanda", 512, 4), ("llm_pruner", 384, 3)):
        shallow, deep = (found[method, "float32", width, blocks] for blocks in (1, depth))
        assert shallow[0] == deep[0]
        assert abs(deep[1] - shallow[1]) < CODE
