"""Plans as offers to the scheduler: what each takes of which device, and how fast the job runs with it."""

from collections.abc import Iterable

from mainspring.spec import Offer, Plan, Request


def offers_of(plans: Iterable[Plan], *, device: str) -> tuple[Offer, ...]:
    """One offer for each plan, whose ranks take one `device` each; speed is in tokens per second.

    Plans for the same number of ranks differ in nothing that the scheduler sees: the fastest is kept.
    """
    best: dict[int, Plan] = {}
    for plan in plans:
        known = best.setdefault(plan.mesh.world, plan)
        if plan.tokens_per_s > known.tokens_per_s:
            best[plan.mesh.world] = plan
    return tuple(
        Offer(
            request=Request(devices=1, models=(device,)),
            ranks=ranks,
            speed=max(1, round(plan.tokens_per_s)),
            plan=f"{plan.mesh.label} on {ranks} {device}",
            watts=round(plan.watts),
            milli_usd_per_hour=round(1000 * plan.price_usd_per_hour),
        )
        for ranks, plan in sorted(best.items())
    )
