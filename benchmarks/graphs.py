"""Ten thousand random graphs through the whole of prunus.

    python benchmarks/graphs.py                          # writes benchmarks/results/graphs.md
    python benchmarks/graphs.py --seeds 0:500            # some of them
    python benchmarks/graphs.py --seeds 258:259 --shrink # one, made as small as it can be while it still fails

Each seed is a network whose text is printed when something is wrong. Finished seeds are kept in
benchmarks/results/graphs.jsonl, so that a run can be continued. What is asked of each: `tests/property/graphs/check.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from typing import Any

from _record import RESULTS, ROOT, table, write

sys.path.insert(0, str(ROOT))
from tests.property.graphs.check import Wrong, check, check_network, quiet
from tests.property.graphs.draw import drawn
from tests.property.graphs.shrink import shrunk
from tests.property.graphs.sketch import Network

COUNT = 10_000
STORE = RESULTS / "graphs.jsonl"
QUESTIONS = {
    "plans": "plans executed and verified",
    "exact": "results compared with the original with zeros in its weights",
    "sizes": "runs at other sizes than the example's",
    "refused": "other sizes refused, with an error that says so",
    "trained": "results that took a step of training",
    "own_class": "results that are of the user's class",
}


def row(seed: int) -> dict[str, Any]:
    """What was found at a seed."""
    start = time.process_time()
    try:
        found: dict[str, Any] = dict(vars(check(seed)))
    except Wrong as error:
        print(error, flush=True)
        found = {"wrong": str(error).splitlines()[0]}
    return {"seed": seed, "seconds": time.process_time() - start, **found}


def smallest(seed: int) -> Network | None:
    """The network of a seed made smaller for as long as it fails with the same kind of error; None if it does not fail."""
    kinds: set[str] = set()

    def fails(network: Network) -> bool:
        try:
            check_network(network, seed)
        except Exception as error:  # noqa: BLE001  whatever is wrong
            kinds.add(type(error).__name__ + str(error)[:20]) if not kinds else None
            return type(error).__name__ + str(error)[:20] in kinds
        return False

    small = shrunk(drawn(seed), fails)
    return small if kinds else None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default=f"0:{COUNT}", help="FIRST:END")
    parser.add_argument(
        "--shrink", action="store_true", help="print the smallest network that fails, and write nothing"
    )
    options = parser.parse_args()
    first, end = map(int, options.seeds.split(":"))
    warnings.simplefilter("ignore")
    with quiet():
        if options.shrink:
            for seed in range(first, end):
                print(smallest(seed) or f"seed {seed} does not fail")
            return 0
        rows = _rows(range(first, end))
    if (first, end) == (0, COUNT):
        _write(rows)
    wrong = [one for one in rows if "wrong" in one]
    print(f"{len(rows)} graphs, {len(wrong)} wrong", *(one["wrong"] for one in wrong), sep="\n")
    return 1 if wrong else 0


def _rows(seeds: range) -> list[dict[str, Any]]:
    known = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.is_file() else []
    done = {one["seed"]: one for one in known}
    with STORE.open("a") as store:
        for seed in seeds:
            if seed not in done:
                done[seed] = row(seed)
                store.write(json.dumps(done[seed]) + "\n")
                store.flush()
    return [done[seed] for seed in seeds]


def _write(rows: list[dict[str, Any]]) -> None:
    wrong = [one for one in rows if "wrong" in one]
    held = Counter(reason for one in rows for reason in one.get("held", ()))
    seconds = sum(one["seconds"] for one in rows) / len(rows)
    text = (
        "# Random graphs\n\n"
        f"{len(rows):,} networks, each drawn from a seed: {len(wrong)} of them went wrong. {seconds:.2f} s of the processor each. "
        "One of five is captured with all its sizes free and is also run at three other sizes.\n\n"
    )
    counts = [[words, f"{sum(one.get(key, 0) for one in rows):,}"] for key, words in QUESTIONS.items()]
    text += table(["what was asked", "times"], counts) + "\n\n"
    text += table(
        ["groups held, other than as outputs, because a channel", "groups"],
        [[k, str(v)] for k, v in held.most_common()],
    )
    if wrong:
        text += "\n\n" + table(["what went wrong"], [[one["wrong"]] for one in wrong])
    write("graphs", "python benchmarks/graphs.py", text)


if __name__ == "__main__":
    sys.exit(main())
