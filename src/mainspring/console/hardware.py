"""The machines at hand: devices, memory, links, and whether they are well."""

from nicegui import ui

from mainspring.console.frame import live, page
from mainspring.console.markup import Markup, join, show, tag
from mainspring.console.parts import bar, facts, figures, heading, panel, table
from mainspring.console.words import count, size
from mainspring.spec import Check, Cluster, Device, Health, Node
from mainspring.workspace import Workspace

EVERY_S = 5.0
TONES = {"healthy": "good", "degraded": "run", "unhealthy": "bad"}


def add_to(workspace: Workspace) -> None:
    """Register the page."""

    @ui.page("/hardware", response_timeout=60)
    async def hardware() -> None:
        async with page("Hardware", section="hardware"):
            show(heading("Hardware", lead="What this machine, or every node of the cluster, offers and how it feels."))
            body = show().classes("stack")
            checks = show()

            def draw(found: Cluster) -> None:
                body.content = view(found)

            def draw_checks(found: tuple[Check, ...]) -> None:
                checks.content = health(found)

            await live(workspace.hardware, draw, every_s=EVERY_S)
            await live(lambda: workspace.doctor(contents=False), draw_checks, every_s=30.0)


def view(found: Cluster) -> Markup:
    """The cluster, node by node."""
    devices = [device for node in found.nodes for device in node.devices]
    numbers = figures(
        [
            ("Nodes", count(len(found.nodes))),
            ("Devices", count(found.device_count)),
            ("Cores", count(sum(node.cpu_cores for node in found.nodes))),
            ("Device memory", size(sum(device.memory_bytes for device in devices))),
            ("fp32 peak", _flops(sum(device.fp32_flops_per_s for device in devices))),
            ("Power at full load", f"{sum(device.power_watts for device in devices):.0f} W"),
        ]
    )
    return join(panel(found.name, numbers, aside=_link("between nodes", found)), [_node(node) for node in found.nodes])


def health(checks: tuple[Check, ...]) -> Markup:
    """Doctor's checks."""
    rows = [
        (check.name, tag("span", check.state, class_=f"badge {'good' if check.state == 'ok' else 'bad'}"), check.detail)
        for check in checks
    ]
    return panel("Checks", table(("what", "state", "detail"), rows), aside="mainspring doctor")


def _node(node: Node) -> Markup:
    wells = {health.device: health for health in node.health}
    cards = [_device(device, wells.get(device.name)) for device in node.devices]
    about = f"{node.address}, {node.cpu_cores} cores, {size(node.memory_bytes)}, link {node.link.name}"
    return panel(node.name, tag("div", cards, class_="stack"), aside=about)


def _device(device: Device, well: Health | None) -> Markup:
    state = tag("span", well.state, class_=f"badge {TONES[well.state]}") if well else None
    head = tag(
        "div", tag("h3", device.name, " ", tag("span", device.vendor, class_="soft")), state, class_="panel-head"
    )
    rows = [
        ("Memory", f"{size(device.memory_bytes)} at {device.memory_bytes_per_s / 1e9:.3g} GB/s"),
        (
            "fp32, bf16, int8",
            f"{_flops(device.fp32_flops_per_s)}, {_flops(device.bf16_flops_per_s)}, "
            f"{device.int8_ops_per_s / 1e12:.3g} TOP/s",
        ),
        ("Compute-bound above", f"{device.ridge_flops_per_byte:.3g} FLOP per byte"),
        ("Power", f"{device.power_watts:.0f} W"),
        ("Figures from", device.source or "a probe of this machine"),
    ]
    if well and well.temperature_celsius is not None:
        rows.append(("Temperature", f"{well.temperature_celsius:.0f} °C"))
    used = None
    if well and well.used_bytes:
        used = bar(well.used_bytes / device.memory_bytes, f"{size(well.used_bytes)} of memory in use")
    reasons = (
        tag("div", [tag("p", reason) for reason in well.reasons], class_="alert run") if well and well.reasons else None
    )
    return tag("div", head, reasons, used, facts(rows), class_="stack")


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _link(where: str, found: Cluster) -> str:
    if len(found.nodes) < 2:
        return "one machine"
    return f"{found.link.name} {where}: {found.link.bytes_per_s / 1e9:.3g} GB/s, {found.link.latency_s * 1e6:.3g} µs"
