"""Fetch pip's own wheel with nothing but the standard library, and print where it lies.

For a Python that came with neither pip nor ensurepip, as Debian's does until python3-venv is installed. The newest
wheel for this Python is taken from the package index it is told and checked against the digest the
index gives. The wheel can be run as it is: `python pip-*.whl/pip install pip`.
"""

import hashlib
import re
import sys
from html import unescape
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import urlopen

LINK = re.compile(
    r'<a\s[^>]*href="(?P<url>[^"]*/pip-(?P<version>\d+(?:\.\d+)+)-py3-none-any\.whl[^"]*)"(?P<rest>[^>]*)>'
)
NEEDS = re.compile(r'data-requires-python="[^"]*>=3\.(\d+)')
TIMEOUT_S = 60


def main(folder: Path, index: str) -> None:
    """Write the wheel into `folder`; exits with a reason when there is none to be had."""
    index = index.rstrip("/") + "/pip/"
    try:
        with urlopen(index, timeout=TIMEOUT_S) as page:
            found = wheels(page.read().decode("utf-8"))
        if not found:
            sys.exit(
                f"error: {index} offers no wheel of pip for Python {sys.version_info.major}.{sys.version_info.minor}"
            )
        url = urljoin(index, found[-1][1])
        with urlopen(url, timeout=TIMEOUT_S) as wheel:
            content = wheel.read()
    except (URLError, OSError) as error:
        sys.exit(f"error: pip could not be fetched from {index}: {error}")
    digest = urlsplit(url).fragment.removeprefix("sha256=")
    if digest and hashlib.sha256(content).hexdigest() != digest:
        sys.exit(f"error: {url} has digest {hashlib.sha256(content).hexdigest()}")
    path = folder / Path(urlsplit(url).path).name
    path.write_bytes(content)
    print(path)


def wheels(page: str) -> list[tuple[tuple[int, ...], str]]:
    """Version and link of every wheel of pip on an index page that this Python can run, oldest first."""
    found = []
    for link in LINK.finditer(page):
        needs = NEEDS.search(unescape(link["rest"]))
        if not needs or int(needs[1]) <= sys.version_info.minor:
            found.append((tuple(map(int, link["version"].split("."))), unescape(link["url"])))
    return sorted(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
