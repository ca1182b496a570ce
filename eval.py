"""Measures what a checkpoint has learned: `python eval.py --help` lists what can be chosen."""

from unmask.runtime.cli import evaluate

if __name__ == "__main__":
    evaluate()
