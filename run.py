"""Pre-trains a backbone: `python run.py --help` lists what can be chosen."""

import sys
from pathlib import Path

try:
    from unmask.runtime.cli import run
except ModuleNotFoundError:
    sys.path.append(str(Path(__file__).with_name("src")))  # where nothing is installed, not even this program
    from unmask.missing_packages import explain_missing_packages

    with explain_missing_packages():
        raise

if __name__ == "__main__":
    run()
