"""Each third-party package has owner rooms; nobody else may import it."""

import sys

import grimp
import pytest

OWNERS = {
    "alembic": {"store"},
    "altair": {"evaluate"},
    "daft": {"data"},
    "fastapi": {"api", "console", "serve"},
    "fastapi_offline": {"api", "serve"},
    "fsspec": {"store"},
    "httpx": {"remote"},
    "huggingface_hub": {"models"},
    "jinja2": {"models"},
    "kreuzberg": {"data"},
    "lance": {"data"},
    "lancedb": {"apps"},
    "nicegui": {"console"},
    "numba": {"cluster"},
    "numpy": {"cluster", "models", "data", "evaluate", "train", "compress", "serve", "apps"},
    "onnxruntime": {"models"},
    "prometheus_client": {"api", "serve"},
    "psutil": {"cluster", "hardware", "store"},
    "pyarrow": {"apps", "data"},
    "pydantic": {"api", "serve", "store"},
    "pynvml": {"hardware"},
    "ray": {"cluster"},
    "rich": {"cli"},
    "safetensors": {"models", "train"},
    "sqlalchemy": {"store"},
    "starlette": {"api", "console", "serve"},
    "tokenizers": {"models"},
    "torch": {"compress", "evaluate", "hardware", "models", "serve", "train"},
    "typer": {"cli"},
    "uvicorn": {"serve"},
    "vl_convert": {"evaluate"},
}
GRAPH = grimp.build_graph(
    "mainspring", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
)
PRODUCT = {module for module in GRAPH.modules if not module.startswith("mainspring.testing")}


def importers(package: str) -> set[str]:
    """Rooms that import `package` directly."""
    found = GRAPH.find_modules_that_directly_import(package) if package in GRAPH.modules else set()
    return {module.partition(".")[2].partition(".")[0] for module in found & PRODUCT}


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_only_owner_rooms_import(package: str) -> None:
    assert importers(package) <= OWNERS[package]


def test_every_dependency_has_an_owner() -> None:
    external = {module for module in GRAPH.modules if GRAPH.is_module_squashed(module)}
    third_party = {module for module in external if importers(module)} - set(sys.stdlib_module_names)
    assert third_party <= OWNERS.keys()
