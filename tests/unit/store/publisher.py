"""A process that publishes until it is told to stop or killed: python publisher.py HOME DATABASE_URL MODE.

MODE "count:N:TAG" publishes N different contents as model:shared and exits; "forever" never ends; "big" publishes
8 MiB once and reports the error. Every finished publish is printed as `ref digest`.
"""

import itertools
import os
import resource
import sys
import tempfile
from pathlib import Path

from mainspring.spec import MainspringError, Settings
from mainspring.store import Store


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def publish(store: Store, text: str, copies: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index in range(copies):
            (Path(folder) / f"{index}.bin").write_text(f"{text} {index} " * 20_000)
        artifact = store.publish("model", "shared", Path(folder))
    _say(artifact.ref, artifact.digest)


def main(home: str, url: str, mode: str) -> None:
    with Store.open(Settings(home=home, database_url=url)) as store:
        _say("ready")
        sys.stdin.readline()
        if mode.startswith("count:"):
            _, count, tag = mode.split(":")
            for index in range(int(count)):
                publish(store, f"{tag} {index}", copies=1)
        elif mode == "forever":
            for index in itertools.count():
                publish(store, f"{os.getpid()} {index}", copies=4)
        elif mode == "big":
            with tempfile.NamedTemporaryFile(suffix=".bin") as big:
                big.write(os.urandom(8 << 20))
                big.flush()
                resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
                try:
                    store.publish("model", "big", Path(big.name))
                except MainspringError as error:
                    _say(type(error).__name__, error, "|", error.hint)


if __name__ == "__main__":
    main(*sys.argv[1:4])
