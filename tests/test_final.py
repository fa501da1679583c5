import subprocess
import sys
from types import SimpleNamespace

from dsn_ray.final import _Collector
from dsn_ray.results import FinalResults
from tests.test_results import candidate


def test_what_came_of_a_training_is_taken_once_and_for_all_that_are_equal(tmp_path):
    twins = [candidate(variant=name) for name in "ab"]
    other = candidate(seed=1)
    results = FinalResults(tmp_path / "final.json")
    results.keep_only([*twins, other])
    collector = _Collector([twins, [other]], results, str(tmp_path))
    for _ in range(2):  # Tune may run a trial again
        for number, result in enumerate(
            ({"rows": [{"value": 0.5}], "kept": "/here"}, {"diverged": "No number."})
        ):
            trial = SimpleNamespace(config={"number": number})
            collector.on_trial_result(0, [], trial, {"epoch": 1, **result})
    assert [(row["variant"], row["checkpoint"]) for row in results.rows] == [
        ("a", "/here"),
        ("b", "/here"),
    ]
    assert [one["seed"] for one in results.diverged] == [1]


def test_what_waits_for_workers_needs_no_torch():
    rooms = "final sweeping training group shelf rating trials data.pictures data.teaching"
    imports = ", ".join(f"dsn_ray.{room}" for room in rooms.split())
    waits = f"import sys, {imports}; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", waits], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
