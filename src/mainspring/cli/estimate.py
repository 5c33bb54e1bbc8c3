"""`mainspring estimate`: devices, days, price, energy and CO2 of a piece of work, before there is a recipe for it."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Annotated

import typer

from mainspring.cli.output import print_json, print_table, size
from mainspring.cli.session import AsJson, workspace_of
from mainspring.spec import Site, Sized, SpecError, Work, WorkSize

BILLION = 1e9
COLUMNS = ("device", "devices", "fits", "memory", "days", "device-hours", "MWh", "t CO2", "USD")


def add_to(cli: typer.Typer) -> None:
    """Register the verb."""
    cli.command("estimate", epilog="Example: mainspring estimate serve --params 70 --bits 4 --batch 8 --context 4096")(
        estimate
    )


def estimate(
    context: typer.Context,
    work: Annotated[Work, typer.Argument(help="train, finetune or serve.")],
    params: Annotated[float, typer.Option(help="Parameters of the model, in billions.")],
    tokens: Annotated[
        float, typer.Option(help="Tokens seen or written, in billions; those of a day in serving by default.")
    ] = 0.0,
    active: Annotated[float, typer.Option(help="Parameters one token uses, in billions; all by default.")] = 0.0,
    bits: Annotated[float, typer.Option(help="Bits per weight that is not trained.")] = 16.0,
    adapter: Annotated[float, typer.Option(help="Share of the parameters that fine-tuning trains.")] = 1.0,
    images: Annotated[float, typer.Option(help="For a diffusion model: images instead of tokens.")] = 0.0,
    latent_tokens: Annotated[int, typer.Option(help="Tokens the diffusion model makes of an image.")] = 1024,
    steps: Annotated[int, typer.Option(help="Calls of the diffusion model for one image; twice with guidance.")] = 1,
    rate: Annotated[float, typer.Option(help="Requests a second that serving keeps up with.", min=0)] = 0.0,
    prompt: Annotated[int, typer.Option(help="Tokens that a request brings.", min=0)] = 0,
    answer: Annotated[int, typer.Option(help="Tokens that a request is answered with.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Sequences served at once.", min=1)] = 1,
    context_tokens: Annotated[int, typer.Option("--context", help="Tokens of cache per sequence.", min=0)] = 0,
    kv_bytes: Annotated[float, typer.Option(help="Key-value cache per token, in bytes.")] = 0.0,
    device: Annotated[str, typer.Option(help="Only this kind, and by which methods; all by default.")] = "",
    devices: Annotated[int, typer.Option(help="How many; as few as hold it by default.", min=0)] = 0,
    instances: Annotated[str, typer.Option(help="In whole machines: `all`, or a TOML file of them.")] = "",
    utilisation: Annotated[float, typer.Option(help="Share of the peak to count on instead of the usual.")] = 0.0,
    price: Annotated[float, typer.Option(help="US dollars per device and hour.")] = 0.0,
    carbon: Annotated[float, typer.Option(help="Grams of CO2 per kWh.")] = 445.0,
    pue: Annotated[float, typer.Option(help="Power of the building over that of the devices.")] = 1.2,
    as_json: AsJson = False,
) -> None:
    """Show what training, fine-tuning or serving a model takes on each kind of device, and which hold it."""
    diffusion = images > 0 or steps > 1
    try:
        asked = WorkSize(
            work=work,
            params=params * BILLION,
            tokens=images * latent_tokens if images else tokens * BILLION,
            active=active * BILLION,
            bits=bits,
            adapter=adapter,
            steps=steps,
            batch=batch,
            rate=rate,
            prompt=prompt,
            answer=latent_tokens if diffusion else answer,
            context=context_tokens,
            kv_bytes_per_token=kv_bytes,
        )
        site = Site(pue=pue, carbon_grams_per_kwh=carbon, price_usd_per_hour=price)
        found = workspace_of(context).estimate(
            asked, device=device, devices=devices, utilisation=utilisation, site=site, instances=instances
        )
    except ValueError as error:
        hint = "" if tokens or images else "give --tokens, or --images for a diffusion model"
        raise SpecError(str(error), hint=hint) from error
    if as_json:
        print_json(found)
    elif found:
        _show(work, found, of=latent_tokens if diffusion else 1)
    else:
        raise SpecError(f"no instance has {device}", hint="name another device, or a file with --instances")


def _show(work: Work, found: Sequence[Sized], *, of: int) -> None:
    """A table, and below it the methods that all its rows share; `of` tokens are what is counted by the second."""
    by_flops, by_memory = (sorted(found, key=attrgetter(name)) for name in ("flops", "memory_bytes"))
    print_table(
        (*COLUMNS, "images/s" if of > 1 else "tokens/s"),
        [_row(sized, of=of) for sized in found],
        title=f"{work}: {_span(f'{sized.flops:.3g}' for sized in by_flops)} FLOP, "
        f"{_span(size(sized.memory_bytes) for sized in by_memory)} in all",
        drop=("memory", "t CO2", "device-hours", "MWh"),
    )
    for method in found[0].methods:
        if all(method in sized.methods for sized in found):
            print(f"  {method}")


def _span(told: Iterable[str]) -> str:
    """The first to the last of what is told, once where they are the same."""
    ends = list(told)
    return " to ".join(dict.fromkeys((ends[0], ends[-1])))


def _row(sized: Sized, *, of: int) -> tuple[str, ...]:
    short = sized.devices < sized.least
    return (
        f"{sized.instances} x {sized.instance}" if sized.instance else sized.device,
        f"{sized.devices:,}",
        f"no, {sized.least:,} would" if short else "yes",
        f"{size(sized.memory_bytes / sized.devices)} of {size(sized.device_memory_bytes)}",
        f"{sized.days:,.3g}" if sized.days < 1000 else f"{sized.days:,.0f}",
        f"{sized.device_hours:,.0f}",
        f"{sized.kwh / 1000:,.3g}",
        f"{sized.co2_kg / 1000:,.3g}",
        f"{sized.price_usd:,.0f}" if sized.price_usd else "-",
        f"{sized.tokens_per_s / of:,.3g}" if sized.tokens_per_s < 1000 * of else f"{sized.tokens_per_s / of:,.0f}",
    )
