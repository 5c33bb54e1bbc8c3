"""A small published corpus, indexed once: English handbook pages and one Chinese page."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mainspring.apps.rag.index import Index, build_index
from mainspring.data.documents import make_document, to_table
from mainspring.data.snapshot import publish
from mainspring.spec import Artifact, CurationReport, Settings
from mainspring.store import Store

PAGES = {
    "os.path.join": "# os.path.join\n\n    join(a, *p)\n\nJoin two or more pathname components, inserting '/' as "
    "needed. If any component is an absolute path, all previous path components will be discarded.",
    "os.path.abspath": "# os.path.abspath\n\n    abspath(path)\n\nReturn an absolute path. Relative names are resolved "
    "against the current working directory.",
    "csv.reader": "# csv.reader\n\n    reader(csvfile, dialect='excel')\n\nReturn a reader object that iterates over "
    "the lines of a comma separated file. Each row read from the file is returned as a list of strings.",
    "json.loads": "# json.loads\n\n    loads(s)\n\nDeserialize a JSON document held in a string to a Python object.",
    "collections.Counter": "# class collections.Counter\n\nDict subclass for counting hashable items. Elements are "
    "stored as dictionary keys and their counts are stored as dictionary values.",
    "math.sqrt": "# math.sqrt\n\n    sqrt(x, /)\n\nReturn the square root of x.",
    "shutil.copytree": "# shutil.copytree\n\n    copytree(src, dst)\n\nRecursively copy a directory tree and return "
    "the destination directory.",
    "时间": "# 时间\n\n这个函数返回当前的系统时间。时间以秒为单位,从纪元开始计算。",
    "路径": "# 路径\n\n路径连接函数把两个目录名称合并成一个完整的文件路径。",
}


Publish = Callable[..., Artifact]


def _publish(store: Store, pages: dict[str, str], name: str = "handbook") -> Artifact:
    documents = [make_document(source, text, title=source, kind="python") for source, text in pages.items()]
    size = sum(len(text) for text in pages.values())
    report = CurationReport(read=len(documents), kept=len(documents), read_bytes=size, kept_bytes=size, rules=())
    return publish(store, name, to_table(documents), report)


@pytest.fixture
def pages() -> dict[str, str]:
    return dict(PAGES)


@pytest.fixture
def publish_pages() -> Publish:
    return _publish


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    home = tmp_path_factory.mktemp("library")
    with Store.open(Settings(home=str(home))) as store:
        snapshot = _publish(store, PAGES)
        build_index(store, snapshot.ref, name="handbook")
        yield store


@pytest.fixture(scope="module")
def index(library: Store) -> Index:
    return Index.open(library, "index:handbook")


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
