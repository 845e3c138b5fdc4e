"""The command `transfer benchmark`: what published versions cost to serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer.cli.common import AsJson, ConfigPath, Overrides, opened, run
from transfer.runtime.numbers import percent, size

if TYPE_CHECKING:
    from transfer.registry.benchmark import Benchmark, VersionFigures

benchmark_app = typer.Typer()


@benchmark_app.command()
def benchmark(
    config: ConfigPath,
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", min=1, help="Number of the version. Default: the promoted one.")
    ] = None,
    against: Annotated[
        int | None, typer.Option(min=1, help="Number of another version, which is measured in turns with it.")
    ] = None,
    max_load: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest share of the CPUs that may be at work for other programs.")
    ] = 0.1,
    watts: Annotated[
        float, typer.Option(min=0.0, help="Of a CPU at work, for an estimate where no counter of energy can be read.")
    ] = 10.0,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Measure speed, memory and energy of a published version, as a server loads it. Exits with 16 if others work."""

    def work() -> dict[str, Any]:
        from transfer.registry.benchmark import benchmark
        from transfer.registry.versions import load_version

        loaded, store = opened(config, overrides)
        numbers = [version] if against is None else [version, against]
        versions = [load_version(store, loaded.name, number) for number in numbers]
        found = benchmark(store, versions, max_load=max_load, watts_a_cpu=watts)
        return found.model_dump() | {"ratios": _ratios(found)} if json else _for_people(found)

    run(work, json)


def _ratios(found: Benchmark) -> dict[str, float | None] | None:
    """Figures of the first version by those of the second; None if there is only one."""
    if len(found.versions) == 1:
        return None
    first, second = (figures.model_dump() for figures in found.versions)
    names = ("milliseconds", "images_a_second", "load_s", "memory_bytes", "size_bytes", "joules_an_image")
    return {name: first[name] / second[name] if first[name] and second[name] else None for name in names}


def _for_people(found: Benchmark) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "model": found.model,
        "machine": f"{found.machine}, {found.cpus} CPUs{''.join(f', {gpu}' for gpu in found.gpus)}",
        "at work for others": percent(found.load) if found.load is not None else "not known",
        "energy from": found.energy_from,
    }
    if ratios := _ratios(found):
        numbers = " / ".join(str(figures.version) for figures in found.versions)
        told = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in ratios.items() if ratio is not None)
        answer[f"version {numbers}"] = told
    return answer | {"versions": [_row(figures) for figures in found.versions]}


def _row(figures: VersionFigures) -> dict[str, Any]:
    gpu = figures.gpu_memory_bytes
    return {
        "version": figures.version,
        "ms an image": f"{figures.milliseconds:.1f}",
        "95 % within": f"{figures.milliseconds_p95:.1f}",
        "images/s in 32s": f"{figures.images_a_second:.1f}",
        "load s": f"{figures.load_s:.1f}",
        "first answer s": f"{figures.first_answer_s:.1f}",
        "peak memory": size(figures.memory_bytes) if figures.memory_bytes else None,
        "before loading": size(figures.memory_before_bytes) if figures.memory_before_bytes else None,
        **({"GPU memory": size(gpu)} if gpu is not None else {}),
        "on disk": size(figures.size_bytes),
        "J an image": f"{figures.joules_an_image:.2g}",
    }
