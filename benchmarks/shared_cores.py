"""What a training gets of cores that another program uses too, by how its threads wait for each other.

    python benchmarks/shared_cores.py --seconds 20 --rounds 3

Three sides take turns, each a training of MAE mini (batch 128, 32 px) in a process of its own: with OpenMP's default,
which spins; without spinning; and as `run.py` chooses when it starts (`unmask.runtime.shared_cores`). First beside
another training with OpenMP's default, then alone. Printed are images per second, the ratio to spinning round by round,
and how much of its speed alone each keeps beside the other. Only ratios carry over to another machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
SIDES = {"spinning": {}, "without spinning": PASSIVE, "as run.py chooses": {"CHOOSE": "1"}}
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="timed of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.train:
        print(train(settings.seconds))
        return
    from turns import ratios, spread, take_turns  # noqa: PLC0415  (what trains must not import torch too early)

    def measure(environment: dict[str, str]) -> float:
        process = start(environment, settings.seconds)
        words, _ = process.communicate()
        return float(words.split()[-1])

    other = start({}, 1e9)
    try:
        assert other.stdout is not None
        other.stdout.readline()  # it has begun
        beside = take_turns(SIDES, measure, rounds=settings.rounds, warm_up=0)
    finally:
        other.kill()
        other.wait()
    alone = take_turns(SIDES, measure, rounds=settings.rounds, warm_up=0)
    print("| threads | images/s beside another training | ratio to spinning | images/s alone | kept beside the other |")
    print("|---|---|---|---|---|")
    for name, rates in beside.items():
        kept = statistics.median(rates) / statistics.median(alone[name])
        print(
            f"| {name} | {statistics.median(rates):.0f} | {spread(ratios(rates, beside['spinning']))} | "
            f"{statistics.median(alone[name]):.0f} | {kept:.0%} |"
        )


def start(environment: dict[str, str], seconds: float) -> "subprocess.Popen[str]":
    """Starts a training whose threads wait as the environment says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    words = [sys.executable, __file__, "--train", "--seconds", str(seconds)]
    return subprocess.Popen(words, env=kept | environment, stdout=subprocess.PIPE, text=True)


def train(seconds: float) -> float:
    """Images per second of training steps, in this process."""
    if "CHOOSE" in os.environ:
        from unmask.runtime.shared_cores import choose_waiting  # noqa: PLC0415

        choose_waiting()
    import torch  # noqa: PLC0415

    from unmask.backbones.attention import prefer_fast_attention  # noqa: PLC0415
    from unmask.runtime.builders import build  # noqa: PLC0415
    from unmask.runtime.config import compose_config  # noqa: PLC0415

    config = compose_config("run", ["method=mae", "model=vit_mini", "image_size=32"])
    method = build(config.method).train()
    prefer_fast_attention(method, device=torch.device("cpu"), is_bfloat16=True)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4)
    images = torch.randn(BATCH, 3, 32, 32)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = method.training_output(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    print("begun", flush=True)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step()
        count += BATCH
    return count / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
