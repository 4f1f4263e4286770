"""The plan for people: tables and warnings on the console; `--probe` and `--fit` asked for on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xwam_ft.consoles import duration
from xwam_ft.errors import UserError
from xwam_ft.machine import free_memory, gigabytes

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.plan.plan import Plan
    from xwam_ft.recipe import Recipe


def plan_recipe(recipe: Recipe, console: Console, *, probe: bool, fit: bool) -> Plan:
    """`xwam-ft plan`.

    Args:
        probe: measure steps; loads the weights.
        fit: find the largest micro-batch: by real steps on a GPU, by the estimate on a CPU.

    Raises:
        UserError: anything wrong with recipe or shards, shapes the backbone cannot hold, or a probe out of memory.
    """
    from xwam_ft.encode.inputs import open_inputs
    from xwam_ft.plan.plan import fitting_batch, make_plan

    inputs = open_inputs(recipe, console, computes=probe)
    recipe, shard_set = inputs.recipe, inputs.shard_set
    plan = make_plan(recipe, shard_set)
    if probe or fit:
        device = inputs.device
        on_gpu = device.type == "cuda"
        if probe or on_gpu:
            from xwam_ft.plan.memory import is_out_of_memory, out_of_memory
            from xwam_ft.plan.probe import MOST, Prober, largest

            try:
                prober = Prober(recipe, shard_set.contract, device, plan.latents, plan.text)
                plan = replace(plan, probe=prober.measure()) if probe else plan
                if fit and on_gpu:
                    plan = replace(plan, largest_batch=largest(prober.fits, min(MOST, plan.train_clips)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise out_of_memory(recipe) from None
        if fit and not on_gpu:
            plan = replace(plan, largest_batch=fitting_batch(plan, recipe, free_memory(gpu=False)))
    print_plan(plan, recipe, console)
    if plan.largest_batch == 0:
        from xwam_ft.plan.memory import savings

        raise UserError("not even one clip fits in memory", "trainer.batch_size", savings(recipe))
    return plan


def print_plan(plan: Plan, recipe: Recipe, console: Console) -> None:
    """Five tables, what `--fit` found, and the warnings."""
    for title, header, rows in plan_tables(plan, recipe):
        from rich.table import Table

        table = Table(*header, title=title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if plan.largest_batch:
        from xwam_ft.plan.probe import MOST

        accumulate = -(-plan.batch // (plan.largest_batch * plan.devices))
        most = " (no larger one was tried)" if plan.largest_batch == MOST else ""
        console.print(
            f"largest micro-batch: {plan.largest_batch}{most}; for as many clips a step: --set trainer.batch_size="
            f"{min(plan.largest_batch, plan.batch)} --set trainer.accumulate={max(accumulate, 1)}",
            soft_wrap=True,
        )
    from xwam_ft.model.precision import chosen_precision

    if (said := chosen_precision(recipe.trainer)[1]) is not None:
        console.print(said, soft_wrap=True)
    for sentence in plan.warnings:
        console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)


Tables = list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]


def plan_tables(plan: Plan, recipe: Recipe) -> Tables:
    """(title, header, rows) of each table; the run's report shows the same ones."""

    count = [
        (row.group, f"{row.parameters:,}", f"{row.trainable:,}", ", ".join(row.dtypes), gigabytes(row.bytes))
        for row in plan.groups
    ]
    total = sum(r.parameters for r in plan.groups), sum(r.trainable for r in plan.groups)
    count.append(("all", f"{total[0]:,}", f"{total[1]:,}", "", gigabytes(sum(r.bytes for r in plan.groups))))
    memory = [(part.name, gigabytes(part.bytes)) for part in plan.memory]
    memory.append(("peak, estimated", gigabytes(plan.peak)))
    measured = plan.probe.peak_bytes if plan.probe else None
    if measured is not None:
        memory.append(("peak, measured in the probe (no VAE, no average)", gigabytes(measured)))
    here = plan.memory_available
    memory.append(("free on this machine", "no such device here" if here is None else gigabytes(here)))
    for name, size in (("with", plan.activations.checkpointed), ("without", plan.activations.plain)):
        memory.append((f"activations of a clip {name} gradient checkpointing", gigabytes(size)))
    whole = "" if plan.host.whole is None else f", which loads the whole network ({plan.host.whole})"
    host = [
        (f"a process{whole}", gigabytes(plan.host.process)),
        ("the first process, which writes checkpoints", gigabytes(plan.host.first)),
        (f"a machine of {plan.host.processes}", gigabytes(plan.host.machine)),
        (
            "free on this machine",
            "not the one that trains" if plan.host_available is None else gigabytes(plan.host_available),
        ),
    ]
    disk = [(part.name, gigabytes(part.bytes)) for part in plan.disk]
    disk += [(f"free, where {part.name} lie", gigabytes(part.bytes)) for part in plan.disk_free]
    return [
        (f"network on {plan.backbone}", ("part", "parameters", "trained", "dtype", "memory"), count),
        (f"memory of a device, micro-batches of {recipe.trainer.batch_size}", ("part", "size"), memory),
        ("host memory, at most", ("where", "size"), host),
        ("disk", ("part", "size"), disk),
        ("run", ("what", "value"), _run_rows(plan)),
    ]


def _run_rows(plan: Plan) -> list[tuple[str, ...]]:
    probe = plan.probe
    rows = [
        ("optimizer steps", f"{plan.steps:,}"),
        ("clips an optimizer step", f"{plan.batch:,}"),
        ("training clips", f"{plan.train_clips:,}"),
        ("epochs", f"{plan.epochs:.1f}"),
        ("held out", f"{plan.held_out_clips:,} clips of {plan.held_out_episodes} episodes"),
    ]
    if (call := plan.acting) is not None:
        share = f"{call.tokens:,} of {call.all_tokens:,}"
        work = f"{call.flops / 1e12:.3g} of {call.all_flops / 1e12:.3g}"
        rows += [("tokens of an action call, future left out", share), ("TFLOP of each of its steps", work)]
    if probe is None or plan.seconds is None:
        return [*rows, ("time", "unknown: xwam-ft plan --probe measures it")]
    return [
        *rows,
        ("an optimizer step", f"{probe.step_seconds:.3g} s on {probe.device} (median of {probe.steps})"),
        ("encoding a clip", f"{probe.encode_seconds:.3g} s"),
        ("time, encoding included, validation apart", duration(plan.seconds)),
    ]
