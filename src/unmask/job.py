"""Runs a job of a sweep as it was frozen: `python -m unmask.job runs/sweeps/TIME/0`."""

from unmask.runtime.cli import job

if __name__ == "__main__":
    job()
