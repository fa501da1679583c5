"""Zero-shot sketch-based image retrieval with the Domain-Smoothing Network, on Ray.

    config.py       what a run is: one validated model per concern, YAML in and out
    yaml_files.py   reading YAML, and naming the line of what is wrong
    space.py        what a sweep varies
    sweep.py        a sweep as it was asked for, and the trainings that follow from it
    data/           pictures in
        catalog.py    known data sets by name
        official.py   published ones: layouts, lists, splits
        folders.py    folders of one's own
        openmoji.py   the embedded demonstration data
        preparing.py  raw pictures -> checked Parquet shards
        parts.py      how they are cut into files, and one of them is written
        verify.py     what is wrong with raw pictures, and what is missing
        shards.py     finished shards
        storage.py    folders here or behind a URL
        roots.py      no path out of a folder
        remote.py     raw pictures behind a URL
        decoding.py   encoded bytes -> a picture
        views.py      the three views of a picture
        device_views.py  the same for a whole batch, on the device that trains
        batch.py      what a training step takes
        pictures.py   shards -> pictures by row number, in Ray's object store or as they lie
        stream.py     pictures -> batches of paired sketch and photo views
        preview.py    a picture of the views
        semantics.py  class -> row over the ImageNet classes
        teaching.py   the teacher's logits, computed once per data set and kept
    model/          the network: backbones, heads, weights, teacher, batch norm across ranks
    objective/      what training pulls on: contrastive, memory, distillation
    retrieval/      what a search gives: codes, rankings and metrics; and searching itself
    checkpoint.py   trained networks on disk
    rating.py       unseen pictures -> features -> metrics, as a Ray Data job
    gallery.py      a folder of photos to search
    web.py          the page to draw on and its search; its files are in page/
    batches.py      what its people draw, many at a time for the network
    figures.py      pictures of what a search finds
    sweeping.py     running it: the search, then the final job
    training.py     one training on Ray Train
    group.py        the process group of its workers
    trainer.py      Ray Train with few processes, within a trial too
    shelf.py        data sets in Ray's object store, loaded once for all trainings
    learner.py      one worker's training state and step
    worker.py       what every Ray Train worker runs
    search.py       who proposes trials
    study.py        what is known of them, in Optuna's journal
    stopping.py     who stops them early
    trials.py       running them with Ray Tune
    progress.py     what a person sees of them
    final.py        the final job
    results.py      what it is to train, and what came of it
    tables.py       its results, means, spreads and noise
    details.py      what lies behind them: per class, per recall, the photos found
    record.py       what a run writes down of itself, and reads back
    gauges.py       what is shown on Ray's metrics port
    sections.py     the report's sections
    album.py        what they are made of
    charts.py       their plots
    plan.py         what a sweep would run
    runtime.py      Ray's start-up, and work in other processes
    fleet.py        the machines of a cluster: those there, and those that may come
    room.py         what a run takes of a cluster, and waiting for it
    spot.py         AWS's spot market, and on demand where it refuses, for `ray up`
    runs.py         a run's folder and storage, and going on with it
    checks/         what can be wrong in a cluster file: of `ray up`, AWS, KubeRay, Slurm
    cli.py          what the commands share
    errors.py       what the user is to mend, and is told
    prepare, train, tune, evaluate, report, retrieve, serve, mask, cluster .py    the verbs

One way through the house: catalog -> shards -> pictures -> stream -> worker (learner: network,
objective) -> checkpoint -> features -> metrics. `model`, `objective` and `retrieval` know no Ray.
"""

from importlib import import_module
from typing import Any

_VERBS = {
    "run_training": "dsn_ray.training",
    "run_sweep": "dsn_ray.sweeping",
    "run_evaluation": "dsn_ray.evaluate",
}
__all__ = ["run_evaluation", "run_sweep", "run_training"]


def __getattr__(name: str) -> Any:
    """Imports what a command does only when it is asked for: Ray and torch take seconds."""
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
