import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
from unmask.runtime.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def fill():
    block = bytearray(2**26)
    block[:] = b"x" * len(block)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_memory_is_written_to_again_without_asking_the_system() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", COUNT_FAULTS, way], capture_output=True, check=True).stdout)
        for way in ("usual", "kept")
    }
    assert faults["kept"] < faults["usual"] / 20, faults
