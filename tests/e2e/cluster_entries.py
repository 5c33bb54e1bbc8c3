"""Entry points that the gangs of test_cluster.py run."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path


def greet(task, payload):
    """Write to the log, a followed file and a file that is copied at the end."""
    print(f"rank {task.rank} of {task.world}, {task.local_rank} of {task.local_world} here", flush=True)
    folder = Path(task.run_dir)
    with (folder / f"metrics-{task.rank}.jsonl").open("a") as file:
        for step in range(payload.get("steps", 3)):
            file.write(json.dumps({"step": step}) + "\n")
            file.flush()
            time.sleep(payload.get("pace_s", 0))
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / f"weights-{task.rank}.bin").write_bytes(bytes([task.rank]) * 5_000_000)


def priority(task, payload):
    """Print what the scheduler thinks of this rank."""
    print("nice", os.nice(0))


def reduce(task, payload):
    """An all-reduce over gloo: the gang can find itself."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{task.master}", rank=task.rank, world_size=task.world)
    total = torch.tensor([task.rank + 1.0])
    dist.all_reduce(total)
    print("sum", total.item())
    if task.rank == payload.get("raise_on"):
        raise ValueError("bad batch 17")
    if "raise_on" in payload:
        dist.all_reduce(total)
    dist.destroy_process_group()


def occupy(task, payload):
    """Write down from when to when this rank was here."""
    began_s = time.time()
    time.sleep(payload["seconds"])
    (Path(task.run_dir) / f"here-{task.rank}.json").write_text(json.dumps([began_s, time.time()]))


def linger(task, payload):
    """Start a child, then stay."""
    subprocess.Popen(["sleep", "300"])
    print("ready", flush=True)
    if payload.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(300)


def kill_own_agent(task, payload):
    """Take the node agent away, as the kernel's memory killer might."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(300)


def once(task, payload):
    """Leave a trace of beginning and end that shows whether anybody did this twice."""
    trace = Path(payload["trace"])
    with trace.open("a") as file:
        file.write(f"began {task.rank}\n")
    time.sleep(payload.get("seconds", 0))
    with trace.open("a") as file:
        file.write(f"ended {task.rank}\n")


def save_when_told(task, payload):
    """Stay until somebody lets go; asked to stop, save what there is and go on from it next time."""
    trace, go = Path(payload["trace"]), Path(payload["trace"] + ".go")
    with trace.open("a") as file:
        file.write("went on\n" if trace.read_text() else "began\n")
    try:
        while not go.exists():
            time.sleep(0.05)
    except SystemExit:
        with trace.open("a") as file:
            file.write("saved\n")
        raise
