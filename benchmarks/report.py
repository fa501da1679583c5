"""How long the report of a search of 64 trials takes, with the final job of four variants.

python -m benchmarks.report
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from dsn_ray.config import Config
from dsn_ray.data.storage import Folder
from dsn_ray.details import write_details
from dsn_ray.report import write_report
from tests.test_details import embedded
from tests.test_report import search
from tests.test_tables import rows

TRIALS = 64
VARIANTS = ("baseline", "+ L_cmcm", "+ L_ml", "both")
SEEDS = 3
CLASSES = [f"class {number}" for number in range(25)]


def main() -> None:
    """Prints the seconds."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place)
        random = np.random.default_rng(0)
        labels = np.repeat(np.arange(len(CLASSES)), 40)
        centres = random.standard_normal((len(CLASSES), 64))[labels]
        sides = [embedded(centres + random.standard_normal(centres.shape), labels) for _ in "12"]
        search(run, TRIALS)
        final = []
        for variant in VARIANTS:
            for seed in range(SEEDS):
                about = {"dataset": "sketchy", "variant": variant, "seed": seed}
                value = 0.2 + VARIANTS.index(variant) / 50 + seed / 1000
                final += rows("sketchy", value, seed=seed, variant=variant, parameters={})
                where = Folder.at(run / "final" / f"{variant}-{seed}" / "details")
                write_details(where, about, CLASSES, *sides)
        contents = {"setting": None, "rows": final, "untrained": [], "official": {"sketchy": False}}
        (run / "final.json").write_text(json.dumps(contents))
        tree = {"data": {"sketchy": "Sketchy"}, "config": Config().model_dump(mode="json")}
        (run / "config.yaml").write_text(yaml.safe_dump({**tree, "space": {}}))
        started = time.perf_counter()
        report = write_report(run)
        took = time.perf_counter() - started
        print(f"{TRIALS} trials: {took:.1f} s, {report.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
