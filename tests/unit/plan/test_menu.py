"""Plans as a menu for the scheduler."""

from mainspring.hardware.topology import build_cluster
from mainspring.models.profile import profile_decoder
from mainspring.plan.menu import offers_of
from mainspring.plan.offers import by_kind
from mainspring.plan.search import menu
from mainspring.spec import ClusterFile, DecoderConfig, LinkEntry, NodeEntry, TrainConfig

KIND = "H100-SXM5-80GB"


def test_every_number_of_ranks_is_one_offer_with_its_plans_own_figures():
    entry = NodeEntry(device=KIND, devices=8, count=2, price_usd_per_hour=5.0)
    cluster = build_cluster(ClusterFile(name="two", nodes=(entry,), link=LinkEntry(gigabytes_per_s=25)))
    config = DecoderConfig(vocab=32_000, hidden=1024, layers=24, heads=16, kv_heads=16, ffn=2688, context=2048)
    model = profile_decoder(config, seq_len=2048, name="small", precision="bf16")
    plans = menu(model, cluster, TrainConfig(steps=1, seq_len=2048, global_batch=64, precision="bf16"))
    offers = offers_of((*plans, *plans), device=KIND)
    assert [offer.ranks for offer in offers] == [1, 2, 4, 8, 16]
    assert all(offer.request.models == (KIND,) for offer in offers)
    assert [offer.speed for offer in offers] == [round(plan.tokens_per_s) for plan in plans]
    assert offers[3].milli_usd_per_hour == 40_000
    assert len({offer.plan for offer in offers}) == 5


def test_each_kind_of_device_of_a_mixed_cluster_is_offered_alone():
    other = "A100-SXM4-80GB"
    entries = (NodeEntry(device=KIND, devices=8), NodeEntry(device=other, devices=4, count=2))
    cluster = build_cluster(ClusterFile(name="mixed", nodes=entries, link=LinkEntry(gigabytes_per_s=25)))
    parts = by_kind(cluster)
    assert [len(part.nodes) for part in parts] == [2, 1]
    devices = [{device.name for node in part.nodes for device in node.devices} for part in parts]
    assert devices == [{other}, {KIND}]
    assert all(len(node.health) <= len(node.devices) for part in parts for node in part.nodes)
    alone = parts[1]
    assert by_kind(alone) == (alone,)
