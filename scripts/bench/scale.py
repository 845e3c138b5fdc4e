"""What a large dataset costs the driver, storage and network, and how long nights would take at 100 million images.

    python -m scripts.bench.scale                        # 10, 1,000 and 100,000 shards of 640 images
    python -m scripts.bench.scale --shards 10,100 --images-per-shard 8 --networks MobileNetV2 --tasks 0 --json

In this order, each part alone on the machine:

    driver     planning, files, committing, listing, cached features, and the order of an epoch, each number of shards
               in a fresh process, from synthetic listings and manifests: seconds, peak memory, and how both grow
    tasks      what the driver does for each shard that it hands to an actor on Ray
    requests   requests and bytes of each job, counted at an S3 emulator on datasets of two sizes
    network    what is trained at each unfreeze depth, and the bytes that replicas exchange in each step
    wear       what removed images and many small nights do to shards
    estimate   the time of nights, from all these figures and from assumptions that are named one by one

Planning holds 250 bytes of memory for each image. Where a size would have more than 16 million of them, its shards are
planned with fewer images each; what is done for each file of the source is measured on at most a million. Growth is
given as the power of what was really there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from scripts.bench.common import last_json
from scripts.bench.scale_estimate import Measured, estimate
from scripts.bench.scale_figures import Figure, report, seconds_for

REPLICAS = 64
CLASSES = 1000
TASK_STEP = "hand out shards"


def main() -> None:
    options = arguments()
    result = json.loads(Path(options.saved).read_text().splitlines()[-1]) if options.saved else measure(options)
    result["estimate"] = estimate(measured(result), dict(options.assume))
    print(report(result))
    if options.json:
        print(json.dumps(result))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured or counted here."""
    # Everything here runs on CPUs, and says little.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    sizes = []
    for shards in numbers(options.shards):
        print(f"{shards:,} shards", file=sys.stderr)
        asked = {"shards": shards, "images_per_shard": options.images_per_shard}
        sizes.append({"shards": shards, **last_json("scale_driver", asked)})
    if options.tasks != "0":
        print("tasks on Ray", file=sys.stderr)
        counts = numbers(options.tasks)
        found = last_json("scale_driver", {"tasks": counts})
        sizes += [{"shards": count, **figures} for count, figures in zip(counts, found, strict=True)]
    print("requests, network, wear", file=sys.stderr)
    from scripts.bench import scale_requests
    from scripts.bench.scale_estimate import exchanged
    from scripts.bench.scale_synthetic import wear

    return {
        "images_per_shard": options.images_per_shard,
        "driver": sizes,
        "requests": scale_requests.measure(numbers(options.request_shards), options.images_per_shard),
        "network": {
            network: exchanged(network, classes=CLASSES, replicas=REPLICAS) for network in options.networks.split(",")
        },
        "wear": wear(shards=options.wear_shards, images_per_shard=options.images_per_shard, nights=options.nights),
        "sha256_bytes_per_s": sha256_rate(),
    }


def measured(result: dict[str, Any]) -> Measured:
    """What the estimate needs of all that was measured."""
    figures = [Figure(**figure) for size in result["driver"] for figure in size["figures"]]
    jobs, requests = result["requests"]["jobs"], result["requests"]
    largest = max((size for size in result["driver"] if "images of a chunk" in size["facts"]), key=shards_of)
    handed = [figure for figure in figures if figure.step == TASK_STEP]

    def seconds(step: str, count: float) -> float:
        return seconds_for((figure for figure in figures if figure.step == step), count)

    def requests_of(job: str) -> float:
        return float(sum(jobs[job]["requests_a_shard"].values()))

    shard_bytes = requests["images_per_shard"] * requests["image_bytes"]
    return Measured(
        seconds=seconds,
        requests=requests_of,
        reads_in_evaluation=jobs["evaluation from images, no disk cache"]["received_bytes_a_shard"] / shard_bytes,
        check_cpu_s=requests["cpu_s"]["check"],
        decode_cpu_s=requests["cpu_s"]["decode and resize to 224"],
        index_bytes=largest["facts"]["bytes of the index, an image"],
        task_s=seconds(TASK_STEP, 1000) / 1000 if handed else 0.0,
        sha256_bytes_per_s=result["sha256_bytes_per_s"],
        chunk_images=largest["facts"]["images of a chunk"],
        max_maps=requests["max_maps"],
        maps_a_shard=requests["maps_a_cached_shard"],
    )


def shards_of(size: dict[str, Any]) -> int:
    return int(size["shards"])


def sha256_rate() -> float:
    """Bytes a second of one thread."""
    data = bytes(32 * 1024**2)
    started = time.perf_counter()
    hashlib.sha256(data).digest()
    return len(data) / (time.perf_counter() - started)


def numbers(text: str) -> list[int]:
    return sorted(int(number) for number in text.split(","))


def assumption(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="10,1000,100000", help="numbers of shards, with commas")
    parser.add_argument("--images-per-shard", type=int, default=640)
    parser.add_argument("--tasks", default="200,2000", help="numbers of shards that are handed out on Ray; 0: none")
    parser.add_argument("--request-shards", default="2,4", help="two numbers of shards for which requests are counted")
    parser.add_argument("--networks", default="MobileNetV2,ResNet50", help="names in keras.applications, with commas")
    parser.add_argument("--wear-shards", type=int, default=100)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--saved", metavar="FILE", help="measure nothing: what an earlier run with --json printed")
    parser.add_argument("--assume", type=assumption, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
