"""A cluster for `abc-embed batch`, on paper: a simulation of its queues with measured rates.

    python tools/simulate_batch.py [--out results/scale/cluster.json]

Chunks of 64 pictures go through the steps of scale/job.py: the network brings them, CPU cores
prepare them, GPUs embed them. Each step has servers and a queue with room for a few chunks before
each server; a step that finds no room waits, as back-pressure has it. Times of service are measured
means (`RATES`), drawn from a gamma distribution; a GPU now and then dies and loads its model again.
Few chunks are enough, since the queues are in balance after some hundred.
"""

import argparse
import heapq
import json
import random
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RATES = {
    "gpu_images_per_s": 37.6,
    "cpu_images_per_s": 47.5,
    "picture_bytes": 100e3,
    "reload_s": 60.0,
}
"""One H100 with the 7B model in bfloat16 (pictures of 504 visual tokens, ready), one core that
prepares (44 to 51 were measured); a JPEG of such a picture, and loading, are assumed."""
CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is rented."""

    gpus: int = 64
    cores: int = 16 * 8
    network_bytes_per_s: float = 8 * 3e9
    """Of all machines together: 25 Gbit/s each."""
    deaths_per_gpu_h: float = 0.01
    room: int = 4
    """Chunks that wait before each GPU."""


class Step:
    """Servers that take chunks from a queue, with room for some, and hand them to the next."""

    def __init__(self, servers: int, mean_s: float, room: int, spread: float = 0.2) -> None:
        self.free, self.mean_s, self.room = servers, mean_s, room
        self.servers, self.spread = servers, spread
        self.waiting = 0
        self.blocked = 0
        """Servers that are done and find no room in the next step."""
        self.busy_s = 0.0

    def service_s(self, dice: random.Random) -> float:
        shape = 1 / self.spread**2
        return dice.gammavariate(shape, self.mean_s / shape)


def simulate(cluster: Cluster, chunks: int, seed: int = 0) -> dict[str, float]:
    """Rates and shares of time after so many chunks."""
    dice = random.Random(seed)
    fetch_s = CHUNK * RATES["picture_bytes"] / (cluster.network_bytes_per_s / cluster.cores)
    steps = [
        Step(cluster.cores, fetch_s, 0),
        Step(cluster.cores, CHUNK / RATES["cpu_images_per_s"], cluster.cores),
        Step(cluster.gpus, CHUNK / RATES["gpu_images_per_s"], cluster.room * cluster.gpus),
    ]
    death = cluster.deaths_per_gpu_h / 3600 * steps[2].mean_s
    left, done, now = chunks, 0, 0.0
    events: list[tuple[float, int]] = []
    most_waiting = 0

    def start(number: int) -> None:
        step = steps[number]
        seconds = step.service_s(dice)
        step.busy_s += seconds
        if number == 2 and dice.random() < death:
            seconds += RATES["reload_s"]
        step.free -= 1
        heapq.heappush(events, (now + seconds, number))

    def settle() -> None:
        """Let everything move that can, from the last step to the first."""
        nonlocal left
        for number in (2, 1, 0):
            step = steps[number]
            while number and step.waiting and step.free:
                step.waiting -= 1
                start(number)
            before = steps[number - 1] if number else None
            while before is not None and before.blocked and step.waiting < step.room:
                before.blocked -= 1
                before.free += 1
                step.waiting += 1
                if step.free:
                    step.waiting -= 1
                    start(number)
            while not number and step.free and left:
                left -= 1
                start(0)

    settle()
    recent: deque[float] = deque(maxlen=max(chunks // 2, 1))
    while events:
        now, number = heapq.heappop(events)
        if number == 2:
            done += 1
            recent.append(now)
            steps[2].free += 1
        else:
            steps[number].blocked += 1
        settle()
        settle()
        most_waiting = max(most_waiting, steps[2].waiting)
    rate = CHUNK * (len(recent) - 1) / max(recent[-1] - recent[0], 1e-9)
    return {**_at_rate(cluster, rate), "most_waiting_chunks": float(most_waiting)}


def _at_rate(cluster: Cluster, rate: float) -> dict[str, float]:
    return {
        "images_per_s": rate,
        "gpu_busy": rate / (cluster.gpus * RATES["gpu_images_per_s"]),
        "cpu_busy": rate / (cluster.cores * RATES["cpu_images_per_s"]),
        "read_bytes_per_s": rate * RATES["picture_bytes"],
        "hours_for_a_billion": 1e9 / rate / 3600,
    }


def closed_form(cluster: Cluster) -> float:
    """Images a second of the narrowest step, without queues."""
    gpu = cluster.gpus * RATES["gpu_images_per_s"]
    cpu = cluster.cores * RATES["cpu_images_per_s"]
    return min(gpu, cpu, cluster.network_bytes_per_s / RATES["picture_bytes"])


def draw_figure(cores: list[int], found: list[dict[str, float]], out: Path) -> None:
    """Images a second, and the share of time that GPUs compute, by cores a GPU."""
    from abc_embed.figures import new_figure, save_figure

    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    ratios = [count / 64 for count in cores]
    axes.plot(ratios, [one["images_per_s"] for one in found], "o-", label="simulated")
    ideal = [closed_form(Cluster(cores=count)) for count in cores]
    axes.plot(ratios, ideal, "--", color="grey", label="narrowest step alone")
    axes.set_xlabel("CPU cores that prepare, a GPU")
    axes.set_ylabel("images a second, 64 GPUs")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "scale" / "cluster.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "cluster.png")
    options = parser.parse_args()
    cores = [16, 32, 48, 56, 64, 80, 96, 128]
    found = [simulate(Cluster(cores=count), options.chunks) for count in cores]
    slow = Cluster(network_bytes_per_s=8 * 1.25e8)
    cases = {
        "as planned": Cluster(),
        "1 Gbit/s a machine": slow,
        "room for one chunk a GPU": Cluster(room=1),
        "a death a GPU and hour": Cluster(deaths_per_gpu_h=1.0),
        "100 Mbit/s a machine": Cluster(network_bytes_per_s=8 * 1.25e7),
    }
    record = {
        "rates": RATES,
        "chunk": CHUNK,
        "chunks": options.chunks,
        "by_cores": [{"cores": n, **one} for n, one in zip(cores, found, strict=True)],
        "cases": {
            name: {**asdict(case), **simulate(case, options.chunks)} for name, case in cases.items()
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    draw_figure(cores, found, options.figure)
    for name, one in record["cases"].items():
        print(f"{name}: {one['images_per_s']:.0f}/s, GPUs busy {one['gpu_busy']:.1%}")


if __name__ == "__main__":
    main()
