"""Runs evaluations one after the other in this process; torchrun starts several that work together.

Usage: two_processes.py FILE, which holds a JSON list of lists of overrides of eval.py.
"""

import json
import sys
import warnings
from pathlib import Path

from unmask.runtime.config import compose_config
from unmask.runtime.evaluate import evaluate


def main() -> None:
    warnings.simplefilter("ignore")
    for overrides in json.loads(Path(sys.argv[1]).read_text()):
        evaluate(compose_config("eval", overrides))


if __name__ == "__main__":
    main()
