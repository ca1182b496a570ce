"""Pre-trains a backbone: `python run.py --help` lists what can be chosen."""

from unmask.runtime.cli import run

if __name__ == "__main__":
    run()
